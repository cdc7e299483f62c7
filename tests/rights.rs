//! Promise: HAProxy and hapilot have no right that they have no use for, the sockets are private,
//! and all works with as little as that.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use lab::network::{BALANCER4, BALANCER6, CLIENT4, CLIENT6};
use lab::{Download, Instance, Lab, Pid, SHORT, get, haproxy_cfg, until};
use nix::sys::signal::Signal;
use rustix::thread::CapabilitySet;

/// What stock HAProxy has a use for; more is nobody's.
const USEFUL: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_RESOURCE);

fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

fn capabilities(pid: u32, set: &str) -> CapabilitySet {
    CapabilitySet::from_bits_retain(u64::from_str_radix(&field(pid, set), 16).unwrap())
}

fn assert_no_more_than(pid: u32, allowed: CapabilitySet) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        let beyond = capabilities(pid, set).difference(allowed);
        assert!(beyond.is_empty(), "{set} of process {pid}: {beyond:?}");
    }
    assert_eq!(field(pid, "NoNewPrivs"), "1");
}

fn assert_transparent(lab: &Lab, port: u16) {
    for (address, client) in [(BALANCER4, CLIENT4), (BALANCER6, CLIENT6)] {
        assert_eq!(get(&lab.client, &format!("{address}:{port}"), "/").body(), client);
    }
}

fn haproxy(hapilot: &Instance) -> u32 {
    hapilot.process_of(&hapilot.current())
}

#[test]
fn with_every_right_given_nobody_keeps_more_than_is_useful_and_all_works() {
    let (lab, mut hapilot, before) =
        Lab::serving(&haproxy_cfg::transparent(":80", ":::80 v6only"), &[]);
    for round in 0..2 {
        assert_no_more_than(haproxy(&hapilot), USEFUL);
        // The last is for connections of a HAProxy that changed its user; there is nobody else.
        let ours = USEFUL | CapabilitySet::KILL | CapabilitySet::SYS_PTRACE;
        assert_no_more_than(hapilot.pid(), ours);
        let bounding = capabilities(hapilot.pid(), "CapBnd");
        assert!(ours.contains(bounding), "what is given away does not come back: {bounding:?}");
        assert_transparent(&lab, 80);
        if round == 0 {
            hapilot.reload();
        }
    }
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn among_the_hosts_processes_nobody_may_be_looked_into() {
    let lab = Lab::new();
    let config = lab.balancer.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "hapilot"));
    let spec = lab.balancer.container("hapilot").config(&config).pid(Pid::OfTheHost);
    let mut hapilot = spec.start().serving();
    assert_no_more_than(hapilot.pid(), USEFUL | CapabilitySet::KILL);
    hapilot.stop();
}

#[test]
fn a_haproxy_that_changes_its_user_keeps_what_it_asks_for_and_is_drained() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    // Older ones cannot keep it: they stay root for this.
    let installed = hapilot::haproxy::installed::find(&std::env::var_os("PATH").unwrap()).unwrap();
    let keeps = installed.build.version.at_least(2, 9);
    let global = if keeps { "user nobody\n  setcap cap_net_admin" } else { "user root" };
    let transparent = haproxy_cfg::transparent(":80", ":::80 v6only");
    let config = lab.balancer.write("haproxy.cfg", &format!("global\n  {global}\n{transparent}"));
    let mut hapilot = lab.balancer.container("hapilot").config(&config).start().serving();
    let process = haproxy(&hapilot);
    if keeps {
        assert_eq!(capabilities(process, "CapEff"), CapabilitySet::NET_ADMIN);
        assert!(field(process, "Uid").starts_with("65534"));
    }
    assert_transparent(&lab, 80);
    let download = Download::begin(&lab.client, &format!("{BALANCER4}:80"), "/slow");
    hapilot.reload();
    assert_transparent(&lab, 80);
    hapilot.signal(Signal::SIGTERM);
    lab.origin.open_gate();
    assert!(download.finish().is_answered());
    assert_eq!(hapilot.wait(SHORT).code(), Some(0));
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn programs_may_gain_rights_by_their_file_where_the_configuration_wants_that() {
    let host = lab::Host::alone();
    let plain = lab::haproxy_cfg::proxy("127.0.0.1:80", "v1");
    let wanted = format!("global\n  insecure-fork-wanted\n  insecure-setuid-wanted\n{plain}");
    let mut hapilot = host.serve(&wanted);
    assert_eq!(field(haproxy(&hapilot), "NoNewPrivs"), "0");
    hapilot.stop();
    let mut hapilot = host.serve(&plain);
    assert_eq!(field(haproxy(&hapilot), "NoNewPrivs"), "1");
    host.write("haproxy.cfg", &wanted);
    hapilot.reload();
    let told = hapilot.log.await_line("insecure-setuid-wanted has no effect");
    assert!(told.contains("restart the container"), "{told}");
    hapilot.stop();
}

#[test]
fn net_admin_alone_is_enough_for_everything_but_low_ports() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let config = haproxy_cfg::transparent(":8080", ":::8080 v6only");
    let config = lab.balancer.write("haproxy.cfg", &config);
    let wrapper = ["setpriv", "--no-new-privs", "--bounding-set", "-all,+net_admin"];
    let spec = lab.balancer.container("hapilot").config(&config).wrapped(&wrapper);
    let mut hapilot = spec.start().serving();
    assert_no_more_than(hapilot.pid(), CapabilitySet::NET_ADMIN);
    assert_transparent(&lab, 8080);
    hapilot.reload();
    assert_transparent(&lab, 8080);
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);

    let config = lab.balancer.write("low.cfg", &haproxy_cfg::proxy(":80", "hapilot"));
    let spec = lab.balancer.container("low").config(&config).wrapped(&wrapper);
    let refused = spec.finish();
    assert!(refused.text.contains("NET_BIND_SERVICE"), "{}", refused.text);
    lab.balancer.state().assert_same_as(&before);
}

#[test]
fn the_rights_of_haproxys_own_file_are_left_to_it_where_hapilot_is_not_root() {
    let lab = Lab::new();
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("haproxy");
    copy_with_libraries(&copy);
    let given = Command::new("setcap").arg("cap_net_bind_service=ep").arg(&copy).status().unwrap();
    assert!(given.success());
    let config = lab.balancer.write("haproxy.cfg", &haproxy_cfg::proxy(":80", "hapilot"));
    let run = lab.balancer.path("run-hapilot/hapilot");
    fs::create_dir_all(&run).unwrap();
    std::os::unix::fs::chown(&run, Some(65534), Some(65534)).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let spec = lab.balancer.container("hapilot").config(&config).env("PATH", &path);
    let mut hapilot = spec.wrapped(&nobody).start();
    // Asked for its status it would serve its own user alone.
    hapilot.log.await_line("serving");
    assert_eq!(hapilot.log.count("NET_BIND_SERVICE"), 0);
    assert_eq!(capabilities(hapilot.pid(), "CapPrm"), CapabilitySet::empty());
    let outcome = get(&lab.client, &format!("{BALANCER4}:80"), "/");
    assert!(outcome.is_answered(), "{outcome:?}");
    hapilot.stop();
}

/// A program of its own, readable for everybody; its libraries may be where only root may look.
fn copy_with_libraries(copy: &Path) {
    let search = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&search).map(|dir| dir.join("haproxy"));
    let original = found.into_iter().find(|file| file.is_file()).unwrap();
    fs::copy(&original, copy).unwrap();
    let own = original.with_file_name("lib");
    if !own.is_dir() {
        return;
    }
    let libraries = copy.with_file_name("lib");
    let loader = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name());
    let loader = loader.into_iter().find(|name| name.to_str().unwrap().starts_with("ld-")).unwrap();
    for (program, words) in [
        ("cp", vec!["-a".into(), own.clone().into_os_string(), libraries.clone().into()]),
        (
            "patchelf",
            vec![
                "--set-interpreter".into(),
                libraries.join(loader).into(),
                "--force-rpath".into(),
                "--set-rpath".into(),
                libraries.clone().into(),
                copy.as_os_str().to_owned(),
            ],
        ),
    ] {
        assert!(Command::new(program).args(words).status().unwrap().success());
    }
}

#[test]
fn every_socket_is_for_our_own_user_alone() {
    let (lab, mut hapilot, before) =
        Lab::serving(&haproxy_cfg::transparent(":80", ":::80 v6only"), &[]);
    hapilot.reload();
    let directory = lab.balancer.path("run-hapilot/hapilot");
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&directory), 0o700);
    // Listed anew: the reload's last files are still going.
    let sockets = until(SHORT, "the first generation's socket is gone", || {
        let all = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
        let is_socket = |path: &std::path::PathBuf| {
            fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        };
        let sockets: Vec<_> = all.filter(is_socket).collect();
        (!sockets.contains(&directory.join("generation-1.sock"))).then_some(sockets)
    });
    assert!(sockets.len() >= 3, "{sockets:?}");
    for socket in &sockets {
        assert_eq!(mode(socket), 0o600, "{}", socket.display());
    }
    // Even if somebody opens the directory, or mounts it elsewhere.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    let stranger = ["setpriv", "--reuid=65534", "--clear-groups", env!("CARGO_BIN_EXE_hapilot")];
    let output = hapilot.exec(&[&stranger[..], &["stop"]].concat());
    assert!(!output.status.success(), "{output:?}");
    assert!(hapilot.is_running());
    hapilot.stop();
    lab.balancer.state().assert_same_as(&before);
}
