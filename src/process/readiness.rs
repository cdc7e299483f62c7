//! Acts: waits until a descriptor takes bytes again, or has some.

#![allow(
    unsafe_code,
    reason = "tokio cannot know that the descriptor stays open; here it is owned"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// An error for what cannot be watched, such as a regular file.
pub async fn writable(fd: OwnedFd) -> io::Result<()> {
    watch(fd)?.writable().await.map(drop)
}

pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: `AsyncFd` owns the descriptor and closes it only after it has deregistered it.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
