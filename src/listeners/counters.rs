//! The kernel's own count of what went wrong at listeners of this network namespace
//! (`/proc/net/netstat`, `TcpExt`). The parsing is pure; the reading is one line.

use std::io;

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Connections that a listener lost for any reason.
    #[serde(rename = "ListenDrops")]
    pub listen_drops: u64,
    /// Those of them that found the accept queue full.
    #[serde(rename = "ListenOverflows")]
    pub listen_overflows: u64,
    /// Half-open and queued connections that found another listener when theirs was closed
    /// (`net.ipv4.tcp_migrate_req`, Linux 5.14), and those that did not.
    #[serde(rename = "TCPMigrateReqSuccess")]
    pub migrated: u64,
    #[serde(rename = "TCPMigrateReqFailure")]
    pub not_migrated: u64,
}

pub fn read() -> io::Result<Counters> {
    std::fs::read_to_string("/proc/thread-self/net/netstat").map(|text| parse(&text))
}

/// A line of names and a line of values, each begun by the name of their group. What this kernel
/// does not count is 0.
fn parse(netstat: &str) -> Counters {
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let names = lines.next().unwrap_or_default().split_whitespace();
    let values = lines.next().unwrap_or_default().split_whitespace();
    let mut counters = Counters::default();
    for (name, value) in names.zip(values) {
        let counter = match name {
            "ListenDrops" => &mut counters.listen_drops,
            "ListenOverflows" => &mut counters.listen_overflows,
            "TCPMigrateReqSuccess" => &mut counters.migrated,
            "TCPMigrateReqFailure" => &mut counters.not_migrated,
            _ => continue,
        };
        *counter = value.parse().unwrap_or_default();
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_their_names() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPMigrateReqSuccess\n\
                    TcpExt: 7 3 4 5\nIpExt: ListenDrops\nIpExt: 9\n";
        let found = Counters { listen_drops: 4, listen_overflows: 3, migrated: 5, not_migrated: 0 };
        assert_eq!(parse(text), found);
        assert_eq!(parse("nonsense"), Counters::default());
    }

    #[test]
    fn this_kernel_counts_listen_drops() {
        let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
        assert!(text.contains(" ListenDrops "));
        assert!(read().is_ok());
    }
}
