//! Promise: how the listeners of a HAProxy without hapilot come over is the best way that the rights
//! allow, and a process that is none of those that may be relieved is explained and left alone.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::process::{Child, Command, Stdio};

use hapilot::handover::takeover::plain;
use hapilot::handover::takeover::predecessor::{Rung, Told};
use hapilot::listeners::compare::Seen;
use hapilot::settings::Predecessors;
use lab::{Host, Plain, haproxy_cfg};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// With the rights of a container that was given no more than these beside root's usual ones.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ptrace {
    Given,
    NotGiven,
}

/// In the host's network namespace, on a thread of its own.
fn within<T: Send>(host: &Host, ptrace: Ptrace, work: impl AsyncFnOnce() -> T + Send) -> T {
    host.namespace.enter(|| {
        if ptrace == Ptrace::NotGiven {
            let mut sets = capabilities(None).unwrap();
            for set in [&mut sets.effective, &mut sets.permitted, &mut sets.inheritable] {
                set.remove(CapabilitySet::SYS_PTRACE | CapabilitySet::SYS_ADMIN);
            }
            set_capabilities(None, sets).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(work()))
    })
}

fn pids(pids: &[u32]) -> Predecessors {
    Predecessors::Pids(pids.iter().map(|pid| i32::try_from(*pid).unwrap()).collect())
}

const CHANGED_USER: &str = "user haproxy\n  group haproxy\n  chroot /var/lib/haproxy";
const EXPOSED: &str = "stats socket /run/admin.sock level admin expose-fd listeners";
const NOT_EXPOSED: &str = "stats socket /run/admin.sock level admin";

fn config(global: &[&str]) -> String {
    let global = global.join("\n  ");
    format!(
        "global\n  {global}\n{}frontend web\n  bind 127.0.0.1:8080\n  bind [::1]:8080\n  \
         bind :8081 interface lo\n  bind abns@web\n  bind /run/web.sock\n  \
         http-request return status 200\n",
        haproxy_cfg::DEFAULTS
    )
}

/// The three TCP listeners and the abstract one; the file of the fifth is in the other container.
const USABLE: usize = 4;

#[derive(Debug)]
struct Borrowed {
    rung: Rung,
    addresses: Vec<String>,
    separate: usize,
    notes: String,
}

fn borrow(host: &Host, old: &Plain, ptrace: Ptrace) -> Borrowed {
    let wanted = pids(&[old.pid()]);
    within(host, ptrace, async || {
        let (mut found, problems) = plain::find(&wanted, &[]);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(found.len(), 1);
        let listeners = found[0].listeners().await;
        let mut addresses: Vec<_> = listeners.iter().map(|l| l.address.clone()).collect();
        addresses.sort();
        let notes = found[0].notes().join("; ");
        let ours = |address: &str| Seen { address: address.to_owned(), inode: 0 };
        let ours = ["127.0.0.1:8080", "[::1]:8080"].map(ours);
        let separate = found[0].separate().beside(&ours).len();
        Borrowed { rung: found[0].rung(), addresses, separate, notes }
    })
}

/// Its global section, how it is started, with which right of ours, and what comes of it.
fn borrowed_by(global: &[&str], arguments: &str, ptrace: Ptrace, rung: Rung) -> Borrowed {
    let host = Host::alone();
    let old = Plain::start(&host, "old", arguments, &config(global));
    let borrowed = borrow(&host, &old, ptrace);
    assert_eq!(borrowed.rung, rung, "{borrowed:?}");
    if rung == Rung::Separate {
        assert!(borrowed.addresses.is_empty(), "{borrowed:?}");
        assert_eq!(borrowed.separate, 2, "{borrowed:?}");
    } else {
        assert_eq!(borrowed.addresses.len(), USABLE, "{borrowed:?}");
        assert!(borrowed.addresses.contains(&"0.0.0.0:8081 interface lo".to_owned()));
        assert_eq!(borrowed.separate, 0, "{borrowed:?}");
    }
    assert_eq!(borrowed.notes.is_empty(), rung == Rung::StatsSocket, "{borrowed:?}");
    borrowed
}

#[test]
fn a_stats_socket_hands_the_listeners_over() {
    borrowed_by(&[EXPOSED], "-db", Ptrace::NotGiven, Rung::StatsSocket);
}

#[test]
fn with_the_right_also_that_of_another_user_in_a_chroot() {
    borrowed_by(&[EXPOSED, CHANGED_USER], "-db", Ptrace::Given, Rung::StatsSocket);
}

#[test]
fn a_master_of_our_user_leads_to_the_stats_socket_of_its_worker() {
    borrowed_by(&[EXPOSED, CHANGED_USER], "-W -db", Ptrace::NotGiven, Rung::StatsSocket);
}

#[test]
fn an_abstract_stats_socket_needs_no_right() {
    let abns = "stats socket abns@stats level admin expose-fd listeners";
    let host = Host::alone();
    let old = Plain::start(&host, "old", "-db", &config(&[abns, CHANGED_USER]));
    let borrowed = borrow(&host, &old, Ptrace::NotGiven);
    assert_eq!(borrowed.rung, Rung::StatsSocket, "{borrowed:?}");
    // It could not be bound again while the old one is there, so it comes along.
    assert!(borrowed.addresses.iter().any(|a| a.starts_with("abns@stats")), "{borrowed:?}");
}

#[test]
fn without_a_stats_socket_they_are_taken_out_of_its_table() {
    let got = borrowed_by(&[CHANGED_USER], "-db", Ptrace::Given, Rung::PidfdGetfd);
    assert!(got.notes.contains("stats socket PATH expose-fd listeners"), "{got:?}");
    borrowed_by(&[CHANGED_USER], "-W -db -S /run/master.sock", Ptrace::Given, Rung::PidfdGetfd);
}

#[test]
fn a_stats_socket_that_hands_nothing_over_is_named() {
    let got = borrowed_by(&[NOT_EXPOSED], "-db", Ptrace::Given, Rung::PidfdGetfd);
    assert!(got.notes.contains("/run/admin.sock"), "{got:?}");
}

#[test]
fn without_the_right_the_sockets_stay_its_own_and_the_reason_is_said() {
    let got = borrowed_by(&[EXPOSED, CHANGED_USER], "-db", Ptrace::NotGiven, Rung::Separate);
    assert!(got.notes.contains("--cap-add=SYS_PTRACE"), "{got:?}");
}

/// Ended with the value.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn whoever_is_no_haproxy_of_ours_is_explained_in_one_line_each() {
    let (host, elsewhere) = (Host::alone(), Host::alone());
    let other = Plain::start(&elsewhere, "other", "-db", &config(&[]));
    let shell = Command::new("sh").args(["-c", "read end"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut shell = Ended(shell);
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let thread = rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned();
    let asked = pids(&[shell.0.id(), 1, dead.id(), other.pid(), thread, std::process::id()]);
    let problems = within(&host, Ptrace::Given, async || {
        let (found, problems) = plain::find(&asked, &[]);
        assert!(found.is_empty(), "{found:?}");
        problems
    });
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let about = |pid: u32, word: &str| {
        let of_it = |line: &&String| line.contains(&format!(" process {pid} "));
        let line = lines.iter().find(of_it).unwrap_or_else(|| panic!("{pid} in {lines:#?}"));
        assert!(line.contains(word), "{word:?} in {line:?}");
    };
    assert_eq!(lines.len(), 6, "{lines:#?}");
    about(shell.0.id(), "not HAProxy");
    about(1, "not HAProxy");
    about(other.pid(), "another network namespace");
    about(thread, "is a thread");
    about(std::process::id(), "itself");
    assert!(shell.0.try_wait().unwrap().is_none());
}

#[test]
fn auto_finds_every_haproxy_of_this_network_but_those_of_a_hapilot() {
    let (host, elsewhere) = (Host::alone(), Host::alone());
    let _other = Plain::start(&elsewhere, "other", "-db", &config(&[]));
    let masters = Plain::start(&host, "masters", "-W -db", &config(&[]));
    let single = Plain::start(&host, "single", "-db", &config(&[]).replace("web", "web2"));
    let of_hapilot =
        haproxy_cfg::frontend("web", &["127.0.0.1:9090"], "v1", "none") + "backend none\n";
    let of_hapilot = haproxy_cfg::DEFAULTS.to_owned() + &of_hapilot;
    let of_hapilot = host.container("hapilot").config(&host.write("h.cfg", &of_hapilot));
    let hapilot = of_hapilot.env("HAPROXY_TRANSPARENT", "off").start().serving();
    let theirs: Vec<_> = hapilot.processes().iter().map(|pid| pid.cast_signed()).collect();
    let names = |wanted: Predecessors, ptrace| {
        within(&host, ptrace, async || {
            let (found, problems) = plain::find(&wanted, &theirs);
            assert!(problems.is_empty(), "{problems:?}");
            found.iter().map(plain::Plain::name).collect::<Vec<_>>()
        })
    };
    let (master, worker) = (masters.pid(), masters.worker());
    let both = [format!("HAProxy {master} (with {worker})"), format!("HAProxy {}", single.pid())];
    for ptrace in [Ptrace::Given, Ptrace::NotGiven] {
        assert_eq!(names(Predecessors::Auto, ptrace), both);
        assert_eq!(names(pids(&[worker]), ptrace), both[..1]);
        assert_eq!(names(pids(&[worker, master, single.pid()]), ptrace), both);
    }
}

/// From its first moment on: what it listens on is its own, and it may share that with anybody.
const NOBODY: [&str; 6] = [
    "setpriv",
    "--reuid=65534",
    "--clear-groups",
    "--inh-caps=+dac_override",
    "--ambient-caps=+dac_override",
    "--",
];

#[test]
fn auto_leaves_that_of_another_user_alone_until_it_is_named() {
    let host = Host::alone();
    let config = |bind: &str| {
        haproxy_cfg::DEFAULTS.to_owned()
            + &haproxy_cfg::frontend("web", &[bind], "v1", "none")
            + "backend none\n"
    };
    let mut theirs = Plain::wrapped(&host, "theirs", &NOBODY, "-db", &config("127.0.0.1:9090"));
    // This one became another user's after it had opened what it listens on.
    let changed = format!("global\n  user haproxy\n{}", config("127.0.0.1:9091"));
    let ours = Plain::start(&host, "ours", "-db", &changed);
    for ptrace in [Ptrace::Given, Ptrace::NotGiven] {
        within(&host, ptrace, async || {
            let (found, problems) = plain::find(&Predecessors::Auto, &[]);
            let names: Vec<_> = found.iter().map(plain::Plain::name).collect();
            assert_eq!(names, [format!("HAProxy {}", ours.pid())], "{ptrace:?}");
            let said = format!("process {} calls itself HAProxy, and user 65534", theirs.pid());
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].to_string().contains(&said), "{problems:?}");
            let (found, problems) = plain::find(&pids(&[theirs.pid()]), &[]);
            assert_eq!((found.len(), problems.len()), (1, 0), "{problems:?}");
        });
    }
    assert!(theirs.is_running());
}

/// Nothing but TCP listeners was looked at once.
#[test]
fn auto_leaves_that_of_another_user_alone_whatever_it_listens_on() {
    let host = Host::alone();
    let path = host.path("web.sock");
    let of = |frontend: &str| format!("{}{frontend}", haproxy_cfg::DEFAULTS);
    let unix = haproxy_cfg::frontend("web", &[path.to_str().unwrap()], "v1", "none");
    let r#abstract = haproxy_cfg::frontend("web", &["abns@web"], "v1", "none");
    let udp = "log-forward in\n  dgram-bind 127.0.0.1:5514\n  log 127.0.0.1:5515 local0\n";
    for (name, config, ptraces) in [
        ("unix", unix + "backend none\n", &[Ptrace::Given, Ptrace::NotGiven][..]),
        ("abstract", r#abstract + "backend none\n", &[Ptrace::Given, Ptrace::NotGiven]),
        // Of UDP sockets it must be seen whose they are.
        ("udp", udp.to_owned(), &[Ptrace::Given]),
    ] {
        let mut theirs = Plain::wrapped(&host, name, &NOBODY, "-db", &of(&config));
        lab::until(lab::SHORT, "it listens on UDP", || {
            let bound = host.namespace.run("ss -Huln sport = :5514");
            (name != "udp" || !bound.is_empty()).then_some(())
        });
        for ptrace in ptraces {
            within(&host, *ptrace, async || {
                let (found, problems) = plain::find(&Predecessors::Auto, &[]);
                assert!(found.is_empty(), "{name}, {ptrace:?}: {found:?}");
                let said = format!("process {} calls itself HAProxy", theirs.pid());
                let told = problems.iter().any(|problem| problem.to_string().contains(&said));
                assert!(told, "{name}, {ptrace:?}: {problems:?}");
            });
        }
        assert!(theirs.is_running());
    }
}

/// Somebody may keep a duplicate of it, and our clients would be his.
#[test]
fn a_listener_that_another_user_opened_does_not_come_over_unless_its_haproxy_is_named() {
    let host = Host::alone();
    let socket = host.path("theirs.sock");
    let exposed = format!("stats socket {} level admin expose-fd listeners", socket.display());
    let config = |global: &str, binds: &[&str]| {
        let frontend = haproxy_cfg::frontend("web", binds, "v1", "none");
        format!("global\n  {global}\n{}{frontend}backend none\n", haproxy_cfg::DEFAULTS)
    };
    let theirs = config(&exposed, &["127.0.0.1:9090"]);
    let theirs = Plain::wrapped(&host, "theirs", &NOBODY, "-db", &theirs);
    let abns = "stats socket abns@stats level admin expose-fd listeners";
    let both = config(&format!("{abns}\n  {CHANGED_USER}"), &["127.0.0.1:8080", "127.0.0.1:9090"]);
    let old = Plain::start(&host, "old", &format!("-db -x {}", socket.display()), &both);
    drop(theirs);
    for (wanted, comes) in [(Predecessors::Auto, false), (pids(&[old.pid()]), true)] {
        within(&host, Ptrace::NotGiven, async || {
            let (mut found, problems) = plain::find(&wanted, &[]);
            assert_eq!((found.len(), problems.len()), (1, 0), "{problems:?}");
            let listeners = found[0].listeners().await;
            let has = |address: &str| listeners.iter().any(|l| l.address == address);
            let notes = found[0].notes().join("; ");
            assert!(has("127.0.0.1:8080"), "{wanted:?}: {notes}");
            assert_eq!(has("127.0.0.1:9090"), comes, "{wanted:?}: {notes}");
            assert_eq!(notes.contains("neither root nor our user opened"), !comes, "{notes}");
        });
    }
}

#[test]
fn one_that_drains_already_is_told_apart() {
    let host = Host::alone();
    let old = Plain::start(&host, "old", "-db", &config(&[EXPOSED]));
    // A session of its own keeps it.
    let _session = host.namespace.enter(|| std::net::TcpStream::connect("127.0.0.1:8080").unwrap());
    lab::until(lab::SHORT, "the session is accepted", || {
        host.namespace.run("ss -Htnp sport = :8080").contains("haproxy").then_some(())
    });
    old.signal(nix::sys::signal::Signal::SIGUSR1);
    lab::until(lab::SHORT, "it drains", || host.namespace.run("ss -Htln").is_empty().then_some(()));
    within(&host, Ptrace::Given, async || {
        let (found, problems) = plain::find(&pids(&[old.pid()]), &[]);
        assert!(found.is_empty());
        assert!(problems[0].to_string().contains("draining already"), "{problems:?}");
    });
}

#[test]
fn who_is_told_to_let_go_is_watched_to_the_end() {
    let host = Host::alone();
    let mut old = Plain::start(&host, "old", "-W -db", &config(&[CHANGED_USER]));
    let session = host.namespace.enter(|| std::net::TcpStream::connect("127.0.0.1:8080").unwrap());
    lab::until(lab::SHORT, "the session is accepted", || {
        host.namespace.run("ss -Htnp sport = :8080").contains("haproxy").then_some(())
    });
    let wanted = pids(&[old.pid()]);
    let mut session = Some(session);
    let told = within(&host, Ptrace::Given, async || {
        let (mut found, _) = plain::find(&wanted, &[]);
        let mut plain = found.remove(0);
        let kept = plain.listeners().await;
        assert_eq!(kept.len(), USABLE);
        plain.count_sessions();
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        tokio::task::spawn_local(plain.relieve(move |told| send.send(told).unwrap()));
        let mut told = vec![receive.recv().await.unwrap()];
        drop(session.take());
        told.extend(receive.recv().await);
        told
    });
    assert_eq!(told, [Told::Draining { sessions: Some(1) }, Told::Gone { status: None }]);
    old.wait_gone();
}
