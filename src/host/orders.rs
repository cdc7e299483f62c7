//! Acts: what is to be done with our part of the host, one order after the other, beside the loop.
//!
//! Each order runs on a thread of its own, which ends with it: programs and the kernel may keep that
//! thread waiting. An order that is not over in time is reported as such. It may still go on, and the
//! next order waits for it, but no longer than until its own end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout_at};

use super::applied::Failure;
use super::backend::Backend;
use super::debts::Debts;
use super::facade::{Host, Owned, TearDownError};
use super::instance::Instance;
use super::step::Undo;
use super::watch::Watch;
use crate::process::aside::{aside, awaited};

/// An order keeps to its end by itself, unless the kernel does not let it go.
const SLACK: Duration = Duration::from_millis(50);
/// Between two attempts to get a thread for the tear-down.
const AGAIN: Duration = Duration::from_millis(20);

/// The one that has the host. Clones give orders to the same one.
#[derive(Clone, Debug)]
pub struct Orders {
    host: Arc<Mutex<Option<Host>>>,
    /// What is in force, as the last order left it.
    undos: Rc<RefCell<Vec<Undo>>>,
    /// `None`: nothing is set up on the host.
    identity: Option<Identity>,
}

/// By what others know what is ours.
#[derive(Clone, Debug)]
struct Identity {
    instance: Instance,
    backend: Option<Backend>,
    echoes: Vec<String>,
}

/// What a tear-down came to.
#[derive(Debug, Default)]
pub struct TornDown {
    pub failures: Vec<Failure>,
    /// An order is still not over: what it has done is not known.
    pub hangs: bool,
}

impl Orders {
    #[must_use]
    pub fn of(host: Option<Host>) -> Self {
        let undos = host.iter().flat_map(Host::undos).cloned().collect();
        let identity = host.as_ref().map(|host| Identity {
            instance: host.instance(),
            backend: host.backend(),
            echoes: host.echoes(),
        });
        Self { host: Arc::new(Mutex::new(host)), undos: Rc::new(RefCell::new(undos)), identity }
    }

    /// Whether anything is set up.
    #[must_use]
    pub fn has_host(&self) -> bool {
        self.identity.is_some()
    }

    /// For `hapilot status`.
    #[must_use]
    pub fn owned(&self) -> Vec<Owned> {
        self.undos.borrow().iter().map(Owned::from).collect()
    }

    /// Hears when something of it is removed. `None`: there is nothing.
    pub fn watch(&self) -> Result<Option<Watch>> {
        let Some(Identity { instance, backend, .. }) = &self.identity else { return Ok(None) };
        let backend = backend.ok_or_else(|| anyhow!("no firewall works here"))?;
        Watch::open(*instance, backend).map(Some)
    }

    /// How the kernel calls the programs by which something is put back.
    #[must_use]
    pub fn echoes(&self) -> Vec<String> {
        self.identity.as_ref().map(|identity| identity.echoes.clone()).unwrap_or_default()
    }

    pub async fn intercept_on(&self, until: Instant) -> Result<()> {
        let on = async move |host: &mut Host| host.intercept_on(until).await;
        self.carry_out(until, on).await?.unwrap_or(Ok(()))
    }

    pub async fn intercept_off(&self, until: Instant) -> Result<()> {
        let off = async move |host: &mut Host| host.intercept_off(until).await;
        Ok(self.carry_out(until, off).await?.unwrap_or(Ok(()))?)
    }

    pub async fn put_back(&self, until: Instant) -> Result<Vec<String>> {
        let put_back = async move |host: &mut Host| host.put_back(until).await;
        self.carry_out(until, put_back).await?.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// All of it and the debts, over by `until`. Of that the debts have a fourth, should there be any:
    /// rules of a guard harm for a moment only, so they come last, but their turn shall come.
    pub async fn tear_down(&self, until: Instant, debts: Debts) -> TornDown {
        let left = until.saturating_duration_since(Instant::now());
        let kept = if debts.is_empty() { Duration::ZERO } else { left / 4 };
        let host_until = until.checked_sub(kept).unwrap_or(until);
        let (torn_down, hangs) = match self.tear_down_host(host_until).await {
            Ok(torn_down) => (torn_down, false),
            Err(error) => (Err(TearDownError(self.all_failed(&error))), true),
        };
        let mut failures = torn_down.err().map(|TearDownError(all)| all).unwrap_or_default();
        if !debts.is_empty() {
            let pay = {
                let debts = debts.clone();
                move || awaited(debts.pay(until))
            };
            match timeout_at((until + SLACK).into(), aside(pay)).await {
                Ok(Ok(Ok(unpaid))) => failures.extend(unpaid),
                Ok(Ok(Err(error)) | Err(error)) => failures.extend(debts.unpaid(&error)),
                Err(_) => {
                    failures.extend(debts.unpaid(&anyhow!("it is not over in time")));
                    return TornDown { failures, hangs: true };
                }
            }
        }
        TornDown { failures, hangs }
    }

    async fn tear_down_host(&self, until: Instant) -> Result<Result<(), TearDownError>> {
        loop {
            let order = async move |host: &mut Host| host.tear_down(until).await;
            match self.carry_out(until, order).await {
                Ok(torn_down) => return Ok(torn_down.unwrap_or(Ok(()))),
                // A thread or a descriptor that is not to be had now may be free in a moment.
                Err(error) if error.is::<std::io::Error>() && Instant::now() < until => {
                    sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn all_failed(&self, error: &anyhow::Error) -> Vec<Failure> {
        let undos = self.undos.borrow();
        let failed = |undo: &Undo| Failure { undo: undo.clone(), error: anyhow!("{error:#}") };
        undos.iter().rev().map(failed).collect()
    }

    /// `None`: there is no host.
    async fn carry_out<T: Send + 'static>(
        &self,
        until: Instant,
        order: impl AsyncFnOnce(&mut Host) -> T + Send + 'static,
    ) -> Result<Option<T>> {
        if !self.has_host() {
            return Ok(None);
        }
        // Whoever asks first has the first turn.
        let turn = Arc::clone(&self.host).lock_owned();
        let carried_out = async {
            let mut host = turn.await;
            let done = aside(move || {
                let Some(host) = host.as_mut() else { return Ok(None) };
                let answer = awaited(order(host))?;
                let undos: Vec<Undo> = host.undos().cloned().collect();
                Ok(Some((answer, undos)))
            });
            anyhow::Ok(done.await.flatten()?.map(|(answer, undos)| {
                self.undos.replace(undos);
                answer
            }))
        };
        match timeout_at((until + SLACK).into(), carried_out).await {
            Ok(answer) => answer.context("change the host"),
            Err(_) => bail!("change the host: it is not over in time, and goes on"),
        }
    }
}
