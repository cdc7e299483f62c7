//! Acts: holds a duplicate of every listening socket of the serving generation.
//!
//! A kernel socket with its queue and its half-open connections lives for as long as somebody holds
//! it. So a HAProxy that dies refuses nobody: clients wait in the queue until the next generation
//! has fetched the socket from here, as it would from the old HAProxy (`-x`). Before HAProxy is told
//! to stop, the keeper lets go, or the kernel would go on queueing clients for nobody.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg, shutdown,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::compare::Seen;
use super::fetch::Listener;
use super::wire;
use crate::fault::{self, Point};
use crate::process::patience::within;
use crate::process::visitors::{self, Heard, Visitors, accepted, refusal};

pub const SOCKET: &str = "keeper.sock";
/// One generation starts at a time; the rest is room for strangers.
const MOST_AT_ONCE: usize = 100;
/// HAProxy itself gives up after a second without an answer.
const LIMIT: Duration = Duration::from_secs(2);

/// A transfer that is under way keeps what it began with.
type Kept = Rc<RefCell<Rc<[Listener]>>>;

#[derive(Debug)]
pub struct Keeper {
    path: PathBuf,
    kept: Kept,
    /// `None` once it is closed.
    server: Option<JoinHandle<()>>,
}

impl Keeper {
    pub fn open(path: &Path) -> Result<Self> {
        if let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("remove {}", path.display()));
        }
        let listener = fault::at(Point::KeeperSocket).and_then(|()| visitors::open(path));
        let listener = listener.with_context(|| format!("open {}", path.display()))?;
        let kept = Kept::new(RefCell::new(Rc::new([])));
        let server = tokio::task::spawn_local(serve(listener, Rc::clone(&kept)));
        Ok(Self { path: path.to_owned(), kept, server: Some(server) })
    }

    /// Where a new generation asks (`-x`); `None` while there is nothing to be had.
    #[must_use]
    pub fn source(&self) -> Option<&Path> {
        (!self.kept.borrow().is_empty()).then_some(&*self.path)
    }

    /// The same for others than a HAProxy of ours.
    #[must_use]
    pub fn offer(&self) -> Offer {
        Offer(Rc::clone(&self.kept))
    }

    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.kept.borrow().iter().map(Listener::seen).collect()
    }

    /// Holds exactly these from now on. What a new configuration dropped is really closed.
    pub fn hold(&self, listeners: Vec<Listener>) {
        if self.server.is_some() {
            *self.kept.borrow_mut() = listeners.into();
        }
    }

    /// Takes these out of the kernel's hands for everybody who holds them, for a HAProxy that does
    /// not: as long as they listen, the kernel goes on giving them their share of the clients.
    pub fn shut_down(&self, inodes: &BTreeSet<u64>) {
        for listener in self.kept.borrow().iter().filter(|kept| inodes.contains(&kept.inode)) {
            if let Err(error) = shutdown(&listener.socket, Shutdown::Both) {
                tracing::warn!(%error, address = listener.address, "could not shut down a listener");
            }
        }
    }

    /// Holds all but these: nobody accepts there any more.
    pub fn let_go(&self, inodes: &BTreeSet<u64>) -> Result<()> {
        let kept = Rc::clone(&self.kept.borrow());
        let left = kept.iter().filter(|listener| !inodes.contains(&listener.inode));
        let left = left.map(Listener::duplicate).collect::<io::Result<Vec<_>>>();
        self.hold(left.context("keep what is left of the listeners")?);
        Ok(())
    }

    /// Lets go of everything, for good.
    pub fn close(&mut self) {
        if let Some(server) = self.server.take() {
            // A transfer that is under way ends with it.
            server.abort();
            *self.kept.borrow_mut() = Rc::new([]);
            // Gone already is as good.
            let _ = fault::at(Point::CloseKeeper).and_then(|()| std::fs::remove_file(&self.path));
        }
    }
}

/// What a keeper holds, whenever it is asked.
#[derive(Clone, Debug)]
pub struct Offer(Kept);

impl Offer {
    /// The peer has been looked at, and has sent its request.
    pub async fn give(&self, stream: &mut UnixStream) -> Result<()> {
        let kept = Rc::clone(&self.0.borrow());
        within(LIMIT, give(stream, &kept)).await
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
    }
}

async fn serve(listener: UnixListener, kept: Kept) {
    let mut visitors = Visitors::new(MOST_AT_ONCE);
    loop {
        let stream = accepted("for listeners", || listener.accept()).await;
        let kept = Rc::clone(&kept.borrow());
        visitors.admit(async move |heard: Heard| visit(stream, &kept, &heard).await).await;
    }
}

async fn visit(stream: UnixStream, kept: &[Listener], heard: &Heard) {
    match within(LIMIT, transfer(stream, kept, heard)).await {
        Ok(()) => {}
        Err(error) if heard.is_noted() => {
            tracing::warn!("listeners were not handed over: {error:#}");
        }
        // No HAProxy: whoever it is shall not fill the log either.
        Err(error) => tracing::debug!("no listeners for a stranger: {error:#}"),
    }
}

async fn transfer(mut stream: UnixStream, kept: &[Listener], heard: &Heard) -> Result<()> {
    if let Some(reason) = refusal(&stream)? {
        bail!(reason);
    }
    let mut request = [0; wire::REQUEST.len()];
    stream.read_exact(&mut request).await.context("read the request")?;
    ensure!(request == wire::REQUEST, "{:?} is no request", String::from_utf8_lossy(&request));
    heard.note();
    give(&mut stream, kept).await
}

async fn give(stream: &mut UnixStream, kept: &[Listener]) -> Result<()> {
    fault::within(Point::KeeperGives).await?;
    let count = u32::try_from(kept.len()).context("count the listeners")?;
    stream.write_all(&count.to_ne_bytes()).await.context("send their number")?;
    for batch in kept.chunks(wire::MOST_IN_ONE) {
        send(stream, batch).await.context("send listeners")?;
        let mut acknowledgement = wire::ACKNOWLEDGEMENT;
        stream.read_exact(&mut acknowledgement).await.context("wait for them to be taken")?;
    }
    Ok(())
}

async fn send(stream: &UnixStream, batch: &[Listener]) -> io::Result<()> {
    let bytes = wire::describe(batch.iter().map(|listener| &listener.description));
    let sockets: Vec<BorrowedFd<'_>> = batch.iter().map(|l| l.socket.as_fd()).collect();
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
            let bytes = [io::IoSlice::new(&bytes)];
            Ok(sendmsg(stream.as_fd(), &bytes, &mut ancillary, SendFlags::NOSIGNAL)?)
        })
        .await?;
    // Descriptors go with the first byte; the rest may need to wait.
    let mut rest = &bytes[sent..];
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::fetch::{describe, listeners};
    use super::super::wire::Description;
    use super::*;

    fn listener(interface: Option<&str>) -> Listener {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let interface = interface.map(str::to_owned);
        describe(socket.into(), Description { namespace: None, interface }).unwrap()
    }

    async fn in_scratch<T>(test: impl AsyncFnOnce(PathBuf) -> T) -> T {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET);
        tokio::task::LocalSet::new().run_until(test(path)).await
    }

    /// Our own two sides of the protocol, with more than one message holds.
    #[tokio::test(flavor = "current_thread")]
    async fn what_is_held_is_handed_over_whole_and_in_order() {
        in_scratch(async |path: PathBuf| {
            let keeper = Keeper::open(&path).unwrap();
            let all: Vec<_> = (0..wire::MOST_IN_ONE + 9)
                .map(|n| listener((n % 7 == 0).then_some("eth0")))
                .collect();
            keeper.hold(all);
            let fetched = listeners(&path).await.unwrap();
            let fetched: Vec<_> = fetched.iter().map(Listener::seen).collect();
            assert_eq!(fetched, keeper.seen());
            assert!(fetched[0].address.ends_with(" interface eth0"), "{}", fetched[0].address);
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_no_longer_held_is_closed() {
        in_scratch(async |path: PathBuf| {
            let mut keeper = Keeper::open(&path).unwrap();
            let (kept, dropped) = (listener(None), listener(None));
            let (kept_at, dropped_at) = (kept.address.clone(), dropped.address.clone());
            let again = Listener { socket: kept.socket.try_clone().unwrap(), ..listener(None) };
            keeper.hold(vec![kept, dropped]);
            keeper.hold(vec![again]);
            let connects = |address: &str| std::net::TcpStream::connect(address).is_ok();
            assert!(connects(&kept_at) && !connects(&dropped_at));
            keeper.close();
            assert!(!connects(&kept_at) && !path.exists() && keeper.source().is_none());
            keeper.hold(vec![listener(None)]);
            assert!(keeper.source().is_none(), "closed for good");
        })
        .await;
    }

    /// HAProxy would start without its listeners after a second.
    #[tokio::test(flavor = "current_thread")]
    async fn silent_ones_hold_up_nobody() {
        in_scratch(async |path: PathBuf| {
            let keeper = Keeper::open(&path).unwrap();
            keeper.hold(vec![listener(None)]);
            let mut silent = Vec::new();
            for _ in 0..2 * MOST_AT_ONCE {
                silent.push(UnixStream::connect(&path).await.unwrap());
            }
            let begun = std::time::Instant::now();
            assert_eq!(listeners(&path).await.unwrap().len(), 1);
            assert!(begun.elapsed() < LIMIT / 2, "{:?}", begun.elapsed());
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn garbage_gets_nothing_and_the_next_one_is_served() {
        in_scratch(async |path: PathBuf| {
            let keeper = Keeper::open(&path).unwrap();
            keeper.hold(vec![listener(None)]);
            let mut garbage = UnixStream::connect(&path).await.unwrap();
            garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            // Hung up on, with or without a reset.
            let _ = garbage.read_to_end(&mut answer).await;
            assert!(answer.is_empty());
            assert_eq!(listeners(&path).await.unwrap().len(), 1);
        })
        .await;
    }
}
