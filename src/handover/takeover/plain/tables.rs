//! The kernel's lists of unix and UDP sockets of our network namespace. The parsing is pure; the
//! reading is one line each.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

/// Where a unix socket is to be found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnixName {
    Path(PathBuf),
    /// With the zero bytes at its end: HAProxy's `abns@` fills the whole field with them.
    Abstract(Vec<u8>),
}

/// `SO_ACCEPTCON` in the column of flags.
const LISTENS: &str = "00010000";
const STREAM: &str = "0001";

/// One that listens, by inode. The table writes a zero byte as `@`.
#[must_use]
pub fn unix_listener(line: &str) -> Option<(u64, UnixName)> {
    // Num RefCount Protocol Flags Type St Inode Path; the name is the rest of the line
    let mut rest = line.trim_start();
    let mut columns = Vec::new();
    for _ in 0..7 {
        let (column, after) = rest.split_once(' ')?;
        columns.push(column);
        rest = after.trim_start_matches(' ');
    }
    if columns[3] != LISTENS || columns[4] != STREAM || rest.is_empty() {
        return None;
    }
    let name = match rest.strip_prefix('@') {
        Some(name) => {
            let text = name.trim_end_matches('@');
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(name.len(), 0);
            UnixName::Abstract(bytes)
        }
        None => UnixName::Path(PathBuf::from(crate::listeners::fetch::lasting(rest))),
    };
    Some((columns[6].parse().ok()?, name))
}

/// An inode, with the user that opened it. The line above the table has no numbers.
#[must_use]
pub fn udp_user(line: &str) -> Option<(u64, u32)> {
    let columns: Vec<_> = line.split_whitespace().collect();
    Some((columns.get(9)?.parse().ok()?, columns.get(7)?.parse().ok()?))
}

pub fn unix_listeners() -> io::Result<BTreeMap<u64, UnixName>> {
    let mut found = BTreeMap::new();
    // What is no text is a name that we would not find again either.
    each_line("unix", |line| found.extend(unix_listener(line)))?;
    Ok(found)
}

/// Any process may fill these tables: they are never in memory as a whole.
fn each_line(table: &str, mut look: impl FnMut(&str)) -> io::Result<()> {
    let file = BufReader::new(File::open(format!("/proc/thread-self/net/{table}"))?);
    for line in file.split(b'\n') {
        look(&String::from_utf8_lossy(&line?));
    }
    Ok(())
}

/// IPv4 and IPv6; a kernel without one of them has none of its sockets.
#[must_use]
pub fn udp_users() -> BTreeMap<u64, u32> {
    let mut found = BTreeMap::new();
    for table in ["udp", "udp6"] {
        let _ = each_line(table, |line| found.extend(udp_user(line)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_listen_are_listed_by_the_name_that_lasts() {
        let table = "\
Num       RefCount Protocol Flags    Type St Inode Path
00000000219eac38: 00000002 00000000 00010000 0001 01 23073 /run/admin.sock.29.tmp
0000000034731f37: 00000002 00000000 00010000 0001 01    77 /run/with a blank
00000000ae0d8575: 00000003 00000000 00000000 0001 03 23069
00000000bb2b66ea: 00000003 00000000 00010000 0001 01 23068 @stats@@@
00000000bb2b66eb: 00000003 00000000 00010000 0005 01 23070 /run/seqpacket
00000000bb2b66ec: 00000003 00000000 00000000 0002 01 23071 /dev/log
";
        let found: BTreeMap<_, _> = table.lines().filter_map(unix_listener).collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found[&23073], UnixName::Path("/run/admin.sock".into()));
        assert_eq!(found[&77], UnixName::Path("/run/with a blank".into()));
        assert_eq!(found[&23068], UnixName::Abstract(b"stats\0\0\0".to_vec()));
    }

    #[test]
    fn udp_sockets_are_known_by_their_inodes() {
        let table = "\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 2118: 00000000:01BB 00000000:0000 07 00000000:00000000 00:00000000 00000000    99        0 24680 2 0000000000000000 0
";
        assert_eq!(table.lines().filter_map(udp_user).collect::<Vec<_>>(), [(24680, 99)]);
    }

    #[test]
    fn the_kernel_writes_its_tables_so() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener};
        let name = format!("hapilot-test-{}\0\0", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let inode = rustix::fs::fstat(&listener).unwrap().st_ino;
        let found = unix_listeners().unwrap();
        assert_eq!(found.get(&inode), Some(&UnixName::Abstract(name.into_bytes())));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(udp_users().contains_key(&rustix::fs::fstat(&socket).unwrap().st_ino));
    }
}
