//! Acts: starts threads, and is the only file that does. A thread that cannot be had is an error: std's
//! own `spawn` panics for it, and a panic of ours must not end a HAProxy that serves.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle, scope};

use crate::fault::{self, Point};

pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    fault::at(Point::Thread)?;
    Builder::new().name(name.to_owned()).spawn(work)
}

/// One that ends before its scope does.
pub fn start_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    fault::at(Point::Thread)?;
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work)
}

/// Whether so many threads and processes more can be had now.
pub fn ensure_room(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    scope(|scope| {
        // As long as this one is held, all of them are there.
        let closed = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = || drop(gate.lock());
        let started: io::Result<Vec<_>> =
            (0..count).map(|_| Builder::new().spawn_scoped(scope, wait)).collect();
        drop(closed);
        // Joined one by one: only then the kernel counts them no more.
        started?.into_iter().for_each(|thread| drop(thread.join()));
        Ok(())
    })
}
