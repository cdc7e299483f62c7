//! Decides: what the environment asks for. Every mistake is collected and reported at once.
//!
//! `names` lists the variables, `value` parses one text, `variables` puts them together, `mistake`
//! is what an operator reads. All of it is pure: the variables come in as values, so tests never
//! touch the process's own, and the looks at the file system are handed in as functions.

mod mistake;
mod names;
mod value;
mod variables;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use mistake::{Mistake, Mistakes, Warning};

use crate::host::backend::Firewall;
use crate::host::mark::{FwMark, Intercept, Port, TableId};
use crate::host::secret::Secret;

/// `HAPROXY_TRANSPARENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transparent {
    /// Set up when `CAP_NET_ADMIN` is there; warn when not, fail when the configuration needs it.
    Auto,
    On,
    Off,
}

/// `HAPROXY_RELOAD_GUARD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReloadGuard {
    /// The first that this host allows, and only for what is not shared.
    Auto,
    /// On every reload, for every port.
    Hold,
    /// On every reload, for every port.
    Drop,
    None,
}

/// `HAPROXY_ON_CRASH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCrash {
    Restart,
    Exit,
}

/// `HAPROXY_LOG_FORMAT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// `HAPROXY_WATCH`: whether a change of the configuration is a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    On,
    Off,
}

/// `HAPROXY_TAKEOVER`: whether a successor may take over from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    On,
    Off,
}

/// `HAPROXY_PIDS`: whom to take over from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Predecessors {
    None,
    /// Every one that can be found in our network namespace.
    Auto,
    Pids(Vec<i32>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub ports: Vec<Port>,
    pub pids: Predecessors,
    pub takeover: Takeover,
    /// `HAPROXY_TAKEOVER_SECRET_FILE`, read.
    pub secret: Option<Secret>,
    /// `HAPROXY_CONFIG`, as given; `None` means the usual places.
    pub config: Option<PathBuf>,
    pub transparent: Transparent,
    pub intercept: Vec<Intercept>,
    pub firewall: Firewall,
    /// `None` means: choose one that is free.
    pub mark: Option<FwMark>,
    /// `None` means: choose one that is free.
    pub table: Option<TableId>,
    pub reload_guard: ReloadGuard,
    /// From SIGTERM to exit, tear-down included.
    pub stop_deadline: Duration,
    pub drain_deadline: Duration,
    pub max_generations: usize,
    pub on_crash: OnCrash,
    pub log_format: LogFormat,
    pub log_level: tracing::level_filters::LevelFilter,
    /// Where Prometheus is answered.
    pub metrics: Option<SocketAddr>,
    pub watch: Watch,
    /// Where syslog messages are received over UDP.
    pub syslog: Option<SocketAddr>,
}
