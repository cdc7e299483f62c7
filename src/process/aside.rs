//! Acts: a call that waits for programs, on a thread of its own, while the loop goes on.

use anyhow::{Context, Result};
use tokio::sync::oneshot;

use super::limits::Refused;
use super::panicked::Panicked;
use super::threads::start;

/// Dropping this future does not cancel the call. The call must time out by itself. An error where
/// there is no thread to be had: then the call was not made. A call that panics is an error too.
pub async fn aside<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    let call = move || {
        // Its reader may not wait for it any more.
        let _ = answer.send(call());
    };
    start("aside", call).map_err(Refused).context("start a thread")?;
    answered.await.map_err(|_| Panicked.into())
}

/// For such a call that has something to await: it does so on its own thread.
pub fn awaited<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("start an event loop")?.block_on(future))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn others_go_on_meanwhile() {
        let (go_on, wait) = mpsc::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answer = runtime.block_on(async {
            let call = aside(move || wait.recv().is_ok());
            let meanwhile = async move { go_on.send(()).unwrap() };
            tokio::join!(call, meanwhile).0
        });
        assert!(answer.unwrap());
    }

    #[test]
    fn a_panic_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let call = aside(|| assert!(std::hint::black_box(false), "on purpose"));
        assert!(runtime.block_on(call).is_err());
    }
}
