//! Acts: starts threads, and is the only file that does. A thread that cannot be had is an error: std's
//! own `spawn` panics for it, and a panic of ours must not end a HAProxy that serves.

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

pub fn start<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).spawn(work)
}

/// One that ends before its scope does.
pub fn start_in<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work)
}
