//! Decides: what two hapilots say to each other over the lease's abstract socket. Values only.
//!
//! Every connection begins with an introduction (`host/introduction`). The successor says hello, asks the other one to hold still (`reserve`), starts its own HAProxy
//! with the listeners that it gets by another connection (`_getsocks`, as HAProxy would ask), carries
//! over what was set by hand and counted (`_runtime` leads a connection to HAProxy's runtime API), and
//! asks it to `retire`. One JSON object a line. A successor that ends the connection before `retire`, or says nothing for
//! `SILENCE`, does not take over, and the other one goes on as before.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::host::introduction::{PROTOCOL, stranger};

/// How often a successor says `still`, and how long it may fail to: its loop may be held up, and its
/// container may be paused.
pub const STILL: Duration = Duration::from_secs(2);
pub const SILENCE: Duration = Duration::from_secs(15);
pub const LONGEST_LINE: usize = 128 * 1024;

/// What another one's `state` says: that its HAProxy lives, that it serves or soon will again, that
/// it is about to leave.
pub const HAS_HAPROXY: [&str; 4] = ["starting", "serving", "reloading", "taking-over"];
pub const SERVES: [&str; 4] = ["serving", "taking-over", "reloading", "recovering"];
pub const LEAVES: [&str; 3] = ["stopping", "stopped", "relieved"];

/// One run of hapilot, by what it can be recognised by after it has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    pub instance: String,
    /// The container's own, where it can be known: it is the same after a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

impl Name {
    /// Whether both are the same run, or runs of the same container.
    #[must_use]
    pub fn is_of(&self, other: &Self) -> bool {
        self.instance == other.instance
            || (self.container.is_some() && self.container == other.container)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    pub protocol: u32,
    #[serde(flatten)]
    pub name: Name,
    pub version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "say")]
pub enum Request {
    Hello(Caller),
    /// Hold still: no reload, no pause. For as long as this connection lasts and `still` comes.
    Reserve,
    /// The successor is at work. One that is paused cannot say so.
    Still,
    /// The successor serves.
    Retire,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    #[serde(flatten)]
    pub name: Name,
    pub version: String,
    pub haproxy_version: String,
    /// As in the status.
    pub state: String,
    /// Nanoseconds from the host's boot to this one's start. The younger one relieves.
    pub started: u64,
    /// When its container was made, where that can be known: nanoseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<u64>,
    /// With `HAPROXY_PIDS=auto`: whoever was here before it is relieved.
    #[serde(default)]
    pub relieves_all: bool,
    /// It has set up transparent proxying, for everybody on this network.
    #[serde(default)]
    pub transparent: bool,
    /// Whom it relieved, and whom those had relieved, newest first.
    pub lineage: Vec<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "answer")]
pub enum Answer {
    Hello(Hello),
    Refused {
        reason: String,
        /// The successor that came first, if that is why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// It holds still. A paused one has nobody waiting at its listeners and hands none over.
    Reserved {
        paused: bool,
    },
    /// Relieved, with so many sessions to finish (`null`: not known).
    Draining {
        sessions: Option<u64>,
    },
    /// All that it had on the host is gone, and now it is.
    Ended {
        status: u8,
    },
}

/// Whom a successor stands for: those whom it relieves, all whom they stood for, and for whom it
/// stood `before` it was started again. Long gone ones are forgotten: nobody keeps hundreds of
/// containers to be restarted.
#[must_use]
pub fn lineage(relieved: &[Hello], before: &[Name]) -> Vec<Name> {
    const MOST: usize = 400;
    let mut names: Vec<Name> = relieved.iter().map(|hello| hello.name.clone()).collect();
    for name in relieved.iter().flat_map(|hello| &hello.lineage).chain(before) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names.truncate(MOST);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(instance: &str, container: Option<&str>) -> Name {
        Name { instance: instance.to_owned(), container: container.map(str::to_owned) }
    }

    fn hello(instance: &str, lineage: &[Name]) -> Hello {
        Hello {
            protocol: PROTOCOL,
            name: name(instance, None),
            version: String::new(),
            haproxy_version: String::new(),
            state: "serving".to_owned(),
            started: 1,
            created: None,
            relieves_all: false,
            transparent: false,
            lineage: lineage.to_vec(),
        }
    }

    #[test]
    fn what_is_said_is_one_flat_object() {
        let caller = Caller { protocol: 1, name: name("0a", None), version: "1.2.3".to_owned() };
        let text = serde_json::to_string(&Request::Hello(caller.clone())).unwrap();
        assert_eq!(text, r#"{"say":"hello","protocol":1,"instance":"0a","version":"1.2.3"}"#);
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), Request::Hello(caller));
        let answer = Answer::Hello(hello("0b", &[name("0a", Some("c"))]));
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), answer);
        assert_eq!(serde_json::to_string(&Request::Retire).unwrap(), r#"{"say":"retire"}"#);
    }

    #[test]
    fn what_a_later_version_says_more_is_no_reason_not_to_understand_it() {
        let text = r#"{"say":"hello","protocol":9,"instance":"0a","version":"2","more":[1]}"#;
        let Request::Hello(caller) = serde_json::from_str(text).unwrap() else { panic!() };
        assert!(stranger(caller.protocol).is_some() && stranger(PROTOCOL).is_none());
    }

    #[test]
    fn a_successor_stands_for_all_who_came_before() {
        let (a, b) = (name("a", Some("1")), name("b", None));
        let of_b = Hello { name: b.clone(), ..hello("b", std::slice::from_ref(&a)) };
        assert_eq!(lineage(&[of_b], &[]), [b.clone(), a.clone()]);
        let twice = [hello("c", std::slice::from_ref(&a)), hello("d", std::slice::from_ref(&a))];
        assert_eq!(lineage(&twice, &[]), [name("c", None), name("d", None), a.clone()]);
        assert_eq!(
            lineage(&[hello("c", &[])], std::slice::from_ref(&a)),
            [name("c", None), a.clone()]
        );
        assert!(a.is_of(&name("z", Some("1"))) && !b.is_of(&name("z", None)));
    }
}
