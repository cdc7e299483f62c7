//! `net.ipv4.tcp_migrate_req=1` for as long as it takes (Linux 5.14).
//!
//! The kernel asks for it at two moments: when a listener is closed, for what waits in its queue,
//! and when a handshake that began with it ends. Only one instance at a time may write it, and
//! nobody may restore it under one that relies on it (a sweep does, where a guard's owner was
//! killed): so the set-up lock is held meanwhile, whoever made it 1. The former value is in the
//! guard's chain before the sysctl is written, for the sweep.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tracing::{debug, warn};

use crate::host::barrier::{Barrier, Site};
use crate::host::debts::Debts;
use crate::host::lease::SetupLock;
use crate::host::record::Migration;
use crate::host::step::Undo;
use crate::host::sysctl::{self, MIGRATE};

/// Another instance that sets up or tears down takes some 50 ms.
const LOCK_LIMIT: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Migrate {
    /// `None` where it was 1 already.
    former: Option<u8>,
    note: Option<Barrier>,
    debts: Debts,
    _lock: SetupLock,
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
        let debts = site.debts.clone();
        let former = match sysctl::value(MIGRATE)? {
            Some(1) => return Ok(Self { former: None, note: None, debts, _lock: lock }),
            Some(former) => former,
            None => bail!("this kernel has no {MIGRATE}"),
        };
        let note = Barrier::note(site, Migration { instance: site.instance, former })
            .await
            // Without one a kill leaves it at 1, which harms nobody.
            .inspect_err(|error| debug!("write {MIGRATE} without a note for the sweep: {error:#}"))
            .ok();
        debts.owe(&[Undo::RestoreMigration { former }]);
        let raised = Self { former: Some(former), note, debts, _lock: lock };
        if let Err(error) = sysctl::set(MIGRATE, 1) {
            if let Err(more) = raised.lower().await {
                warn!("{more:#}");
            }
            return Err(error);
        }
        Ok(raised)
    }

    pub(super) async fn lower(mut self) -> Result<()> {
        self.restore()?;
        match &mut self.note {
            Some(note) => note.lower().await,
            None => Ok(()),
        }
    }

    fn restore(&mut self) -> Result<()> {
        let Some(former) = self.former else { return Ok(()) };
        // Not 1 any more: somebody else has decided about it since.
        if sysctl::value(MIGRATE)? == Some(1) {
            sysctl::set(MIGRATE, former).context("lower the guard migrate")?;
        }
        self.debts.paid(&[Undo::RestoreMigration { former }]);
        // Until here a drop tries again.
        self.former = None;
        Ok(())
    }
}

impl Drop for Migrate {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            warn!("{error:#}");
        }
    }
}
