//! Acts: the three pipes to a program that runs. Nothing here waits for the program.

use std::io;
use std::mem::take;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

const PIECE: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Pipes {
    input: Option<OwnedFd>,
    left: Vec<u8>,
    pub(super) output: Stream,
    pub(super) words: Stream,
}

/// What the program says: the beginning is kept, the rest is read and dropped.
#[derive(Debug)]
pub(super) struct Stream {
    from: Option<OwnedFd>,
    most: usize,
    pub(super) taken: Vec<u8>,
    pub(super) cut: bool,
}

impl Pipes {
    pub(super) fn of(child: &mut Child, input: &[u8], most: usize) -> Self {
        Self {
            input: child.stdin.take().and_then(|pipe| without_waiting(pipe.into())),
            left: input.to_vec(),
            output: Stream::new(child.stdout.take().map(OwnedFd::from), most),
            words: Stream::new(child.stderr.take().map(OwnedFd::from), most),
        }
    }

    /// Whether more may be said.
    pub(super) fn are_open(&self) -> bool {
        self.output.from.is_some() || self.words.from.is_some()
    }

    /// What goes through at once, but one piece at most: a flood must not delay the deadline.
    pub(super) fn flow(&mut self) {
        self.feed();
        self.output.take_a_piece();
        self.words.take_a_piece();
    }

    fn feed(&mut self) {
        let Some(input) = &self.input else { return };
        match rustix::io::write(input, &self.left) {
            Ok(written) => drop(self.left.drain(..written)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A program that reads nothing is judged by its status.
            Err(_) => self.left.clear(),
        }
        if self.left.is_empty() {
            // Closed, it is the end of the input.
            self.input = None;
        }
    }

    /// Until something can flow, or the process behind `pidfd` has ended, which is the answer.
    pub(super) fn wait(&self, pidfd: Option<&OwnedFd>, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut all: Vec<_> = pidfd.map(|fd| PollFd::new(fd, PollFlags::IN)).into_iter().collect();
        all.extend(self.input.iter().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        let outputs = self.output.from.iter().chain(&self.words.from);
        all.extend(outputs.map(|fd| PollFd::new(fd, PollFlags::IN)));
        match poll(&mut all, Some(&limit)) {
            Ok(_) => Ok(pidfd.is_some() && !all[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Stream {
    fn new(from: Option<OwnedFd>, most: usize) -> Self {
        Self { from: from.and_then(without_waiting), most, taken: Vec::new(), cut: false }
    }

    fn take_a_piece(&mut self) {
        let Some(from) = &self.from else { return };
        let mut piece = [0; PIECE];
        match rustix::io::read(from.as_fd(), &mut piece[..]) {
            Ok(0) => self.from = None,
            Ok(count) => {
                let room = self.most.saturating_sub(self.taken.len());
                self.cut |= count > room;
                self.taken.extend_from_slice(&piece[..count.min(room)]);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => drop(take(&mut self.from)),
        }
    }
}

/// `None`: it cannot be used, and is closed.
fn without_waiting(pipe: OwnedFd) -> Option<OwnedFd> {
    rustix::io::ioctl_fionbio(&pipe, true).ok().map(|()| pipe)
}
