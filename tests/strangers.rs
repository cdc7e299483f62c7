//! Promise: whoever talks to hapilot's sockets and is no hapilot and no HAProxy disturbs nobody.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lab::haproxy_cfg::proxy;
use lab::versions::{end, web};
use lab::{HalfOpen, HostState, Instance, Lab, Load, SHORT, get};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags, set_capabilities};

const SOCKETS: [&str; 2] = ["keeper.sock", "control.sock"];

fn start() -> (Lab, Instance, HostState) {
    Lab::serving(&proxy(":80", "v1"), &[])
}

/// Connections that say this and then nothing more, and stay.
fn strangers(path: &Path, words: &str, count: usize) -> Vec<UnixStream> {
    let stranger = |_| {
        let mut stream = UnixStream::connect(path).unwrap();
        // It may have been shown out already.
        let _ = stream.write_all(words.as_bytes());
        stream
    };
    (0..count).map(stranger).collect()
}

/// Taken, with the listeners from the keeper and not a word of warning.
fn assert_reloads_as_ever(hapilot: &mut Instance) {
    let old = hapilot.current();
    let begun = Instant::now();
    hapilot.reload();
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
    hapilot.await_successor(&old);
    let receipt = hapilot.status()["last_reload"].clone();
    assert_eq!(receipt["strategy"], "shared", "{receipt}");
    // What is told of this configuration at each reload has nothing to do with strangers.
    let warnings = receipt["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap());
    let mut strange = warnings.filter(|warning| !warning.contains("idle-close-on-response"));
    assert_eq!(strange.next(), None, "{receipt}");
    assert_eq!(receipt["listeners"]["not_shared"], serde_json::json!([]), "{receipt}");
}

#[test]
fn garbage_half_a_line_and_silence_disturb_no_reload() {
    let (lab, mut hapilot, before) = start();
    let load = Load::start(&lab.client, &web());
    for words in ["", "\0\0\0\0", "_getsoc", "{\"command\":", "GET / HTTP/1.1\r\n\r\n", "\n"] {
        let paths = SOCKETS.map(|name| hapilot.run_directory().join(name));
        let _they = paths.map(|path| strangers(&path, words, 3));
        let half_open = HalfOpen::connect(&lab.client, 80, 5);
        assert_reloads_as_ever(&mut hapilot);
        for outcome in half_open.finish() {
            assert_eq!(outcome.body(), "10.2.0.1");
        }
    }
    let tally = load.finish();
    assert_eq!(tally.failed, [], "{} were answered", tally.answered);
    end(&lab, hapilot, &before);
}

#[test]
fn ten_thousand_connections_disturb_no_reload_and_take_few_descriptors() {
    const MANY: usize = 10_000;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (lab, mut hapilot, before) = start();
    let most_at_once = usize::try_from(most / 2).unwrap_or(MANY);
    let at_rest = lab::process::descriptors(hapilot.pid());
    for name in SOCKETS {
        let path: PathBuf = hapilot.run_directory().join(name);
        let (over, flooded) = (Arc::new(AtomicBool::new(false)), path.clone());
        let go_on = Arc::clone(&over);
        let flood = thread::spawn(move || {
            // They stay as long as the test has descriptors for them.
            let (mut they, mut count) = (Vec::new(), 0);
            while count < MANY || !go_on.load(Ordering::SeqCst) {
                if they.len() >= most_at_once {
                    they.drain(..10);
                }
                they.extend(strangers(&flooded, "", 10));
                count += 10;
            }
            they
        });
        assert_reloads_as_ever(&mut hapilot);
        over.store(true, Ordering::SeqCst);
        let they = flood.join().unwrap();
        assert!(!they.is_empty());
        let taken = lab::process::descriptors(hapilot.pid()) - at_rest;
        assert!(taken < 250, "{name}: {taken} descriptors");
        assert_reloads_as_ever(&mut hapilot);
        assert_eq!(get(&lab.client, &web(), "/").body(), "10.2.0.1");
    }
    end(&lab, hapilot, &before);
}

/// What another user reads from that socket, were it open to all.
fn as_nobody(directory: &Path, name: &'static str, words: &'static str) -> String {
    let directory = directory.to_owned();
    let nobody = move || {
        // a working directory of its own: the way to it is root's only
        lab::namespace::unshare(UnshareFlags::FS);
        std::env::set_current_dir(&directory).unwrap();
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
        let mut stream = UnixStream::connect(name).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let _ = stream.write_all(words.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    thread::spawn(nobody).join().unwrap()
}

#[test]
fn another_user_gets_nothing_even_if_the_sockets_are_open_to_all() {
    let (lab, mut hapilot, before) = start();
    let run = hapilot.run_directory();
    assert_eq!(fs::metadata(&run).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(&run, fs::Permissions::from_mode(0o755)).unwrap();
    for name in SOCKETS {
        fs::set_permissions(run.join(name), fs::Permissions::from_mode(0o666)).unwrap();
    }
    assert_eq!(as_nobody(&run, "keeper.sock", "_getsocks\n"), "");
    let answer = as_nobody(&run, "control.sock", "{\"command\":\"stop\"}\n");
    assert!(answer.contains("not user 65534"), "{answer}");
    assert_reloads_as_ever(&mut hapilot);
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.2.0.1");
    end(&lab, hapilot, &before);
}

/// What somebody may do with a name that hapilots take.
#[derive(Clone, Copy, Debug)]
enum Squat {
    NotListening,
    Full,
    HangingUp,
    Silent,
}

/// As whom: none of them has a capability.
#[derive(Clone, Copy, Debug)]
enum User {
    Nobody,
    /// As a container's that was given no capability.
    Root,
}

impl User {
    fn act(self) {
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        match self {
            Self::Nobody => {
                rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            }
            Self::Root => set_capabilities(None, none).unwrap(),
        }
    }
}

impl Squat {
    /// Any process can: the name is in no directory that could be closed to it.
    fn by(self, user: User, lab: &Lab, name: &str) -> Squatter {
        let name = name.to_owned();
        let (over, go_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let (taken, stay) = (Arc::clone(&over), Arc::clone(&go_on));
        let thread = lab.balancer.namespace.spawn(move || {
            user.act();
            let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let new = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
            let (socket, mut guests) = (new(), Vec::new());
            rustix::net::bind(&socket, &address).unwrap();
            match self {
                Self::NotListening => {}
                Self::Full => {
                    rustix::net::listen(&socket, 0).unwrap();
                    guests.push(new());
                    while rustix::net::connect(guests.last().unwrap(), &address).is_ok() {
                        guests.push(new());
                    }
                }
                Self::HangingUp | Self::Silent => rustix::net::listen(&socket, 100).unwrap(),
            }
            taken.store(true, Ordering::SeqCst);
            while stay.load(Ordering::SeqCst) {
                if matches!(self, Self::HangingUp) {
                    let _ = rustix::net::accept(&socket);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        lab::until(SHORT, "the name is taken", || over.load(Ordering::SeqCst).then_some(()));
        Squatter { go_on, thread: Some(thread) }
    }
}

struct Squatter {
    go_on: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Squatter {
    fn drop(&mut self) {
        self.go_on.store(false, Ordering::SeqCst);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

#[test]
fn nobody_else_can_keep_a_hapilot_from_starting_or_stopping() {
    for (squat, user) in [
        (Squat::NotListening, User::Nobody),
        (Squat::Full, User::Nobody),
        (Squat::HangingUp, User::Nobody),
        (Squat::Silent, User::Nobody),
        (Squat::HangingUp, User::Root),
        (Squat::Silent, User::Root),
    ] {
        let lab = Lab::new();
        let before = lab.balancer.state();
        let squatter = squat.by(user, &lab, "hapilot-setup");
        let config = lab.balancer.write("haproxy.cfg", &proxy(":80", "v1"));
        let begun = Instant::now();
        let mut hapilot = lab.balancer.container("hapilot").config(&config).start().serving();
        assert!(begun.elapsed() < SHORT, "{squat:?}: {:?}", begun.elapsed());
        let who = match (squat, user) {
            (Squat::NotListening | Squat::Full, _) => "a process that lets nobody connect",
            (_, User::Nobody) => "of user 65534",
            (_, User::Root) => "of user 0 without CAP_NET_ADMIN",
        };
        let told = hapilot.log.await_line("holds @hapilot-setup");
        lab.balancer.container("sweep").args(&["sweep"]).finish().assert_code(0);
        assert!(told.contains(who), "{squat:?}: {told}");
        assert_eq!(get(&lab.client, &web(), "/").body(), "10.2.0.1");
        hapilot.stop();
        drop(squatter);
        lab.balancer.state().assert_same_as(&before);
        assert!(begun.elapsed() < 2 * SHORT, "{squat:?}: {:?}", begun.elapsed());
    }
}

/// Killed, and from then on somebody else has the name by which it was known to live.
fn kill_and_squat(squat: Squat, user: User) -> (Lab, HostState, String, Squatter) {
    let (lab, mut hapilot, before) = start();
    let name = format!("hapilot/{}", hapilot.status()["instance"].as_str().unwrap());
    hapilot.signal(Signal::SIGKILL);
    hapilot.wait(SHORT);
    drop(hapilot);
    let squatter = squat.by(user, &lab, &name);
    (lab, before, name, squatter)
}

#[test]
fn who_takes_the_name_of_a_dead_one_is_named_and_keeps_nothing_of_it_on_the_host() {
    for (squat, user, who) in [
        (Squat::NotListening, User::Nobody, "a process that lets nobody connect"),
        (Squat::HangingUp, User::Nobody, "of user 65534"),
        (Squat::Silent, User::Nobody, "of user 65534"),
        (Squat::Silent, User::Root, "of user 0 without CAP_NET_ADMIN"),
        (Squat::Full, User::Nobody, "a process that lets nobody connect"),
        (Squat::Full, User::Root, "a process that lets nobody connect"),
    ] {
        let (lab, before, name, squatter) = kill_and_squat(squat, user);
        let told = format!("has the name @{name}, of a dead hapilot");
        let begun = Instant::now();
        let dry = lab.balancer.container("dry").args(&["sweep", "--dry-run"]).finish();
        dry.assert_code(0).assert_says(&["HAPILOT-"]);
        let config = lab.balancer.path("haproxy.cfg");
        let mut next = lab.balancer.container("next").config(&config).start().serving();
        assert!(begun.elapsed() < SHORT, "{squat:?}: {:?}", begun.elapsed());
        let line = next.log.await_line(&told);
        assert!(line.contains(who), "{squat:?}: {line}");
        assert_eq!(next.log.count("removed what a dead instance had left"), 1);
        next.stop();
        drop(squatter);
        lab.balancer.state().assert_same_as(&before);
    }
}

/// It hangs, and strangers fill its queue.
#[test]
fn a_living_one_that_cannot_say_a_word_keeps_its_rules() {
    let (lab, hapilot, before) = start();
    let name = format!("hapilot/{}", hapilot.status()["instance"].as_str().unwrap());
    hapilot.signal(Signal::SIGSTOP);
    let crowd = lab.balancer.namespace.enter(|| {
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let new = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let mut crowd = vec![new()];
        while rustix::net::connect(crowd.last().unwrap(), &address).is_ok() {
            crowd.push(new());
        }
        crowd
    });
    let serving = lab.balancer.state();
    let swept = lab.balancer.container("sweep").args(&["sweep"]).finish();
    swept.assert_code(0);
    assert!(!swept.text.contains("taken for"), "{}", swept.text);
    lab.balancer.state().assert_same_as(&serving);
    drop(crowd);
    hapilot.signal(Signal::SIGCONT);
    end(&lab, hapilot, &before);
}

/// A root of another container, with or without the right, that has names as hapilots have them.
fn hostile_hapilots(lab: &Lab, round: usize, answer: &'static str) -> Vec<thread::JoinHandle<()>> {
    let serve = |number: u32| {
        lab.balancer.namespace.spawn(move || {
            // A child that another test is just forking may hold the last round's.
            let name = format!("hapilot/{round:04x}{number:04x}");
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
            let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
            // Until a connection comes that says so.
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut line = String::new();
                let _ = BufReader::new(&stream).read_line(&mut line);
                if line == "end\n" {
                    return;
                }
                for _ in 0..10_000 {
                    if writeln!(&stream, "{answer}").is_err() {
                        break;
                    }
                }
            }
        })
    };
    let threads = (1..=40).map(serve).collect();
    lab::until(SHORT, "the names are taken", || {
        let names = lab.balancer.namespace.run("cat /proc/thread-self/net/unix");
        (names.matches(&format!("@hapilot/{round:04x}")).count() >= 40).then_some(())
    });
    threads
}

fn most_memory_kib(hapilot: &Instance) -> u64 {
    let most = lab::process::field(hapilot.pid(), "VmHWM").unwrap();
    most.trim_end_matches(" kB").parse().unwrap()
}

/// What more it may have in memory than without strangers: a debug build alone has half of what
/// is promised for a release.
const MOST_MORE_KIB: u64 = 6 * 1024;

#[test]
fn ten_thousand_lines_of_each_that_calls_itself_a_hapilot_take_no_memory() {
    let lab = Lab::new();
    let config = lab.balancer.write("haproxy.cfg", &proxy(":80", "v1"));
    let spec = lab.balancer.container("hapilot").config(&config).env("HAPROXY_PIDS", "auto");
    let mut alone = spec.clone().start().serving();
    let memory = most_memory_kib(&alone);
    alone.stop();
    let long = Box::leak(format!("{{\"answer\":\"{}", "x".repeat(2000)).into_boxed_str());
    let answers = ["", "\0\0\0\0", &*long, r#"{"answer":"welcome"}"#];
    for (round, answer) in answers.into_iter().enumerate() {
        let strangers =
            hostile_hapilots(&lab, round, Box::leak(answer.to_owned().into_boxed_str()));
        let begun = Instant::now();
        let mut hapilot = spec.clone().start().serving();
        assert!(begun.elapsed() < 3 * SHORT, "{:?}", begun.elapsed());
        let more = most_memory_kib(&hapilot).saturating_sub(memory);
        assert!(more < MOST_MORE_KIB, "{answer:?}: {more} KiB");
        assert_eq!(get(&lab.client, &web(), "/").body(), "10.2.0.1");
        hapilot.stop();
        lab.balancer.namespace.enter(|| {
            for number in 1..=40 {
                let name = format!("hapilot/{round:04x}{number:04x}");
                let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
                let mut end = UnixStream::connect_addr(&address).unwrap();
                end.write_all(b"end\n").unwrap();
            }
        });
        for stranger in strangers {
            stranger.join().unwrap();
        }
    }
}

/// Its executable is called so, and root runs it: `auto` may believe it.
const ENDLESS: &str = "use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE';\
    my $door = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 9) or die;\
    while (my $peer = $door->accept) { while (print $peer 'Name: HAProxy', \"\\n\" x 1000) {} }";

#[test]
fn what_calls_itself_haproxy_and_answers_without_end_takes_no_memory() {
    let lab = Lab::new();
    let config = lab.balancer.write("haproxy.cfg", &proxy(":80", "v1"));
    let spec = lab.balancer.container("hapilot").config(&config).pid(lab::Pid::OfTheHost);
    let spec = spec.env("HAPROXY_PIDS", "auto");
    let mut alone = spec.clone().start().serving();
    let memory = most_memory_kib(&alone);
    alone.stop();
    let program = lab.balancer.path("haproxy");
    fs::copy("/usr/bin/perl", &program).unwrap();
    let (named, path) = (program.clone(), lab.balancer.path("stats.sock"));
    let socket = path.to_str().unwrap().to_owned();
    let mut endless = lab.balancer.namespace.enter(|| {
        let mut command = std::process::Command::new(&named);
        command.args(["-e", ENDLESS, &socket]).spawn().unwrap()
    });
    lab::until(SHORT, "it listens", || path.exists().then_some(()));
    let mut hapilot = spec.start().serving();
    let more = most_memory_kib(&hapilot).saturating_sub(memory);
    assert!(more < MOST_MORE_KIB, "{more} KiB");
    hapilot.log.await_line("its answer does not end");
    assert_eq!(get(&lab.client, &web(), "/").body(), "10.2.0.1");
    hapilot.stop();
    let _ = endless.kill();
    endless.wait().unwrap();
}

#[test]
fn a_link_that_haproxys_user_made_beside_its_saved_state_leads_nowhere() {
    let lab = Lab::new();
    let (theirs, victim) = (lab.balancer.path("theirs"), lab.balancer.path("victim"));
    fs::create_dir(&theirs).unwrap();
    fs::write(&victim, "precious").unwrap();
    let state = theirs.join("state");
    for name in ["state", "state.new"] {
        std::os::unix::fs::symlink(&victim, theirs.join(name)).unwrap();
    }
    std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).unwrap();
    let global = format!("global\n  server-state-file {}\n", state.display());
    let load = "defaults\n  load-server-state-from-file global\n";
    let config = proxy(":80", "v1").replacen("defaults\n", &format!("{global}{load}"), 1);
    let config = lab.balancer.write("haproxy.cfg", &config);
    let mut hapilot = lab.balancer.container("hapilot").config(&config).start().serving();
    hapilot.reload();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    let saved = fs::symlink_metadata(&state).unwrap();
    assert!(saved.is_file() && saved.len() > 0, "{saved:?}");
    // Nothing but the state, and what was put beside it.
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 2);
    hapilot.stop();
}
