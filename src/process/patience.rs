//! Acts: waits for somebody else, who may be stuck, and no longer than so.

use std::time::Duration;

use anyhow::{Result, bail};

pub async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or_else(|_| bail!("no answer within {}", humantime::format_duration(limit)))
}
