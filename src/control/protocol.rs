//! Decides: what is said over the control socket, and `status` for people. Values only.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::handover::receipt::Receipt;

pub const SOCKET: &str = "control.sock";
/// A request is a word; whoever sends more is not one of ours.
pub const LONGEST_REQUEST: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "command")]
pub enum Request {
    Status,
    Reload,
    Stop,
    Health,
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
    /// When it will be ended.
    pub deadline: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub address: String,
    /// The socket is the very one that the last generation had.
    pub shared: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub instance: String,
    pub version: String,
    pub haproxy_version: String,
    /// `starting`, `serving`, `reloading`, `recovering`, `stopping`.
    pub state: String,
    pub paused: bool,
    pub since: String,
    pub generations: Vec<GenerationStatus>,
    pub listeners: Vec<ListenerStatus>,
    pub last_reload: Option<Receipt>,
    pub crashes: u32,
    pub host: Vec<HostItem>,
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
        heading(f, "listeners", self.listeners.is_empty())?;
        for listener in &self.listeners {
            let shared = if listener.shared { "  (handed over)" } else { "" };
            writeln!(f, "  {}{shared}", listener.address)?;
        }
        if let Some(receipt) = &self.last_reload {
            writeln!(f, "last reload: {receipt}")?;
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
            write!(f, ", {connections} connections")?;
        }
        if let Some(deadline) = &self.deadline {
            write!(f, ", ends at {deadline}")?;
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
