//! Promise: no answer of HAProxy's costs hapilot more memory than it has anyway, however long it is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lab::haproxy_cfg::proxy;
use lab::versions::{end, via};
use lab::{Finished, Generation, Instance, Lab, SHORT, until};

/// A build for tests has more in memory from the begin on than one that is shipped, which has 6 MiB.
const MOST_MORE_KIB: u64 = 10 * 1024;
/// `hapilot status` is a program of its own.
const STATUS_LIMIT: Duration = Duration::from_millis(1500);

/// The most that it has had in memory so far.
fn most_kib(hapilot: &Instance) -> u64 {
    let most = lab::process::field(hapilot.pid(), "VmHWM").unwrap();
    most.trim_end_matches(" kB").parse().unwrap()
}

fn assert_small(hapilot: &Instance, before: u64, after: &str) {
    let more = most_kib(hapilot) - before;
    assert!(more < MOST_MORE_KIB, "{more} KiB more than {before} after {after}");
}

/// Sits on the runtime socket of a generation, and answers each connection so.
struct Talker {
    socket: PathBuf,
    asked: Arc<AtomicUsize>,
}

type Talk = fn(&str, &mut UnixStream) -> std::io::Result<()>;

impl Talker {
    fn in_place_of(hapilot: &Instance, generation: &Generation, talk: Talk) -> Self {
        let name = format!("generation-{}.sock", generation.id);
        let socket = hapilot.run_directory().join(name);
        let own = socket.with_extension("own");
        let listener = UnixListener::bind(&own).unwrap();
        std::fs::rename(&socket, socket.with_extension("real")).unwrap();
        std::fs::rename(&own, &socket).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let count = Arc::clone(&count);
                std::thread::spawn(move || {
                    let mut line = String::new();
                    BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                    // Until hapilot has enough of it.
                    let _ = talk(line.trim(), &mut stream);
                });
            }
        });
        Self { socket, asked }
    }

    fn leave(&self) {
        std::fs::rename(self.socket.with_extension("real"), &self.socket).unwrap();
    }
}

fn repeat(stream: &mut UnixStream, piece: &str, count: usize) -> std::io::Result<()> {
    let many = piece.repeat(65_536_usize.div_ceil(piece.len()));
    let times = count.div_ceil(many.len() / piece.len());
    (0..times).try_for_each(|_| stream.write_all(many.as_bytes()))
}

const SESSION: &str = "0x55d2baa2fa30: proto=tcpv4 src=10.1.0.2:37534 fe=web be=origin srv=s1 ts=00 \
    epoch=0 age=1h2m calls=4 rate=0 cpu=0 lat=0 rq[f=49c40000h,i=0,an=8000h,rx=,wx=,ax=] \
    rp[f=80008000h,i=0,an=0h,rx=,wx=,ax=] scf=[8,200000h,fd=14,rex=,wex=58s] \
    scb=[8,1h,fd=15,rex=,wex=] exp=58s rc=0 c_exp=\n";

#[test]
fn a_hundred_thousand_sessions_are_counted_and_the_oldest_are_shown() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let hapilot = lab.balancer.serve(&proxy(":80", "v1"));
    let most = most_kib(&hapilot);
    let talk: Talk = |command, stream| match command {
        "show sess" | "set severity-output number;show sess" => repeat(stream, SESSION, 100_000),
        _ => Ok(()),
    };
    let talker = Talker::in_place_of(&hapilot, &hapilot.current(), talk);
    let told = Finished::from(hapilot.command(&["sessions"]));
    assert!(told.status.success(), "{}", told.text);
    let count = told.text.split(": ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(count.parse::<u32>().is_ok_and(|count| count >= 100_000), "{}", told.text);
    assert!(told.text.contains("10.1.0.2:37534"), "{}", told.text);
    let shown = hapilot.command(&["runtime", "show sess"]);
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.lines().filter(|line| line.starts_with("0x55d2baa2fa30: ")).count() >= 100_000);
    assert_small(&hapilot, most, "100,000 sessions");
    talker.leave();
    assert_eq!(via(&lab), "v1");
    end(&lab, hapilot, &before);
}

/// Whatever is asked, by whatever wants to know.
#[test]
fn answers_without_end_cost_neither_memory_nor_the_service() {
    let endless: [(&str, Talk); 5] = [
        ("lines", |_, stream| repeat(stream, &("x".repeat(200) + "\n"), usize::MAX)),
        ("a line", |_, stream| repeat(stream, "x", usize::MAX)),
        ("sessions", |_, stream| repeat(stream, SESSION, usize::MAX)),
        ("servers", |_, stream| {
            let columns = "# be_name srv_name srv_id srv_op_state srv_admin_state srv_uweight \
                           srv_iweight srv_addr\n";
            stream.write_all(columns.as_bytes())?;
            let server = format!("web {} 1 2 8 1 2 10.0.0.1\n", "n".repeat(1500));
            repeat(stream, &server, usize::MAX)
        }),
        ("a table", |_, stream| {
            stream.write_all(b"# table: t, type: ip, size:1048576, used:49000\n")?;
            let entry = format!("0x1: key={} use=0 exp=1000 gpc0=1\n", "k".repeat(1500));
            repeat(stream, &entry, usize::MAX)
        }),
    ];
    let lab = Lab::new();
    let before = lab.balancer.state();
    let mut hapilot = lab.balancer.serve(&proxy(":80", "v1"));
    let most = most_kib(&hapilot);
    for (what, talk) in endless {
        let old = hapilot.current();
        let talker = Talker::in_place_of(&hapilot, &old, talk);
        // The state is saved after each visit at the door.
        let visit = UnixStream::connect(hapilot.run_directory().join("haproxy.sock"));
        visit.unwrap().write_all(b"show info\n").unwrap();
        until(SHORT, "it is asked", || (talker.asked.load(Ordering::SeqCst) > 1).then_some(()));
        let _ = hapilot.command(&["sessions"]);
        let begun = Instant::now();
        hapilot.status();
        assert!(begun.elapsed() < STATUS_LIMIT, "{what}: {:?}", begun.elapsed());
        hapilot.reload();
        hapilot.await_successor(&old);
        assert_small(&hapilot, most, what);
        assert_eq!(via(&lab), "v1", "{what}");
    }
    end(&lab, hapilot, &before);
}
