//! Decides: whether a process is a HAProxy that may be relieved. Values only.

use crate::problem::Problem;

/// What was seen of a process while a pidfd of it was open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// As `ps` shows it; the kernel cuts it at 15 bytes.
    pub name: String,
    /// `None` where we may not see it: the process changed its user, and `CAP_SYS_PTRACE` is not
    /// ours.
    pub executable: Option<String>,
    /// In clock ticks since the boot.
    pub started: u64,
    pub dead: bool,
    pub parent: i32,
    /// The PID by which it knows itself.
    pub inner_pid: i32,
    pub network: Network,
    pub user: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    Ours,
    Other,
}

/// Why a process is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Gone,
    /// There is no such process where we can see any.
    NotVisible(Sight),
    Thread,
    /// The PID went from one process to another while we looked.
    Changed,
    NotHaproxy(String),
    OtherNetwork(String),
    Ourselves,
    /// It is relieved together with its hapilot, or not at all.
    OfHapilot,
    NotAllowed(String),
    /// Nobody named it, and that user opened what it listens on: others of his may hold it as well,
    /// and would get our clients.
    OfUser(u32),
    /// It was told to stop before, and listens on nothing.
    Draining,
    Unreadable(String),
}

/// Which processes we can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All of the machine.
    Host,
    /// Those of this container.
    Container,
    /// Neither can be told.
    Unknown,
}

impl Refusal {
    /// One line, with what could be done.
    #[must_use]
    pub fn problem(&self, pid: i32) -> Problem {
        const ALONE: &str = "it is left alone";
        let (what, mend) = match self {
            Self::Gone => ("has ended".to_owned(), "nothing is to be done about it"),
            Self::NotVisible(Sight::Host) => ("does not exist".to_owned(), "it has ended"),
            Self::NotVisible(Sight::Container) => (
                "is not visible: this container sees its own processes only".to_owned(),
                "run it with --pid=host",
            ),
            Self::NotVisible(Sight::Unknown) => {
                ("is not visible".to_owned(), "it has ended, or this container needs --pid=host")
            }
            Self::Thread => ("is a thread".to_owned(), "name the process"),
            Self::Changed => ("became another one while it was looked at".to_owned(), ALONE),
            Self::NotHaproxy(name) => (format!("is {name}, not HAProxy"), ALONE),
            Self::OtherNetwork(name) => (
                format!("({name}) is in another network namespace, so its ports are not ours"),
                "it is left alone; to relieve it, run both with the same --net",
            ),
            Self::Ourselves => (
                "is this hapilot itself".to_owned(),
                "PIDs of the host are seen with --pid=host only",
            ),
            Self::OfHapilot => (
                "belongs to a hapilot that is not relieved".to_owned(),
                "it is left alone; stop that hapilot",
            ),
            Self::NotAllowed(name) => (
                format!("({name}) may not be signalled by us, so it could not be told to let go"),
                "run this container as root with --cap-add=KILL",
            ),
            Self::OfUser(user) => (
                format!("calls itself HAProxy, and user {user} opened its listeners, not root"),
                "it is left alone; if it is to be relieved, name its PID in place of auto",
            ),
            Self::Draining => ("is draining already".to_owned(), "it ends with its last session"),
            Self::Unreadable(why) => (format!("cannot be looked at: {why}"), ALONE),
        };
        Problem::new(format!("HAPROXY_PIDS: process {pid} {what}"), mend)
    }
}

/// The file's name and what `ps` shows must not contradict HAProxy; where the file cannot be seen
/// the name has to do.
pub fn judge(look: &Look) -> Result<(), Refusal> {
    if look.dead {
        return Err(Refusal::Gone);
    }
    let file = look.executable.as_deref().map(file_name);
    let name = file.unwrap_or(&look.name);
    if !is_haproxy(name) {
        return Err(Refusal::NotHaproxy(name.to_owned()));
    }
    match look.network {
        Network::Ours => Ok(()),
        Network::Other => Err(Refusal::OtherNetwork(name.to_owned())),
    }
}

/// Whether clients may come to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listens {
    Yes,
    /// Of UDP sockets the kernel's table does not say. HAProxy sends its log from one that it opens
    /// when it is a user of its own already.
    Unknown,
}

/// A socket of TCP, UDP, or with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Who opened it, whoever has it now.
    pub user: u32,
    /// `None` where its holders may not be looked at.
    pub of_it: Option<bool>,
    pub listens: Listens,
}

/// Any user may call a process HAProxy and listen. One that root started listens on what root
/// opened, whoever it became since; where that cannot be seen, nothing may be listening that was
/// opened by the user who it is now. One that listens on nothing that root opened, and has UDP
/// sockets of another user's, is that user's.
#[must_use]
pub fn stranger(users: &[u32], listeners: &[Owned], trusted: &[u32]) -> Option<u32> {
    let may_be_its = |owned: &&Owned| owned.of_it.unwrap_or_else(|| users.contains(&owned.user));
    let strange = |owned: &&Owned| !trusted.contains(&owned.user);
    let its = || listeners.iter().filter(may_be_its);
    let listening = || its().filter(|owned| owned.listens == Listens::Yes);
    let known = || its().filter(|owned| owned.of_it == Some(true));
    let other = listening().find(strange);
    let other = other.or_else(|| known().find(strange).filter(|_| known().all(|o| strange(&o))));
    other.map(|owned| owned.user)
}

/// An upgrade replaces the file of a process that runs.
fn file_name(executable: &str) -> &str {
    let path = executable.strip_suffix(" (deleted)").unwrap_or(executable);
    path.rsplit('/').next().unwrap_or(path)
}

/// `haproxy`, and names with a version such as `haproxy-3.2` or `haproxy24`; not
/// `haproxy-systemd-wrapper`.
#[must_use]
pub fn is_haproxy(name: &str) -> bool {
    name.strip_prefix("haproxy")
        .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b"-._".contains(&b)))
}

/// From the names above us, nearest first, and from what the kernel calls our PID namespace.
#[must_use]
pub fn sight(initial_namespace: bool, pid_1: &str, we_are_pid_1: bool) -> Sight {
    const WRAPPERS: [&str; 5] = ["tini", "docker-init", "dumb-init", "catatonit", "hapilot"];
    if initial_namespace {
        Sight::Host
    } else if we_are_pid_1 || WRAPPERS.contains(&pid_1) {
        Sight::Container
    } else {
        Sight::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(name: &str, executable: Option<&str>) -> Look {
        Look {
            name: name.to_owned(),
            executable: executable.map(str::to_owned),
            started: 1,
            dead: false,
            parent: 1,
            inner_pid: 7,
            network: Network::Ours,
            user: 0,
        }
    }

    #[test]
    fn the_file_counts_and_without_it_the_name() {
        for (name, file) in [
            ("haproxy", None),
            ("haproxy", Some("/usr/sbin/haproxy")),
            ("haproxy", Some("/usr/local/sbin/haproxy (deleted)")),
            ("haproxy-3.2.1", Some("/opt/haproxy-3.2.1")),
            ("haproxy24", None),
        ] {
            assert_eq!(judge(&look(name, file)), Ok(()), "{name} {file:?}");
        }
        for (name, file, called) in [
            ("bash", None, "bash"),
            ("haproxy", Some("/usr/bin/bash"), "bash"),
            ("haproxy-systemd", None, "haproxy-systemd"),
            ("systemd", Some("/usr/lib/systemd/systemd"), "systemd"),
            ("haproxyd", None, "haproxyd"),
        ] {
            let refusal = Refusal::NotHaproxy(called.to_owned());
            assert_eq!(judge(&look(name, file)), Err(refusal), "{name} {file:?}");
        }
    }

    #[test]
    fn the_dead_and_those_of_another_network_are_refused() {
        let dead = Look { dead: true, ..look("haproxy", None) };
        assert_eq!(judge(&dead), Err(Refusal::Gone));
        let elsewhere = Look { network: Network::Other, ..look("haproxy", None) };
        assert_eq!(judge(&elsewhere), Err(Refusal::OtherNetwork("haproxy".to_owned())));
    }

    #[test]
    fn whose_listeners_were_opened_by_another_user_is_a_stranger() {
        let (root, haproxy, someone) = (0, 99, 1000);
        let owned = |user, of_it| Owned { user, of_it, listens: Listens::Yes };
        let udp = |user, of_it| Owned { user, of_it, listens: Listens::Unknown };
        let others = owned(someone, Some(false));
        for (users, listeners, who) in [
            (haproxy, vec![owned(root, Some(true)), others], None),
            (haproxy, vec![owned(root, None), owned(someone, None)], None),
            (someone, vec![owned(root, None), owned(someone, None)], Some(someone)),
            (someone, vec![owned(someone, Some(true))], Some(someone)),
            // Handed to it, perhaps, but by whom?
            (root, vec![owned(someone, Some(true))], Some(someone)),
            (root, vec![owned(root, Some(true)), owned(someone, Some(true))], Some(someone)),
            // It sends its log from one of its own.
            (haproxy, vec![owned(root, Some(true)), udp(haproxy, Some(true))], None),
            (haproxy, vec![owned(root, None), udp(haproxy, None)], None),
            (someone, vec![udp(someone, Some(true)), owned(root, Some(false))], Some(someone)),
        ] {
            assert_eq!(stranger(&[users], &listeners, &[root]), who, "{users} {listeners:?}");
        }
        assert_eq!(stranger(&[haproxy], &[owned(haproxy, None)], &[root, haproxy]), None);
    }

    #[test]
    fn who_sees_only_a_container_is_told_of_the_option() {
        assert_eq!(sight(true, "systemd", false), Sight::Host);
        assert_eq!(sight(false, "hapilot", true), Sight::Container);
        assert_eq!(sight(false, "tini", false), Sight::Container);
        assert_eq!(sight(false, "systemd", false), Sight::Unknown);
        for sight in [Sight::Container, Sight::Unknown] {
            let said = Refusal::NotVisible(sight).problem(7).to_string();
            assert!(said.contains("process 7 ") && said.contains("--pid=host"), "{said}");
        }
        let said = Refusal::NotVisible(Sight::Host).problem(7).to_string();
        assert!(!said.contains("--pid=host"), "{said}");
    }
}
