//! Promise: at the door for a successor nothing is to be had by a process that could not take the
//! traffic anyway, and that does not know the operator's secret.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]
#![allow(unsafe_code, reason = "rustix marks the change of a thread's rights as unsafe")]

use crate::lab;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lab::haproxy_cfg::proxy;
use lab::network::BALANCER4;
use lab::takeover::{assert_ends_with_0, assert_none_lost, receipt};
use lab::turnstile::Turnstile;
use lab::versions::{via, web};
use lab::{Finished, HostState, Instance, LONG, Lab, Load, SHORT, get};
use nix::sys::signal::Signal;
use rustix::net::sockopt::set_socket_recv_buffer_size;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use serde_json::Value;

const SECRET: &str = "a secret of thirty-two characters";
const KNOCK: &str = r#"{"say":"knock","protocol":2,"nonce":"00","number":1000000000}"#;
const NO_PROOF: &str = r#"{"say":"proof","proof":null}"#;

fn start() -> (Lab, Instance, HostState) {
    Lab::serving(&proxy(":80", "old"), &[])
}

fn door(hapilot: &mut Instance) -> String {
    format!("hapilot/{}", hapilot.status()["instance"].as_str().unwrap())
}

fn connect(name: &str) -> BufReader<UnixStream> {
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let stream = UnixStream::connect_addr(&address).unwrap();
    stream.set_read_timeout(Some(SHORT)).unwrap();
    BufReader::new(stream)
}

fn hear(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = Vec::new();
    // Hung up on, with or without a reset.
    let _ = stream.read_until(b'\n', &mut line);
    String::from_utf8_lossy(&line).into_owned()
}

fn say(stream: &mut BufReader<UnixStream>, line: &str) {
    // It may have hung up.
    let _ = writeln!(stream.get_mut(), "{line}");
}

/// As a container's root has them that was given no capability.
fn without_rights<T: Send>(lab: &Lab, work: impl FnOnce() -> T + Send) -> T {
    lab.balancer.namespace.enter(|| {
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).unwrap();
        work()
    })
}

/// What is answered to so many lines, or until the door is closed.
fn talk(name: &str, lines: &[&str]) -> String {
    let mut stream = connect(name);
    for line in lines {
        say(&mut stream, line);
    }
    let mut answers = String::new();
    loop {
        let answer = hear(&mut stream);
        if answer.is_empty() {
            return answers;
        }
        answers += &answer;
    }
}

const HELLO: &str = r#"{"say":"hello","protocol":2,"instance":"0a","version":"9"}"#;
const RESERVE: &str = r#"{"say":"reserve"}"#;
const RETIRE: &str = r#"{"say":"retire"}"#;

#[test]
fn a_root_without_rights_gets_nothing_whatever_it_says() {
    let (lab, mut old, before) = start();
    let name = door(&mut old);
    without_rights(&lab, || {
        for lines in [
            &[HELLO, RESERVE, RETIRE][..],
            &["_getsocks"],
            &["_runtime\nshow info"],
            &["_runtime\nset server origin/s state maint"],
            &[KNOCK, HELLO, RESERVE, RETIRE],
            &[KNOCK, NO_PROOF, HELLO, RESERVE, RETIRE],
            &[KNOCK, NO_PROOF, "_getsocks"],
            &[KNOCK, NO_PROOF, "_runtime\nshow info"],
            &[KNOCK, r#"{"say":"proof","proof":"00"}"#, RESERVE],
            &[KNOCK, r#"{"say":"proof","proof":"00"}"#, "_runtime\nshow info"],
            &["GET / HTTP/1.1"],
        ] {
            let answers = talk(&name, lines);
            for answer in answers.lines() {
                let answer: Value = serde_json::from_str(answer).unwrap();
                let kind = answer["answer"].as_str().unwrap();
                assert!(["prove", "refused"].contains(&kind), "{lines:?}: {answer}");
                assert!(answer["proof"].is_null(), "{lines:?}: {answer}");
            }
        }
        // As large as it may be without the right.
        let mut stream = connect(&name);
        say(&mut stream, KNOCK);
        let asked: Value = serde_json::from_str(&hear(&mut stream)).unwrap();
        let number = usize::try_from(asked["number"].as_u64().unwrap()).unwrap();
        set_socket_recv_buffer_size(stream.get_ref(), number).unwrap();
        say(&mut stream, NO_PROOF);
        assert!(hear(&mut stream).contains("has not shown CAP_NET_ADMIN"));
    });
    assert_eq!(via(&lab), "old");
    old.reload();
    old.stop();
    lab.balancer.state().assert_same_as(&before);
}

fn successor(lab: &Lab, name: &str, more: &[(&str, &str)], wrapper: &[&str]) -> Instance {
    let config = lab.balancer.write(&format!("{name}.cfg"), &proxy(":80", name));
    let spec = lab.balancer.container(name).config(&config).env("HAPROXY_PIDS", "auto");
    spec.envs(more).wrapped(wrapper).start()
}

const CAPLESS: [&str; 3] = ["setpriv", "--bounding-set", "-net_admin"];

#[test]
fn a_successor_that_cannot_show_it_is_told_so_and_the_old_one_serves_on() {
    for wrapper in [&CAPLESS[..], &["unshare", "--user", "--map-root-user"]] {
        let (lab, mut old, before) = start();
        // Beside the old one: it may not bind port 80 in a user namespace of its own.
        let config = lab.balancer.write("new.cfg", &proxy(":8080", "new"));
        let spec = lab.balancer.container("new").config(&config).env("HAPROXY_PIDS", "auto");
        let mut new = spec.wrapped(wrapper).start();
        let told = new.log.await_line("has not shown CAP_NET_ADMIN over this network");
        assert!(told.contains("HAPROXY_TAKEOVER_SECRET_FILE"), "{told}");
        new.log.await_line("nobody is relieved");
        assert_eq!(via(&lab), "old");
        old.reload();
        new.signal(Signal::SIGTERM);
        new.wait(SHORT);
        old.stop();
        lab.balancer.state().assert_same_as(&before);
    }
}

#[test]
fn a_limit_that_keeps_the_door_from_looking_is_named_and_lets_nobody_in() {
    let (lab, mut old, _) = start();
    let name = door(&mut old);
    let pid = old.pid();
    let free = (0..1024).find(|fd| !std::path::Path::new(&format!("/proc/{pid}/fd/{fd}")).exists());
    // One for the connection, and none for the look.
    let limit = |most: u64| format!("prlimit --pid {pid} --nofile={most}:");
    lab.balancer.namespace.run(&limit(free.unwrap() + 1));
    let mut answers = lab.balancer.namespace.enter(|| talk(&name, &[KNOCK, NO_PROOF, HELLO]));
    assert!(answers.contains("--ulimit nofile="), "{answers}");
    assert!(answers.contains("refused") && !answers.contains("CAP_NET_ADMIN over"), "{answers}");
    lab.balancer.namespace.run(&limit(1024));
    let mut new = successor(&lab, "new", &[], &[]);
    answers.clear();
    receipt(&mut new);
    assert_ends_with_0(&mut old);
    new.stop();
}

/// A name that any process may take says nothing.
#[test]
fn who_takes_the_name_of_a_dead_successor_keeps_no_relieved_one_away() {
    let (lab, mut old, before) = start();
    let mut new = successor(&lab, "new", &[], &[]);
    receipt(&mut new);
    assert_ends_with_0(&mut old);
    let name = door(&mut new);
    new.stop();
    let mute = without_rights(&lab, || {
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap()
    });
    let config = lab.balancer.path("haproxy.cfg");
    let mut again = lab.balancer.container("hapilot").config(&config).start().serving();
    assert_eq!(via(&lab), "old");
    again.stop();
    drop(mute);
    lab.balancer.state().assert_same_as(&before);
}

/// It passes each word on between a successor that has the right and the door.
#[test]
fn what_a_successor_shows_to_a_stranger_is_of_no_use_at_another_door() {
    let (lab, mut old, _) = start();
    let name = door(&mut old);
    // Bound before the successor looks around.
    let (bound, is_bound) = std::sync::mpsc::channel();
    let stranger = lab.balancer.namespace.spawn(move || {
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).unwrap();
        let own = SocketAddr::from_abstract_name("hapilot/00000001").unwrap();
        let listener = UnixListener::bind_addr(&own).unwrap();
        bound.send(()).unwrap();
        let (victim, _) = listener.accept().unwrap();
        victim.set_read_timeout(Some(SHORT)).unwrap();
        let (mut victim, mut door) = (BufReader::new(victim), connect(&name));
        let mut told = String::new();
        for _ in 0..2 {
            say(&mut door, hear(&mut victim).trim_end());
            told = hear(&mut door);
            say(&mut victim, told.trim_end());
        }
        told
    });
    is_bound.recv().unwrap();
    let mut new = successor(&lab, "new", &[], &[]);
    let told = stranger.join().unwrap();
    assert!(told.contains("has not shown CAP_NET_ADMIN"), "{told}");
    // The true one is found all the same.
    receipt(&mut new);
    assert_ends_with_0(&mut old);
    assert_eq!(via(&lab), "new");
    new.stop();
}

const WELCOME: &str = r#"{"answer":"welcome"}"#;
const PROVE: &str = r#"{"answer":"prove","nonce":"00","number":null,"proof":null}"#;
const OLDEST: &str = r#"{"answer":"hello","protocol":2,"instance":"0b","version":"9",
    "haproxy_version":"3.0","state":"serving","started":1,"transparent":true,"lineage":[]}"#;
const TAKEN: &str = r#"{"answer":"refused","reason":"busy","by":"0c"}"#;
const HOLDS: &str = r#"{"answer":"reserved","paused":false}"#;
const LETS_DOWN: &str = r#"{"answer":"refused","reason":"enough"}"#;

/// Another container's root that calls itself a hapilot and has not the right: to whatever it is
/// asked for it says this, and hangs up.
fn impostor(lab: &Lab, name: &'static str, says: &'static [&'static str]) {
    let (bound, is_bound) = std::sync::mpsc::channel();
    let serve = move || {
        let listener =
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        bound.send(()).unwrap();
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            for answer in [PROVE, WELCOME, &OLDEST.replace('\n', "")] {
                if !hear(&mut stream).is_empty() {
                    say(&mut stream, answer);
                }
            }
            if hear(&mut stream).contains("reserve") {
                for answer in says {
                    say(&mut stream, answer);
                }
            }
        }
    };
    let namespace = &lab.balancer.namespace;
    namespace.spawn(move || {
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        set_capabilities(None, none).unwrap();
        serve();
    });
    is_bound.recv().unwrap();
}

/// It could say that it is taken, that it holds still and then not, hang up without end, and that it
/// sets up what this one is forbidden to set up.
#[test]
fn a_stranger_that_calls_itself_a_hapilot_keeps_no_successor_from_serving() {
    let (lab, mut old, _) = start();
    impostor(&lab, "hapilot/00000001", &[TAKEN]);
    impostor(&lab, "hapilot/00000002", &[]);
    impostor(&lab, "hapilot/00000003", &[HOLDS, LETS_DOWN]);
    let load = Load::start(&lab.client, &web());
    let mut new = successor(&lab, "new", &[], &[]);
    for name in ["hapilot 00000001", "hapilot 00000002"] {
        new.log.await_line(&format!("{name} (hapilot 9, HAProxy 3.0) has not shown"));
    }
    receipt(&mut new);
    assert_ends_with_0(&mut old);
    assert_eq!(via(&lab), "new");
    new.reload();
    assert_none_lost(load);
    new.stop();
}

fn secret(lab: &Lab, name: &str, text: &str, mode: u32) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = lab.balancer.write(name, text);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn with_the_secret_of_the_operator_a_take_over_needs_no_right() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let (good, bad) =
        (secret(&lab, "good", SECRET, 0o600), secret(&lab, "bad", &SECRET.repeat(2), 0o600));
    let config = lab.balancer.write("old.cfg", &proxy(":80", "old"));
    let with = |path: &str| [("HAPROXY_TAKEOVER_SECRET_FILE", path.to_owned())];
    let old = lab.balancer.container("old").config(&config).wrapped(&CAPLESS);
    let mut old = old.env("HAPROXY_TAKEOVER_SECRET_FILE", &good).start().serving();
    assert_eq!(old.log.count("may take over from this one"), 0, "{}", old.log.text());
    let name = door(&mut old);
    // Its proof is for one connection, and for one end of it.
    let (first, again) = lab.balancer.namespace.enter(|| {
        let proof = |line: &str| {
            let answer: Value = serde_json::from_str(line).unwrap();
            answer["proof"].as_str().unwrap().to_owned()
        };
        let mut stream = connect(&name);
        say(&mut stream, KNOCK);
        let first = proof(&hear(&mut stream));
        let mut stream = connect(&name);
        let number_too_small = KNOCK.replace("1000000000", "1");
        say(&mut stream, &number_too_small);
        let again = proof(&hear(&mut stream));
        say(&mut stream, &format!(r#"{{"say":"proof","proof":"{again}"}}"#));
        assert!(hear(&mut stream).contains("refused"), "a reflected proof");
        (first, again)
    });
    assert_ne!(first, again);
    let load = Load::start(&lab.client, &web());
    for (path, told) in [(Some(&bad), "nor that it knows the secret"), (None, "has not shown")] {
        let more = path.map(|path| with(path)).into_iter().flatten().collect::<Vec<_>>();
        let more: Vec<_> = more.iter().map(|(key, value)| (*key, &**value)).collect();
        let config = lab.balancer.write("other.cfg", &proxy(":8080", "other"));
        let spec = lab.balancer.container("other").config(&config).env("HAPROXY_PIDS", "auto");
        let mut other = spec.envs(&more).wrapped(&CAPLESS).start();
        other.log.await_line(told);
        other.log.await_line("nobody is relieved");
        other.stop();
    }
    let with_good = [("HAPROXY_TAKEOVER_SECRET_FILE", &*good)];
    // In a user namespace of its own the right cannot be shown either.
    let user_namespace = ["unshare", "--user", "--map-root-user"];
    for (name, wrapper) in [("new", &CAPLESS), ("newer", &user_namespace)] {
        let mut new = successor(&lab, name, &with_good, wrapper);
        let receipt = receipt(&mut new);
        assert_eq!(receipt["predecessors"][0]["rung"], "hapilot", "{receipt}");
        assert_eq!(receipt["strategy"], "shared", "{receipt}");
        assert_ends_with_0(&mut old);
        assert_eq!(via(&lab), name);
        old = new;
    }
    assert_none_lost(load);
    old.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn with_neither_the_user_counts_and_a_warning_says_so() {
    let lab = Lab::new();
    let config = lab.balancer.write("old.cfg", &proxy(":80", "old"));
    let old = lab.balancer.container("old").config(&config).wrapped(&CAPLESS);
    let mut old = old.start().serving();
    let told = old.log.await_line("may take over from this one");
    assert!(told.contains("HAPROXY_TAKEOVER_SECRET_FILE"), "{told}");
    let mut new = successor(&lab, "new", &[], &CAPLESS);
    receipt(&mut new);
    assert_ends_with_0(&mut old);
    // One that could check it does not hear it from that one, and takes over all the same.
    let mut newest = successor(&lab, "newest", &[], &[]);
    newest.log.await_line("has not shown CAP_NET_ADMIN over this network: its listeners are taken");
    let receipt = receipt(&mut newest);
    assert_eq!(receipt["strategy"], "shared", "{receipt}");
    assert_ends_with_0(&mut new);
    newest.stop();
}

#[test]
fn a_hundred_that_have_shown_nothing_take_no_memory_at_the_door() {
    let (lab, mut old, _) = start();
    let name = door(&mut old);
    let most = || {
        let most = lab::process::field(old.pid(), "VmHWM").unwrap();
        most.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let before = most();
    let answers = without_rights(&lab, || {
        let mut crowd: Vec<_> = (0..100).map(|_| connect(&name)).collect();
        for stream in &mut crowd {
            // Hung up on, or all of it is taken.
            let _ = stream.get_mut().write_all("x".repeat(120 * 1024).as_bytes());
        }
        crowd.iter_mut().map(hear).collect::<String>()
    });
    assert!(answers.contains("must knock first"), "{answers}");
    let more = most() - before;
    assert!(more < 4 * 1024, "{more} KiB");
    old.stop();
}

#[test]
fn a_closed_door_says_that_it_lives_and_no_more() {
    let (lab, mut old, before) = Lab::serving(&proxy(":80", "old"), &[("HAPROXY_TAKEOVER", "off")]);
    let name = door(&mut old);
    for lines in [&["_getsocks"][..], &["_runtime\nshow info"], &[KNOCK, NO_PROOF, HELLO]] {
        let answers = lab.balancer.namespace.enter(|| talk(&name, lines));
        let answer: Value = serde_json::from_str(&answers).unwrap();
        assert_eq!(answer["answer"], "refused", "{answer}");
        assert_eq!(answer["reason"], "HAPROXY_TAKEOVER=off closes its door");
    }
    let config = lab.balancer.write("new.cfg", &proxy(":8080", "new"));
    let spec = lab.balancer.container("new").config(&config).env("HAPROXY_PIDS", "auto");
    let mut new = spec.start().serving();
    new.log.await_line("HAPROXY_TAKEOVER=off closes its door");
    assert_eq!(get(&lab.client, &format!("{BALANCER4}:8080"), "/").body(), "10.2.0.1");
    // Its rules are nobody's to sweep.
    assert_eq!(new.log.count("removed what a dead instance had left"), 0);
    new.stop();
    assert_eq!(via(&lab), "old");
    old.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn wrong_settings_of_the_door_are_told_at_once() {
    let lab = Lab::new();
    let open = secret(&lab, "open", SECRET, 0o644);
    let config = lab.balancer.write("haproxy.cfg", &proxy(":80", "v1"));
    let spec = lab.balancer.container("bad").config(&config);
    let settings = [("HAPROXY_TAKEOVER", "maybe"), ("HAPROXY_TAKEOVER_SECRET_FILE", &*open)];
    let finished = spec.envs(&settings).finish();
    finished.assert_code(64).assert_says(&[
        "2 settings are wrong",
        "HAPROXY_TAKEOVER=\"maybe\"",
        "on or off",
        "other users may read or change it (mode 0644): chmod 600",
    ]);
}

#[test]
fn a_flood_at_the_door_keeps_no_successor_out() {
    let (lab, mut old, _) = start();
    let name = door(&mut old);
    let go_on = Arc::new(AtomicBool::new(true));
    let flooding = Arc::clone(&go_on);
    let flood = lab.balancer.namespace.spawn(move || {
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let mut crowd = VecDeque::new();
        while flooding.load(Ordering::SeqCst) {
            // Until the old one has ended.
            let Ok(stream) = UnixStream::connect_addr(&address) else { return };
            crowd.push_back(stream);
            if crowd.len() > 200 {
                crowd.pop_front();
            }
        }
    });
    let mut new = successor(&lab, "new", &[], &[]);
    assert_eq!(receipt(&mut new)["predecessors"][0]["rung"], "hapilot");
    go_on.store(false, Ordering::SeqCst);
    flood.join().unwrap();
    assert_ends_with_0(&mut old);
    new.stop();
}

/// As by `docker pause`: its connections stay, and nothing comes from it.
#[test]
fn a_successor_that_is_paused_is_not_waited_for_and_takes_no_half_over_later() {
    let (lab, mut old, before) = start();
    let load = Load::start(&lab.client, &web());
    let turnstile = Turnstile::new(&lab);
    let mut new = turnstile.waiting(&lab, "new");
    let refused = Finished::from(old.command(&["reload"]));
    refused.assert_code(1).assert_says(&["is taking over"]);
    new.signal(Signal::SIGSTOP);
    old.log.await_line("nothing was heard from the successor");
    old.log.await_line("it did not take over; serving on");
    old.reload();
    new.signal(Signal::SIGCONT);
    let status = new.wait(LONG);
    new.log.wait_closed();
    let new = Finished { status, text: new.log.text() };
    new.assert_code(69).assert_says(&["does not wait for this one any more"]);
    assert_eq!(via(&lab), "old");
    assert_none_lost(load);
    old.reload();
    old.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn a_crowd_at_the_door_keeps_nobody_out_and_takes_few_descriptors() {
    let (lab, mut old, _) = start();
    let name = door(&mut old);
    let at_rest = lab::process::descriptors(old.pid());
    let crowd = without_rights(&lab, || {
        let silent = (0..400).map(|_| connect(&name));
        let mut crowd: Vec<_> = silent.collect();
        for stream in &mut crowd[200..] {
            say(stream, KNOCK);
        }
        crowd
    });
    assert!(lab::process::descriptors(old.pid()) - at_rest < 150);
    let mut new = successor(&lab, "new", &[], &[]);
    receipt(&mut new);
    drop(crowd);
    assert_ends_with_0(&mut old);
    new.stop();
}
