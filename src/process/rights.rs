//! Which capabilities hapilot keeps, and which ones HAProxy gets.
//!
//! Capabilities are a thread's (capabilities(7)). So hapilot gives its own away while it has one
//! thread, and HAProxy is started from a thread that has given away more: no code has to run
//! between fork and exec. With `no_new_privs` what is given away does not come back with root's
//! next exec, whatever the bounding set says, which only `CAP_SETPCAP` may narrow.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread::scope;

use anyhow::{Context, Result};
use rustix::process::geteuid;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::threads::start_in;
use crate::fault::{self, Point};

/// What stock HAProxy has a use for: files and sockets as the configuration names and owns them,
/// low ports, `user`, `group`, `chroot`, `usesrc`, `transparent`, `interface`, `ulimit-n`.
const HAPROXY: CapabilitySet = CapabilitySet::CHOWN
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

/// What is wanted beyond what is always kept.
#[expect(clippy::struct_excessive_bools, reason = "each is a right of its own")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// `namespace` in the configuration: HAProxy enters one with `CAP_SYS_ADMIN`.
    pub namespaces: bool,
    /// Looking into processes of another user: a HAProxy that is to be relieved, or our own where
    /// there is nobody else to look into.
    pub look_into_others: bool,
    /// `insecure-setuid-wanted`: what HAProxy runs may gain rights by its file.
    pub setuid: bool,
    /// A HAProxy of another container is to be relieved: the kernel lets us look into it only with
    /// all the rights that it has.
    pub relieve: bool,
}

/// What HAProxy gets of what we have.
fn for_haproxy(needs: Needs) -> CapabilitySet {
    if needs.namespaces { HAPROXY | CapabilitySet::SYS_ADMIN } else { HAPROXY }
}

/// What we keep: HAProxy cannot get more than we have, and we take down what we set up (`NET_ADMIN`;
/// `NET_RAW` for iptables-legacy) and signal a HAProxy of another user (`KILL`).
fn for_us(needs: Needs) -> CapabilitySet {
    if needs.relieve {
        return CapabilitySet::all();
    }
    let others =
        if needs.look_into_others { CapabilitySet::SYS_PTRACE } else { CapabilitySet::empty() };
    for_haproxy(needs) | CapabilitySet::KILL | others
}

/// Gives away what is not needed from now on; for good, and for every thread and child to come.
pub fn keep_what_is_needed(needs: Needs, haproxy: &Path) -> Result<()> {
    fault::at(Point::Rights).context("give capabilities away")?;
    if !needs.setuid && !lives_from_its_file(haproxy) {
        set_no_new_privs(true).context("set no_new_privs")?;
    }
    reduce_to(for_us(needs))
}

/// Runs it on a thread that has only what HAProxy needs, so that its children have no more. An error
/// where there is no thread to be had.
pub fn as_haproxy<T: Send>(
    needs: Needs,
    spawn: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let reduced = || reduce_to(for_haproxy(needs)).map_err(io::Error::other).and_then(|()| spawn());
    let panicked = |_| Err(io::Error::other("the thread that starts it panicked"));
    scope(|scope| start_in(scope, "haproxy", reduced)?.join().unwrap_or_else(panicked))
}

fn reduce_to(kept: CapabilitySet) -> Result<()> {
    let had = capabilities(None).context("read our capabilities")?;
    if had.effective.contains(CapabilitySet::SETPCAP) {
        for other in kept.complement().iter() {
            // EINVAL: this kernel does not know it.
            if capability_is_in_bounding_set(other) == Ok(true) {
                remove_capability_from_bounding_set(other).context("narrow the bounding set")?;
            }
        }
    }
    let kept = CapabilitySets {
        effective: had.effective & kept,
        permitted: had.permitted & kept,
        inheritable: had.inheritable & kept,
    };
    // The ambient set follows by itself.
    set_capabilities(None, kept).context("give capabilities away")
}

/// Whether HAProxy's own file gives it rights (`setcap`) that we, not being root, do not have: those
/// end with `no_new_privs`.
#[must_use]
pub fn lives_from_its_file(haproxy: &Path) -> bool {
    const SET_USER_OR_GROUP: u32 = 0o6000;
    let mut none = [0; 64];
    let capable = rustix::fs::getxattr(haproxy, "security.capability", &mut none[..]).is_ok();
    let mode = fs::metadata(haproxy).map_or(0, |metadata| metadata.permissions().mode());
    !geteuid().is_root() && (capable || mode & SET_USER_OR_GROUP != 0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const EVERYTHING: Needs =
        Needs { namespaces: true, look_into_others: true, setuid: true, relieve: false };

    #[test]
    fn haproxy_gets_what_it_has_a_use_for_and_we_no_more_than_needed_besides() {
        for needs in [Needs::default(), EVERYTHING] {
            assert!(for_us(needs).contains(for_haproxy(needs)));
            assert!(!for_haproxy(needs).contains(CapabilitySet::SYS_PTRACE));
        }
        let dangerous = CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
        assert!(!for_us(Needs::default()).intersects(dangerous));
        assert!(for_us(EVERYTHING).contains(dangerous));
        let never = CapabilitySet::SYS_MODULE | CapabilitySet::MKNOD | CapabilitySet::SETPCAP;
        assert!(!for_us(EVERYTHING).intersects(never));
        let relieving = Needs { relieve: true, ..Needs::default() };
        assert!(for_us(relieving).contains(never) && !for_haproxy(relieving).intersects(never));
    }

    #[test]
    fn a_child_has_no_more_than_the_thread_that_started_it() {
        let child = || Command::new("cat").arg("/proc/self/status").output();
        let status = std::thread::spawn(move || {
            keep_what_is_needed(Needs::default(), Path::new("/bin/true")).unwrap();
            as_haproxy(Needs::default(), child).unwrap()
        });
        let status = String::from_utf8(status.join().unwrap().stdout).unwrap();
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().to_owned()
        };
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let bits = u64::from_str_radix(&line(set), 16).unwrap();
            let beyond = CapabilitySet::from_bits_retain(bits).difference(HAPROXY);
            assert!(set == "CapBnd" || beyond.is_empty(), "{set}: {beyond:?}");
        }
        assert_eq!(line("NoNewPrivs"), "1");
    }
}
