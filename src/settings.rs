//! What the environment asks for. Every mistake is collected and reported at once.
//!
//! Parsing is pure: it takes the variables as values, so tests never touch the process's own.

use std::path::PathBuf;
use std::time::Duration;

use crate::host::mark::{FwMark, Intercept, Port, TableId};

/// `HAPROXY_TRANSPARENT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transparent {
    /// Set up when `CAP_NET_ADMIN` is there; warn when not, fail when the configuration needs it.
    Auto,
    On,
    Off,
}

/// `HAPROXY_FIREWALL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firewall {
    Auto,
    Iptables,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub ports: Vec<Port>,
    /// `HAPROXY_CONFIG`, as given; `None` means the usual places.
    pub config: Option<PathBuf>,
    pub transparent: Transparent,
    pub intercept: Vec<Intercept>,
    pub firewall: Firewall,
    /// `None` means: choose one that is free.
    pub mark: Option<FwMark>,
    /// `None` means: choose one that is free.
    pub table: Option<TableId>,
    /// From SIGTERM to exit, tear-down included.
    pub stop_deadline: Duration,
    pub drain_deadline: Duration,
    pub max_generations: usize,
    pub on_crash: OnCrash,
    pub log_format: LogFormat,
    pub log_level: tracing::level_filters::LevelFilter,
}
