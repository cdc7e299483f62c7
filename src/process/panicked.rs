//! A panic as an error, where something is to be taken back or to go on after it.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::Result;
use futures_util::FutureExt;

/// What is the matter is on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hapilot panicked, which is a bug of its own")
    }
}

impl std::error::Error for Panicked {}

pub fn caught<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(failed)
}

pub async fn caught_within<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(future).catch_unwind().await.unwrap_or_else(failed)
}

fn failed<T>(_: Box<dyn Any + Send>) -> Result<T> {
    Err(Panicked.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_what_went_well_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let call = |fine: bool| {
            assert!(fine, "on purpose");
            Ok(1)
        };
        assert!(caught(|| call(false)).unwrap_err().is::<Panicked>());
        assert!(
            runtime.block_on(caught_within(async { call(false) })).unwrap_err().is::<Panicked>()
        );
        assert_eq!(caught(|| call(true)).unwrap(), 1);
        assert_eq!(runtime.block_on(caught_within(async { call(true) })).unwrap(), 1);
    }
}
