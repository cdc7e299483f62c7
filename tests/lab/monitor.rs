//! When the kernel says that something of hapilot's went, and when that it came: its own events, by
//! a clock of ours. A loaded machine delays both alike.
//!
//! Of iptables-legacy the kernel says nothing; there it is when a program let go of the lock.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hapilot::host::netlink::messages;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::{Errno, read};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::Namespace;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Happened {
    Removed,
    Added,
    /// Somebody who uses iptables-legacy has ended.
    Unlocked,
}

type Events = Arc<Mutex<Vec<(Instant, Happened)>>>;

/// Hears until it is dropped.
#[derive(Debug)]
pub struct Monitor {
    events: Events,
    // its other end tells the thread to end
    end: Option<std::io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

const OF_HAPILOT: u8 = 122;

impl Monitor {
    pub fn of(namespace: &Namespace, lock: Option<&Path>) -> Self {
        let (ended, end) = std::io::pipe().unwrap();
        let events = Events::default();
        let lock = lock.map(Path::to_owned);
        let sources = namespace.enter(|| {
            [
                listen(Some(netlink::NETFILTER), 1 << 6),
                listen(None, 1 << 6 | 1 << 7 | 1 << 10 | 1 << 18),
            ]
        });
        let lock = lock.map(|path| {
            fs::File::options().create(true).append(true).open(&path).unwrap();
            let inotify = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
            inotify::add_watch(&inotify, &path, inotify::WatchFlags::CLOSE_NOWRITE).unwrap();
            inotify
        });
        let into = Arc::clone(&events);
        let thread = thread::spawn(move || hear(&sources, lock.as_ref(), &ended.into(), &into));
        Self { events, end: Some(end), thread: Some(thread) }
    }

    /// All so far, and none of them again.
    pub fn take(&self) -> Vec<(Instant, Happened)> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    pub fn count(&self, what: Happened) -> usize {
        self.events.lock().unwrap().iter().filter(|(_, happened)| *happened == what).count()
    }

    /// From the first removal to the last time that something came.
    pub fn gap(&self) -> Duration {
        let events = self.take();
        let removed = events.iter().find(|(_, happened)| *happened != Happened::Added);
        let back = events.iter().rfind(|(_, happened)| *happened != Happened::Removed);
        let (removed, back) = (removed.expect("something went"), back.expect("something came"));
        back.0.duration_since(removed.0)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.thread.take().unwrap().join();
    }
}

fn listen(protocol: Option<rustix::net::Protocol>, groups: u32) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
    bind(&socket, &SocketAddrNetlink::new(0, groups)).unwrap();
    socket
}

fn hear(sources: &[OwnedFd; 2], lock: Option<&OwnedFd>, ended: &OwnedFd, into: &Events) {
    let mut buffer = vec![0; 1 << 17];
    loop {
        let all = sources.iter().chain([ended]).chain(lock);
        let mut polled: Vec<_> =
            all.map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)).collect();
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
        let now = Instant::now();
        if !polled[2].revents().is_empty() {
            return;
        }
        let mut events = into.lock().unwrap();
        for (at, source) in sources.iter().enumerate() {
            while let Ok((length, _)) = recv(source, buffer.as_mut_slice(), RecvFlags::empty()) {
                let what =
                    messages(&buffer[..length]).filter_map(|m| happened(at, m.kind, m.body()));
                events.extend(what.map(|happened| (now, happened)));
            }
        }
        while let Some(Ok(1..)) = lock.map(|lock| read(lock, buffer.as_mut_slice())) {
            events.push((now, Happened::Unlocked));
        }
    }
}

/// Of hapilots only, and not of guards.
fn happened(source: usize, kind: u16, body: &[u8]) -> Option<Happened> {
    let in_nftables = |kind: u16| kind | 10 << 8;
    if source == 0 {
        let text = String::from_utf8_lossy(body);
        let ours = text.contains("HAPILOT-") && !text.contains("-GUARD");
        let removed = [2, 5, 8].map(in_nftables).contains(&kind);
        let added = [0, 3, 6].map(in_nftables).contains(&kind);
        return match (ours, removed, added) {
            (true, true, _) => Some(Happened::Removed),
            (true, _, true) => Some(Happened::Added),
            _ => None,
        };
    }
    let ours = match kind {
        24 | 25 => body.get(5) == Some(&OF_HAPILOT),
        // the last attribute but few: its kind is 21, its length 5
        32 | 33 => body.windows(5).any(|w| w == [5, 0, 21, 0, OF_HAPILOT]),
        _ => false,
    };
    ours.then_some(if kind.is_multiple_of(8) { Happened::Added } else { Happened::Removed })
}
