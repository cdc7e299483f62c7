//! Decides: what is said over the control socket, and `status` for people. Values only.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::handover::receipt::{Receipt, Verdict};
use crate::handover::takeover::receipt::Takeover;

pub const SOCKET: &str = "control.sock";
/// A word, or a line for HAProxy, which takes none that is longer; whoever sends more is not one of ours.
pub const LONGEST_REQUEST: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "command")]
pub enum Request {
    Status,
    Reload,
    Stop,
    Health,
    Metrics,
    Sessions,
    /// One command of HAProxy's runtime API, for one that drains and so can be asked by us only.
    Runtime {
        generation: u32,
        words: String,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "answer")]
pub enum Answer {
    Status(Box<Status>),
    Reload(Box<Receipt>),
    /// The connection ends when hapilot does.
    Stopping,
    Health {
        healthy: bool,
        state: String,
    },
    Metrics {
        text: String,
    },
    Sessions {
        generations: Vec<GenerationSessions>,
    },
    /// As HAProxy wrote it.
    Runtime {
        text: String,
    },
    Error {
        message: String,
    },
}

/// Something of ours in the kernel, with the command that a person would type to remove it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostItem {
    pub what: String,
    pub undo: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationStatus {
    pub id: u32,
    pub pid: Option<i32>,
    /// `starting`, `serving` or `draining`.
    pub state: String,
    /// RFC 3339, as all times here.
    pub since: String,
    /// Connections of clients; `null` where the kernel does not let us look.
    pub connections: Option<u64>,
    /// In seconds, where they could not be counted anew within the time for an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_age_s: Option<u64>,
    /// When it will be ended.
    pub deadline: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// `GENERATION/ID`, for HAProxy's own may be that of another one's session as well.
    pub id: String,
    pub client: String,
    pub frontend: String,
    /// `backend/server`, once there is one.
    pub server: Option<String>,
    pub age_s: u64,
    /// Since data last came from the client or went to it; `null` where the kernel does not know him.
    pub idle_s: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationSessions {
    pub generation: GenerationStatus,
    pub count: usize,
    /// The oldest first.
    pub oldest: Vec<SessionStatus>,
    /// Why they are not known.
    pub unknown: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub address: String,
    /// The socket is the very one that the last generation had.
    pub shared: bool,
}

/// A receipt in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    pub at: String,
    pub verdict: Verdict,
    pub told: String,
}

/// What will be put back if HAProxy dies now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStatus {
    pub at: String,
    /// Servers with a drain, maintenance or weight set by hand.
    pub servers: usize,
    /// Of stick tables.
    pub entries: usize,
    /// What is not saved, and why.
    pub left_out: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub instance: String,
    pub version: String,
    pub haproxy_version: String,
    /// `starting`, `taking-over`, `serving`, `reloading`, `recovering`, `relieved`, `stopping`.
    pub state: String,
    pub paused: bool,
    pub since: String,
    pub generations: Vec<GenerationStatus>,
    pub listeners: Vec<ListenerStatus>,
    /// Of the configuration that is served, and of this host.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// At the same addresses, on sockets of their own.
    #[serde(default)]
    pub others_listening: Vec<OtherListener>,
    pub last_reload: Option<Receipt>,
    /// The last several, the last first.
    #[serde(default)]
    pub reloads: Vec<ReloadStatus>,
    /// How we relieved others, and how far those are.
    pub last_takeover: Option<Takeover>,
    pub crashes: u32,
    pub saved: Option<SavedStatus>,
    pub host: Vec<HostItem>,
    /// Descriptors that hapilot was started with and the configuration names.
    #[serde(default)]
    pub inherited: Vec<String>,
}

/// A socket of another process at an address where this HAProxy listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherListener {
    pub address: String,
    /// `None` where that process cannot be seen, as in another container.
    pub pid: Option<i32>,
    pub name: Option<String>,
    /// That opened it.
    pub user: Option<u32>,
    pub inode: u64,
}

impl fmt::Display for OtherListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by ", self.address)?;
        match (self.pid, &self.name) {
            (Some(pid), Some(name)) => write!(f, "process {pid} ({name})")?,
            _ => write!(f, "a process that is not visible from here")?,
        }
        if let Some(user) = self.user {
            write!(f, " of user {user}")?;
        }
        write!(f, ", socket inode {}", self.inode)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paused = if self.paused { ", paused" } else { "" };
        writeln!(f, "{}{paused} since {}", self.state, self.since)?;
        writeln!(
            f,
            "hapilot {} instance {}, HAProxy {}, {} crashes",
            self.version, self.instance, self.haproxy_version, self.crashes
        )?;
        for generation in &self.generations {
            writeln!(f, "  {generation}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        heading(f, "listeners", self.listeners.is_empty())?;
        for listener in &self.listeners {
            let shared = if listener.shared { "  (handed over)" } else { "" };
            writeln!(f, "  {}{shared}", listener.address)?;
        }
        if !self.others_listening.is_empty() {
            writeln!(f, "other processes that listen there too, and get a share of the clients:")?;
        }
        for other in &self.others_listening {
            writeln!(f, "  {other}")?;
        }
        if !self.inherited.is_empty() {
            writeln!(f, "inherited: {}", self.inherited.join(", "))?;
        }
        heading(f, "reloads, the last first", self.reloads.is_empty())?;
        for reload in &self.reloads {
            writeln!(f, "  {}", reload.told)?;
        }
        if let Some(takeover) = &self.last_takeover {
            writeln!(f, "take-over: {takeover}")?;
        }
        if let Some(SavedStatus { at, servers, entries, left_out }) = &self.saved {
            writeln!(f, "saved at {at}: {servers} servers set by hand, {entries} stick entries")?;
            for left_out in left_out {
                writeln!(f, "  without {left_out}")?;
            }
        }
        heading(f, "on the host (and how to remove it by hand)", self.host.is_empty())?;
        for item in &self.host {
            writeln!(f, "  {}\n      {}", item.what, item.undo)?;
        }
        Ok(())
    }
}

fn heading(f: &mut fmt::Formatter<'_>, text: &str, empty: bool) -> fmt::Result {
    writeln!(f, "{text}:{}", if empty { " none" } else { "" })
}

impl fmt::Display for GenerationStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {} {} since {}", self.id, self.state, self.since)?;
        if let Some(pid) = self.pid {
            write!(f, ", pid {pid}")?;
        }
        if let Some(connections) = self.connections {
            write!(f, ", {connections} connection{}", if connections == 1 { "" } else { "s" })?;
        }
        if let Some(age) = self.connections_age_s {
            write!(f, " ({age}s ago)")?;
        }
        if let Some(deadline) = &self.deadline {
            write!(f, ", cut at {deadline} at the latest")?;
        }
        Ok(())
    }
}

impl fmt::Display for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
        let (from, to) = (number(self.from_generation), number(self.to_generation));
        match &self.reason {
            Some(reason) => write!(f, "refused at {}: {reason}", self.at)?,
            None if self.from_generation.is_none() => {
                write!(f, "taken at {}: generation {to}", self.at)?;
            }
            None => write!(f, "taken at {}: generation {from} to {to}", self.at)?,
        }
        if let Some(ready) = self.ready_ms {
            write!(f, ", ready in {ready} ms")?;
        }
        if self.reason.is_none() {
            let listeners = &self.listeners;
            write!(
                f,
                ", listeners {} shared, {} not shared, {} closed, {} opened",
                listeners.shared.len(),
                listeners.not_shared.len(),
                listeners.closed.len(),
                listeners.opened.len()
            )?;
            if let Some(window) = self.window_ms {
                write!(f, ", guard {} for {window} ms", self.guard)?;
                write!(f, " ({} held, {} dropped)", self.held, self.dropped)?;
            }
            let doubts = self.doubts.join("; ");
            if doubts.is_empty() {
                write!(f, "; no new connection was lost")?;
            } else {
                write!(f, "; not shown that no new connection was lost: {doubts}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_word_in_json() {
        let text = serde_json::to_string(&Request::Reload).unwrap();
        assert_eq!(text, r#"{"command":"reload"}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), Request::Reload);
        assert!(serde_json::from_str::<Request>(r#"{"command":"dance"}"#).is_err());
    }
}
