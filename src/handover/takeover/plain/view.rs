//! Acts: what a HAProxy listens on, as far as it can be seen from outside.

use std::collections::{BTreeMap, HashSet};

use super::haproxy::Haproxy;
use super::identity::{Listens, Owned};
use super::process::Process;
use super::tables::{UnixName, udp_users, unix_listeners};
use crate::fault::{self, Point};
use crate::listeners::compare::Seen;
use crate::listeners::fetch::Listener;
use crate::listeners::socket_table;
use crate::process::procfs::each_socket;

#[derive(Debug)]
pub(super) struct View {
    /// The sockets of its processes by inode: which process, which descriptor.
    pub(super) held: BTreeMap<u64, (i32, i32)>,
    /// Every process let us look.
    pub(super) sees: bool,
    /// Of the whole network namespace.
    pub(super) tcp: Vec<Seen>,
    pub(super) unix: BTreeMap<u64, UnixName>,
    /// With who opened them.
    pub(super) udp: BTreeMap<u64, u32>,
    /// The user that opened each TCP and each unix listener, as far as the kernel says.
    users: BTreeMap<u64, u32>,
    /// What could not be found out.
    pub(super) failures: Vec<String>,
}

impl View {
    pub(super) fn take(haproxy: &Haproxy) -> Self {
        let mut failures = Vec::new();
        let tcp = socket_table::seen().unwrap_or_else(|error| {
            failures.push(format!("{error:#}"));
            Vec::new()
        });
        let unix = unix_listeners().unwrap_or_else(|error| {
            failures.push(format!("read the table of unix sockets: {error}"));
            BTreeMap::new()
        });
        let listening = socket_table::listening().unwrap_or_default();
        let mut users: BTreeMap<_, _> =
            listening.iter().map(|listener| (listener.inode, listener.user)).collect();
        match socket_table::unix_users() {
            Ok(unix_users) => users.extend(unix_users),
            Err(error) => failures.push(format!("{error:#}")),
        }
        let (held, sees) = (BTreeMap::new(), true);
        let mut view = Self { held, sees, tcp, unix, udp: udp_users(), users, failures };
        for process in haproxy.members() {
            view.look_into(process);
        }
        view
    }

    /// Connections are of no interest, and may be many.
    fn look_into(&mut self, process: &Process) {
        let (pid, mut held) = (process.pid(), Vec::new());
        let tcp: HashSet<_> = self.tcp.iter().map(|seen| seen.inode).collect();
        let listens = |inode: &u64| {
            let unix = self.unix.contains_key(inode) || self.users.contains_key(inode);
            unix || tcp.contains(inode) || self.udp.contains_key(inode)
        };
        let looked = fault::at(Point::Look).and_then(|()| {
            each_socket(pid, |descriptor, inode| {
                held.extend(listens(&inode).then_some((inode, (pid, descriptor))));
            })
        });
        // One that ended meanwhile holds nothing.
        self.sees &= looked.is_ok() || process.has_ended();
        self.held.extend(held);
    }

    /// Its TCP listeners.
    pub(super) fn own_tcp(&self) -> impl Iterator<Item = &Seen> {
        self.tcp.iter().filter(|seen| self.held.contains_key(&seen.inode))
    }

    /// Its unix listeners; where it did not let us look, everybody's.
    pub(super) fn candidates(&self) -> impl Iterator<Item = (u64, &UnixName)> {
        let may_be = |inode: &u64| !self.sees || self.held.contains_key(inode);
        self.unix.iter().filter(move |(inode, _)| may_be(inode)).map(|(inode, name)| (*inode, name))
    }

    /// Anybody may call himself HAProxy, and hand over sockets at which no client of ours arrives.
    /// Those of a `namespace` of the configuration go to no `bind` but one of that namespace.
    pub(super) fn is_of_this_network(&self, listener: &Listener) -> bool {
        listener.description.namespace.is_some()
            || listener.seen().port().is_none()
            || self.udp.contains_key(&listener.inode)
            || self.tcp.iter().any(|seen| seen.inode == listener.inode)
    }

    /// Its sockets, as far as they can be told from others.
    pub(super) fn owned(&self) -> Vec<Owned> {
        let owned = |(inode, user): (&u64, &u32), listens| {
            let of_it = self.sees.then(|| self.held.contains_key(inode));
            Owned { user: *user, of_it, listens }
        };
        let listening = self.users.iter().map(|socket| owned(socket, Listens::Yes));
        listening.chain(self.udp.iter().map(|socket| owned(socket, Listens::Unknown))).collect()
    }

    /// Not opened by a user whom we have no reason to trust, as far as the kernel says.
    pub(super) fn is_trusted(&self, inode: u64) -> bool {
        let user = self.users.get(&inode).or_else(|| self.udp.get(&inode));
        user.is_none_or(|user| trusted().contains(user))
    }

    pub(super) fn listens(&self) -> bool {
        let on_unix = self.unix.keys().any(|inode| self.held.contains_key(inode));
        on_unix || self.own_tcp().next().is_some()
    }
}

/// Root may do everything anyway.
pub(super) fn trusted() -> [u32; 2] {
    [0, rustix::process::geteuid().as_raw()]
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::listeners::fetch::describe;
    use crate::listeners::wire::Description;

    fn view(tcp: Vec<Seen>) -> View {
        let (held, unix, udp) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let users = BTreeMap::from([(1, 0), (2, 65534)]);
        View { held, sees: true, tcp, unix, udp, users, failures: Vec::new() }
    }

    #[test]
    fn what_another_user_opened_is_not_trusted() {
        let view = view(Vec::new());
        assert!(view.is_trusted(1) && !view.is_trusted(2) && view.is_trusted(3));
    }

    #[test]
    fn what_does_not_listen_here_is_of_no_use() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let of = |namespace: Option<&str>| {
            let namespace = namespace.map(str::to_owned);
            let description = Description { namespace, interface: None };
            describe(socket.try_clone().unwrap().into(), description).unwrap()
        };
        assert!(view(socket_table::seen().unwrap()).is_of_this_network(&of(None)));
        assert!(!view(Vec::new()).is_of_this_network(&of(None)));
        assert!(view(Vec::new()).is_of_this_network(&of(Some("other"))));
    }
}
