//! Promise: what HAProxy sends to `/dev/log` is in the container's log, whole, and whoever else has
//! a `/dev/log` keeps it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use lab::client::connect;
use lab::haproxy_cfg::{DEFAULTS, frontend};
use lab::{Host, Instance, LONG, SHORT, get, until};
use nix::sys::signal::Signal;

fn config(global: &str) -> String {
    let page = "  option httplog\n  http-request return status 200\n";
    let front = frontend("web", &["127.0.0.1:80"], "v1", "none");
    format!(
        "global\n  log /dev/log len 4096 local0\n{global}{DEFAULTS}  log global\n{front}{page}backend none\n"
    )
}

fn start(host: &Host, global: &str, format: &str) -> Instance {
    let config = host.write("haproxy.cfg", &config(global));
    let spec = host.container("hapilot").config(&config).own_dev();
    spec.env("HAPROXY_LOG_FORMAT", format).start().serving()
}

fn dev_log(host: &Host) -> PathBuf {
    host.path("run-hapilot/dev/log")
}

fn ask(host: &Host, path: &str) {
    assert!(get(&host.namespace, "127.0.0.1:80", path).is_answered());
}

#[test]
fn a_request_is_in_the_log_with_all_that_haproxy_says_of_it() {
    let host = Host::alone();
    let mut hapilot = start(&host, "", "text");
    let long = format!("/{}", "x".repeat(900));
    ask(&host, &long);
    let line = hapilot.log.await_line("web/<NOSRV>");
    for part in [" INFO ", &*format!("GET {long} HTTP/1.1"), "local0", "info", "haproxy"] {
        assert!(line.contains(part), "{part:?} is missing in {line}");
    }
    hapilot.stop();
    assert!(!dev_log(&host).exists(), "nothing is left");
}

#[test]
fn machines_get_facility_and_severity_as_fields() {
    let host = Host::alone();
    let mut hapilot = start(&host, "", "json");
    ask(&host, "/");
    let line = hapilot.log.await_line("web/<NOSRV>");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let fields = [&value["facility"], &value["severity"], &value["process"], &value["level"]];
    assert_eq!(fields, ["local0", "info", "haproxy", "INFO"], "{line}");
    assert!(value["message"].as_str().unwrap().contains("GET / HTTP/1.1"), "{line}");
    hapilot.stop();
}

/// Every way in which HAProxy lets the address be written.
#[test]
fn the_address_may_come_from_a_variable_and_have_a_prefix() {
    let host = Host::alone();
    for (index, (global, log)) in [
        ("", "log \"${LOG}\" local0"),
        ("", "log ${LOG} local0"),
        ("", "log unix@/dev/log local0"),
        ("  setenv TO /dev/log\n", "log \"uxdg@$TO\" local0"),
        ("  presetenv LOG 127.0.0.1\n.if defined(LOG)\n", "log \"$LOG\" local0\n.endif"),
    ]
    .into_iter()
    .enumerate()
    {
        let text =
            config("").replace("  log /dev/log len 4096 local0", &format!("{global}  {log}"));
        let config = host.write("haproxy.cfg", &text);
        let spec = host.container(&format!("hapilot{index}")).config(&config).own_dev();
        let mut hapilot = spec.env("LOG", "/dev/log").start().serving();
        ask(&host, "/");
        hapilot.log.await_line("web/<NOSRV>");
        hapilot.stop();
    }
}

#[test]
fn a_haproxy_in_a_chroot_finds_it_too() {
    let host = Host::alone();
    let root = host.path("root");
    std::fs::create_dir(&root).unwrap();
    let mut hapilot = start(&host, &format!("  chroot {}\n", root.display()), "text");
    ask(&host, "/inside");
    hapilot.log.await_line("GET /inside HTTP/1.1");
    hapilot.reload();
    ask(&host, "/again");
    hapilot.log.await_line("GET /again HTTP/1.1");
    hapilot.stop();
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0, "nothing is left");
}

#[test]
fn somebody_elses_stays_and_gets_it() {
    let host = Host::alone();
    std::fs::create_dir_all(host.path("run-hapilot/dev")).unwrap();
    let somebody = UnixDatagram::bind(dev_log(&host)).unwrap();
    somebody.set_read_timeout(Some(SHORT)).unwrap();
    let mut hapilot = start(&host, "", "text");
    hapilot.log.await_line("/dev/log is there already");
    ask(&host, "/");
    let mut datagram = [0; 4096];
    until(LONG, "the line comes", || {
        let length = somebody.recv(&mut datagram).unwrap();
        String::from_utf8_lossy(&datagram[..length]).contains("GET / HTTP/1.1").then_some(())
    });
    hapilot.stop();
    assert!(dev_log(&host).exists());
}

#[test]
fn one_that_a_killed_hapilot_left_is_replaced() {
    let host = Host::alone();
    let mut killed = start(&host, "", "text");
    killed.signal(Signal::SIGKILL);
    killed.wait(LONG);
    drop(killed);
    assert!(dev_log(&host).exists());
    let mut hapilot = start(&host, "", "text");
    ask(&host, "/after");
    hapilot.log.await_line("GET /after HTTP/1.1");
    hapilot.stop();
}

/// `max_dgram_qlen` is all that is read after that.
#[test]
fn whoever_writes_on_and_on_does_not_delay_a_stop() {
    let host = Host::alone();
    let mut hapilot = start(&host, "", "text");
    let senders: Vec<_> = (0..2)
        .map(|_| {
            let sender = UnixDatagram::unbound().unwrap();
            sender.connect(dev_log(&host)).unwrap();
            std::thread::spawn(move || while sender.send(b"<134>flood[1]: and on").is_ok() {})
        })
        .collect();
    hapilot.log.await_line("and on");
    hapilot.stop();
    assert!(!dev_log(&host).exists(), "nothing is left");
    for sender in senders {
        sender.join().unwrap();
    }
}

/// What hapilot says that it had to drop.
fn dropped(text: &str) -> usize {
    let notes = text.lines().filter_map(|line| line.strip_prefix("hapilot: ")?.split(' ').next());
    notes.filter_map(|count| count.parse::<usize>().ok()).sum()
}

/// So many requests over one connection, in batches, as fast as they are answered.
fn ask_often(host: &Host, count: usize) {
    const BATCH: usize = 50;
    let request = "GET /often HTTP/1.1\r\nHost: lab\r\n\r\n".repeat(BATCH);
    let mut stream = host.namespace.enter(|| connect("127.0.0.1:80", SHORT).unwrap());
    let (mut bytes, mut answers) = (vec![0; 65536], 0);
    for _ in 0..count / BATCH {
        stream.write_all(request.as_bytes()).unwrap();
        let mut ends = 0;
        while ends < BATCH {
            let length = stream.read(&mut bytes).unwrap();
            assert!(length > 0, "it hung up after {answers} answers");
            // A piece may begin in the middle of a word: an answer has one only.
            ends += bytes[..length].split(|byte| *byte == b'/').count() - 1;
        }
        answers += ends;
    }
    assert_eq!(answers, count);
}

#[test]
fn a_log_that_nobody_reads_holds_up_no_request_and_every_line_is_printed_or_counted() {
    const ROUND: usize = 5_000;
    /// Twice what fits into the memory and the pipe.
    const ENOUGH: usize = 15_000;
    let host = Host::alone();
    let queue = Path::new("/proc/sys/net/unix/max_dgram_qlen");
    host.namespace.enter(|| std::fs::write(queue, "2000").unwrap());
    let mut hapilot = start(&host, "", "text");
    let info = |name: &str| {
        let info = hapilot.runtime(&hapilot.current(), "show info");
        let line = info.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(": ").parse::<usize>().unwrap()
    };
    hapilot.log.hold();
    let mut asked = 0;
    until(LONG, "enough lines come, however slow this machine is", || {
        ask_often(&host, ROUND);
        asked += ROUND;
        (asked - info("DroppedLogs") > ENOUGH).then_some(())
    });
    let metrics = hapilot.status();
    assert_eq!(metrics["state"], "serving", "it answers while its log is stuck");
    hapilot.log.read_on();
    // It is said once all that waited has been read.
    hapilot.log.await_line("log lines dropped");
    ask(&host, "/afterwards");
    hapilot.log.await_line("GET /afterwards HTTP/1.1");
    let never_sent = info("DroppedLogs");
    let text = hapilot.log.text();
    let printed = text.lines().filter(|line| line.contains("GET /often HTTP/1.1")).count();
    let dropped = dropped(&text);
    assert!(dropped > 0, "more than the memory that waits for the reader");
    assert_eq!(printed + dropped + never_sent, asked, "{printed}, {dropped}, {never_sent}");
    hapilot.stop();
}

#[test]
fn over_udp_when_asked_for() {
    let host = Host::alone();
    let text = config("").replace("/dev/log", "\"${HAPROXY_SYSLOG}\"");
    let config = host.write("haproxy.cfg", &text);
    let spec = host.container("hapilot").config(&config).env("HAPROXY_SYSLOG", "127.0.0.1:514");
    let mut hapilot = spec.env("HAPROXY_LOG_FORMAT", "json").start().serving();
    let long = format!("/{}", "x".repeat(900));
    ask(&host, &long);
    let line = hapilot.log.await_line("web/<NOSRV>");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    let fields = [&value["facility"], &value["severity"], &value["process"]];
    assert_eq!(fields, ["local0", "info", "haproxy"], "{line}");
    assert!(value["message"].as_str().unwrap().contains(&format!("GET {long} HTTP/1.1")), "{line}");
    hapilot.reload();
    ask(&host, "/again");
    hapilot.log.await_line("GET /again HTTP/1.1");
    hapilot.stop();
}

#[test]
fn over_udp_every_line_is_printed_or_counted() {
    const LINES: usize = 50_000;
    let host = Host::alone();
    let config = host.write("haproxy.cfg", &config(""));
    let spec = host.container("hapilot").config(&config).env("HAPROXY_SYSLOG", "127.0.0.1:514");
    let mut hapilot = spec.start().serving();
    let sender = host.namespace.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    sender.connect("127.0.0.1:514").unwrap();
    for number in 0..LINES {
        sender.send(format!("<134>Nov 21 01:02:03 flood[1]: {number} end").as_bytes()).unwrap();
    }
    // The kernel tells of what was lost with the next message that was not, so until one comes.
    until(LONG, "the last line is printed", || {
        sender.send(b"<134>that was all").unwrap();
        (hapilot.log.count("that was all") > 0).then_some(())
    });
    let text = hapilot.log.text();
    let lost = text.lines().filter_map(|line| {
        let (count, _) = line.split_once(" syslog messages were lost")?;
        count.rsplit(' ').next()?.parse::<usize>().ok()
    });
    let ours = |line: &&str| line.contains(" end ") && line.contains("flood");
    let printed = text.lines().filter(ours).count();
    let (lost, dropped) = (lost.sum::<usize>(), dropped(&text));
    // Those that said that it was all may have been lost as well.
    let counted = printed + lost + dropped;
    assert!((LINES..LINES + 100).contains(&counted), "{printed} {lost} {dropped}");
    hapilot.stop();
}

#[test]
fn every_line_is_printed_or_counted_and_garbage_harms_nobody() {
    const LINES: usize = 20_000;
    let host = Host::alone();
    let mut hapilot = start(&host, "", "text");
    let sender = UnixDatagram::unbound().unwrap();
    sender.connect(dev_log(&host)).unwrap();
    let garbage: Vec<u8> = (0..65_536_u32).map(|n| u8::try_from(n * 7919 % 256).unwrap()).collect();
    sender.send(&garbage).unwrap();
    for number in 0..LINES {
        // Waits while the queue is full, unlike HAProxy.
        sender
            .send(format!("<131>Nov 21 01:02:03 flood[1]: line {number} end").as_bytes())
            .unwrap();
    }
    sender.send(b"<134>that was all").unwrap();
    hapilot.log.await_line("that was all");
    ask(&host, "/still");
    hapilot.log.await_line("GET /still HTTP/1.1");
    let text = hapilot.log.text();
    let dropped = dropped(&text);
    let printed = text.lines().filter(|line| line.contains(" end ") && line.contains("flood"));
    let printed = printed.count();
    assert_eq!(printed + dropped, LINES, "{dropped} dropped");
    assert_eq!(hapilot.log.count("\u{1b}"), 0);
    hapilot.stop();
}
