//! Acts: the socket that owns our table. Closing it, which the kernel does for whoever dies, takes
//! the table away; so it is closed on exec, or a HAProxy would keep it.
//!
//! The kernel answers while it is asked: whatever there is to read is there when a send returns.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::answer::{Seen, answers, packets, table};
use super::change::{Chain, Change, Kind, SUBSYSTEM, Table};
use crate::host::netlink::{
    Attributes, DONE, DUMP, Header, INTERRUPTED, REQUEST, Received, find, message, messages, number,
};
use crate::host::step::Family;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The number of a transaction's first message: an answer to it is about the right to begin.
const BEGIN: u32 = 1;
const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const NEW_GENERATION: u16 = 15;
const GET_GENERATION: u16 = 16;
/// What a chain has that packets come by.
const HOOK: u16 = 4;
const EVERY_FAMILY: u8 = 0;
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// The kernel sends no more at once.
const BUFFER: usize = 64 * 1024;

/// A dump during which others change something is begun anew.
const TRIES: usize = 8;

/// Clones share the socket, and with it what it owns.
#[derive(Clone, Debug, Default)]
pub struct Nftables {
    socket: Arc<Mutex<Option<OwnedFd>>>,
}

/// What the kernel did not want, and why. Nothing of its transaction was done.
#[derive(Debug)]
pub struct Refused {
    pub change: Option<Change>,
    pub error: io::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.change {
            Some(change) => write!(f, "{change}: {}", self.error),
            None => write!(f, "nftables: {}", self.error),
        }
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// What it was about is not there.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.error.raw_os_error() == Some(Errno::NOENT.raw_os_error())
    }

    fn because(error: impl Into<io::Error>) -> Self {
        Self { change: None, error: error.into() }
    }
}

impl Nftables {
    /// Whether the kernel knows everything that these use. It changes nothing: the last message of
    /// the transaction cannot be done, so that nothing is.
    pub fn probe(&self, changes: &[Change]) -> Result<(), Refused> {
        let Some(first) = changes.first() else { return Ok(()) };
        let absent = Table { kind: Kind::Migration, ..first.table() };
        let impossible = Change::DeleteTable(absent);
        let batch = [changes, std::slice::from_ref(&impossible)].concat();
        match self.commit(&batch) {
            Err(refused) if refused.change.as_ref() == Some(&impossible) => Ok(()),
            answer => answer,
        }
    }

    /// All of these or none.
    pub fn commit(&self, changes: &[Change]) -> Result<(), Refused> {
        let mut last = 0;
        let mut sequence = || {
            last += 1;
            last
        };
        let limit = |kind, sequence| {
            let header = Header { kind, flags: REQUEST, sequence, family: 0, resource: SUBSYSTEM };
            message(header, &Attributes::default())
        };
        let mut batch = limit(BATCH_BEGIN, sequence());
        // Each with the number behind that of its last message.
        let mut ends = Vec::new();
        for change in changes {
            batch.extend(change.messages(&mut sequence).concat());
            ends.push((sequence(), change));
        }
        batch.extend(limit(BATCH_END, sequence()));
        let datagrams = self.exchange(&batch).map_err(Refused::because)?;
        let mut answered = false;
        for (number, answer) in datagrams.iter().flat_map(|datagram| answers(datagram)) {
            answered = true;
            if let Err(error) = answer {
                let change = ends.iter().find(|(end, _)| number > BEGIN && number < *end);
                return Err(Refused { change: change.map(|(_, c)| (*c).clone()), error });
            }
        }
        let silent = || Refused::because(io::ErrorKind::TimedOut);
        answered.then_some(()).ok_or_else(silent)
    }

    /// Every hapilot's tables.
    pub fn tables(&self) -> Result<Vec<Seen>> {
        self.dump(GET_TABLE, INET, &Attributes::default(), table)
            .context("ask the kernel for its nftables tables")
    }

    /// Whether `iptables-nft` may have anything to tell of this protocol: a rule, or a chain that is
    /// not one of those which it makes by itself.
    pub fn has_rules(&self, family: Family) -> Result<bool> {
        let number = match family {
            Family::V4 => IPV4,
            Family::V6 => IPV6,
        };
        let all = Attributes::default();
        let own = |chain: &Received<'_>| find(chain.attributes(), HOOK).is_none().then_some(());
        // Rules last: whoever has many of them has chains for them.
        let chains = self.dump(GET_CHAIN, number, &all, own);
        if !chains.context("ask the kernel for its nftables chains")?.is_empty() {
            return Ok(true);
        }
        let rules = self.dump(GET_RULE, number, &all, |_| Some(()));
        Ok(!rules.context("ask the kernel for its nftables rules")?.is_empty())
    }

    /// Of every table and family, those of which `read` tells something.
    pub fn chains<T>(&self, read: impl Fn(&Received<'_>) -> Option<T>) -> Result<Vec<T>> {
        let all = self.dump(GET_CHAIN, EVERY_FAMILY, &Attributes::default(), read);
        all.context("ask the kernel for its nftables chains")
    }

    /// The same of rules.
    pub fn rules<T>(&self, read: impl Fn(&Received<'_>) -> Option<T>) -> Result<Vec<T>> {
        let all = self.dump(GET_RULE, EVERY_FAMILY, &Attributes::default(), read);
        all.context("ask the kernel for its nftables rules")
    }

    /// A number that is another one after every change to this network namespace's rules, whoever
    /// made it, `iptables-nft` included.
    pub fn generation(&self) -> Result<u32> {
        let header = Header {
            kind: SUBSYSTEM << 8 | GET_GENERATION,
            flags: REQUEST,
            sequence: 1,
            family: 0,
            resource: 0,
        };
        let datagrams = self.exchange(&message(header, &Attributes::default()))?;
        datagrams
            .iter()
            .flat_map(|datagram| messages(datagram))
            .filter(|message| message.kind == SUBSYSTEM << 8 | NEW_GENERATION)
            .find_map(|message| find(message.attributes(), 1).and_then(number))
            .map(u32::from_be_bytes)
            .context("ask the kernel for the generation of its nftables rules")
    }

    /// Packets that the rules of a chain counted.
    pub fn counted(&self, of: Table, chain: Chain) -> Result<u64> {
        let which = Attributes::default().text(1, &of.to_string()).text(2, chain.name());
        let counted = self.dump(GET_RULE, INET, &which, |rule| Some(packets(rule)));
        let counted = counted.with_context(|| format!("read the counters of {of}"))?;
        Ok(counted.into_iter().fold(0, u64::saturating_add))
    }

    fn dump<T>(
        &self,
        kind: u16,
        family: u8,
        which: &Attributes,
        read: impl Fn(&Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>> {
        let header = Header {
            kind: SUBSYSTEM << 8 | kind,
            flags: REQUEST | DUMP,
            sequence: 1,
            family,
            resource: 0,
        };
        for _ in 0..TRIES {
            let datagrams = self.exchange(&message(header, which))?;
            let all = || datagrams.iter().flat_map(|datagram| messages(datagram));
            all().find_map(|m| m.answer()).context("it did not come to its end")??;
            if all().all(|message| message.flags & INTERRUPTED == 0) {
                return Ok(all().filter(|m| m.kind != DONE).filter_map(|m| read(&m)).collect());
            }
        }
        bail!("it changed each time it was read")
    }

    /// What comes back.
    fn exchange(&self, request: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match &*socket {
            Some(socket) => socket,
            None => socket.insert(open()?),
        };
        send(socket, request, SendFlags::empty())?;
        let mut datagrams = Vec::new();
        loop {
            let mut buffer = vec![0; BUFFER];
            match recv(socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => {
                    buffer.truncate(length);
                    datagrams.push(buffer);
                }
                Err(Errno::AGAIN) => return Ok(datagrams),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// In the network namespace of this thread.
fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(netlink::NETFILTER);
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?)
}
