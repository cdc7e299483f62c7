//! Acts: the one subscription to signals, and what each of them means.
//!
//! Signals that the kernel raises for our own faults (SEGV and the like) are left alone.

use anyhow::{Context, Result};
use futures_util::StreamExt;
use signal_hook::consts::{
    SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2,
};
use signal_hook_tokio::SignalsInfo;

use super::lifecycle::{Event, Stop};
use crate::fault::{self, Point};

pub struct Signals(SignalsInfo);

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signals")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Some child, ours or an orphan's, has ended.
    Child,
    /// The signal's name and what it asks for.
    Wish(&'static str, Event),
}

impl Signals {
    /// From here on no signal of ours ends the process.
    pub fn subscribe() -> Result<Self> {
        let ours = [SIGHUP, SIGUSR2, SIGTERM, SIGUSR1, SIGINT, SIGQUIT, SIGTTOU, SIGTTIN, SIGCHLD];
        let subscribed = fault::at(Point::Signals).and_then(|()| SignalsInfo::new(ours));
        subscribed.map(Self).context("subscribe to signals")
    }

    pub async fn next(&mut self) -> Heard {
        loop {
            match self.0.next().await {
                Some(signal) => {
                    if let Some(heard) = meaning(signal) {
                        return heard;
                    }
                }
                // Only after the handle was closed, which nobody does.
                None => std::future::pending().await,
            }
        }
    }
}

fn meaning(signal: i32) -> Option<Heard> {
    Some(match signal {
        SIGCHLD => Heard::Child,
        SIGHUP => Heard::Wish("SIGHUP", Event::ReloadWanted),
        SIGUSR2 => Heard::Wish("SIGUSR2", Event::ReloadWanted),
        SIGTERM => Heard::Wish("SIGTERM", Event::StopWanted(Stop::Graceful)),
        SIGUSR1 => Heard::Wish("SIGUSR1", Event::StopWanted(Stop::Graceful)),
        SIGINT => Heard::Wish("SIGINT", Event::StopWanted(Stop::Now)),
        SIGQUIT => Heard::Wish("SIGQUIT", Event::StopWanted(Stop::Now)),
        SIGTTOU => Heard::Wish("SIGTTOU", Event::PauseWanted),
        SIGTTIN => Heard::Wish("SIGTTIN", Event::ResumeWanted),
        _ => return None,
    })
}
