//! Acts: the socket at `/dev/log`, read as fast as HAProxy writes.
//!
//! HAProxy never waits for a log: what finds the socket's queue full is lost and counted by HAProxy
//! itself (`DroppedLogs` of `show info`). The log (see `logging`) never makes us wait either. A
//! `/dev/log` that is somebody else's stays.

use std::fs;
use std::io::ErrorKind;
use std::net::{Shutdown, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{MsgFlags, recv};
use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;

use super::message::Message;
use super::udp::Udp;
use crate::fault::{self, Point};
use crate::process::private::receive_from_all;

/// HAProxy's longest line (`len`) is 65535; a longer datagram is not its own, and is cut.
pub(super) const LONGEST: usize = 64 * 1024;

/// Whose files lie around in `/dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Territory {
    /// A container's: a socket that nobody reads was left by a hapilot that was killed.
    Ours,
    Shared,
}

/// The sockets that are open, by where they are.
#[derive(Debug)]
pub struct Syslog {
    territory: Territory,
    open: Vec<Open>,
    /// Already said of these that they cannot be had.
    told: Vec<PathBuf>,
    udp: Option<Udp>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    /// The directory was not there before.
    made: Option<PathBuf>,
    inode: u64,
    socket: Rc<UnixDatagram>,
    task: JoinHandle<()>,
}

impl Syslog {
    #[must_use]
    pub fn new(territory: Territory) -> Self {
        Self { territory, open: Vec::new(), told: Vec::new(), udp: None }
    }

    /// Over UDP as well; without a socket, as soon as the address is free.
    pub fn receive(&mut self, address: SocketAddr, socket: Option<UdpSocket>) {
        self.udp = Some(Udp::open(address, socket));
    }

    /// Messages that came faster than they were read. Those for `/dev/log` HAProxy counts itself.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.udp.as_ref().map_or(0, Udp::lost)
    }

    /// Opens those that are not open yet; before HAProxy is started, which looks for it when it
    /// has something to say.
    pub fn open(&mut self, places: &[PathBuf]) {
        for path in places {
            if self.open.iter().any(|open| open.path == *path) || self.told.contains(path) {
                continue;
            }
            match Open::at(path, self.territory) {
                Ok(open) => {
                    tracing::info!(path = %path.display(), "HAProxy's syslog messages are printed");
                    self.open.push(open);
                }
                Err(error) => {
                    tracing::warn!("HAProxy's syslog messages are not printed here: {error:#}");
                    self.told.push(path.clone());
                }
            }
        }
    }
}

impl Open {
    fn at(path: &Path, territory: Territory) -> Result<Self> {
        make_way(path, territory)?;
        let directory = path.parent().filter(|directory| !directory.exists());
        if let Some(directory) = directory {
            fs::create_dir(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        // HAProxy may have changed its user by the time that it writes.
        let socket = fault::at(Point::Syslog).and_then(|()| receive_from_all(path));
        let socket = socket.and_then(|socket| {
            socket.set_nonblocking(true)?;
            UnixDatagram::from_std(socket)
        });
        let socket = socket.with_context(|| format!("open {}", path.display()))?;
        let inode = fs::symlink_metadata(path)
            .with_context(|| format!("look at {}", path.display()))?
            .ino();
        let socket = Rc::new(socket);
        let task = tokio::task::spawn_local(read(Rc::clone(&socket)));
        Ok(Self { path: path.to_owned(), made: directory.map(Path::to_owned), inode, socket, task })
    }
}

/// What is there already is somebody's, unless nobody reads it any more.
fn make_way(path: &Path, territory: Territory) -> Result<()> {
    let there = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        there => there.with_context(|| format!("look at {}", path.display()))?,
    };
    let probe = StdDatagram::unbound().context("make a socket")?;
    let dead = there.file_type().is_socket()
        && probe.connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    if !(dead && territory == Territory::Ours) {
        bail!("{} is there already, and stays: its owner gets them", path.display());
    }
    fs::remove_file(path).with_context(|| format!("remove {}", path.display()))
}

impl Drop for Open {
    fn drop(&mut self) {
        self.task.abort();
        // Somebody may have put his own in its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
        if let Some(directory) = &self.made {
            // Not empty any more is not ours any more.
            let _ = fs::remove_dir(directory);
        }
        // HAProxy's last words, and no more: whoever writes on does not delay our end.
        let _ = self.socket.shutdown(Shutdown::Read);
        let mut datagram = vec![0; LONGEST + 1];
        let socket = self.socket.as_raw_fd();
        while let Ok(length) = recv(socket, &mut datagram, MsgFlags::MSG_DONTWAIT) {
            print(&datagram[..length]);
        }
    }
}

async fn read(socket: Rc<UnixDatagram>) {
    let mut datagram = vec![0; LONGEST + 1];
    loop {
        match socket.recv(&mut datagram).await {
            Ok(length) => print(&datagram[..length]),
            Err(error) => return tracing::error!(%error, "no syslog message can be read any more"),
        }
    }
}

pub(super) fn print(datagram: &[u8]) {
    let cut = (datagram.len() > LONGEST).then_some(true);
    let message = Message::read(&datagram[..datagram.len().min(LONGEST)]);
    let (facility, severity) = (message.facility, message.severity_name());
    let (process, text) = (message.process.as_deref(), &message.text);
    match message.severity {
        0..=3 => tracing::error!(target: "haproxy", facility, severity, process, cut, "{text}"),
        4 => tracing::warn!(target: "haproxy", facility, severity, process, cut, "{text}"),
        7 => tracing::debug!(target: "haproxy", facility, severity, process, cut, "{text}"),
        _ => tracing::info!(target: "haproxy", facility, severity, process, cut, "{text}"),
    }
}
