//! `net.ipv4.tcp_migrate_req=1` for as long as it takes (Linux 5.14).
//!
//! The kernel asks for it at two moments: when a listener is closed, for what waits in its queue,
//! and when a handshake that began with it ends. Only one instance at a time may write it, so the
//! set-up lock is held meanwhile. The former value is in the guard's chain before the sysctl is
//! written, for the sweep.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tracing::{debug, warn};

use crate::host::barrier::{Barrier, Site};
use crate::host::lease::SetupLock;
use crate::host::record::Migration;
use crate::host::sysctl::{self, MIGRATE};

/// Another instance that sets up or tears down takes some 50 ms.
const LOCK_LIMIT: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Migrate {
    /// `None` where it was 1 already.
    former: Option<u8>,
    note: Option<Barrier>,
    _lock: Option<SetupLock>,
}

/// Whether this host does it already, or lets us.
#[must_use]
pub fn migrates() -> bool {
    match sysctl::value(MIGRATE) {
        Ok(Some(1)) => true,
        Ok(Some(_)) => sysctl::settable(MIGRATE),
        Ok(None) | Err(_) => false,
    }
}

impl Migrate {
    pub(super) async fn raise(site: &Site) -> Result<Self> {
        let lock = SetupLock::take(LOCK_LIMIT).await?;
        let former = match sysctl::value(MIGRATE)? {
            Some(1) => return Ok(Self { former: None, note: None, _lock: None }),
            Some(former) => former,
            None => bail!("this kernel has no {MIGRATE}"),
        };
        let note = Barrier::note(site, Migration { instance: site.instance, former })
            // Without one a kill leaves it at 1, which harms nobody.
            .inspect_err(|error| debug!("write {MIGRATE} without a note for the sweep: {error:#}"))
            .ok();
        let raised = Self { former: Some(former), note, _lock: Some(lock) };
        sysctl::set(MIGRATE, 1)?;
        Ok(raised)
    }

    pub(super) fn lower(mut self) -> Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> Result<()> {
        let Some(former) = self.former.take() else { return Ok(()) };
        // Not 1 any more: somebody else has decided about it since.
        if sysctl::value(MIGRATE)? == Some(1) {
            sysctl::set(MIGRATE, former).context("lower the guard migrate")?;
        }
        self.note.as_mut().map_or(Ok(()), Barrier::lower)
    }
}

impl Drop for Migrate {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            warn!("{error:#}");
        }
    }
}
