//! Decides: which of the hapilots that live here are to be relieved. Values only.
//!
//! Of two that could relieve each other the younger one does, so that a chain always has an end and
//! nobody waits for one who waits for him.

use std::cmp::Reverse;

use super::protocol::{Hello, LEAVES, stranger};
use crate::problem::Problem;
use crate::settings::Predecessors;

/// A hapilot of this network namespace that said hello.
#[derive(Clone, Debug)]
pub struct Seen {
    pub hello: Hello,
    /// Its own PID and those of its children and their children, as far as they are visible to us.
    pub pids: Vec<i32>,
}

#[derive(Debug, Default)]
pub struct Choice {
    /// Indices of those to be relieved, youngest first.
    pub chosen: Vec<usize>,
    /// What is left alone, and why.
    pub notes: Vec<Problem>,
    /// PIDs that belong to no hapilot.
    pub others: Vec<i32>,
}

/// When a hapilot started, and its name for two that started at once.
pub type Age = (u64, String);

#[must_use]
pub fn age(hello: &Hello) -> Age {
    (hello.started, hello.name.instance.clone())
}

#[must_use]
pub fn choose(wanted: &Predecessors, own: &Age, seen: &[Seen]) -> Choice {
    let mut choice = Choice::default();
    let asked: &[i32] = match wanted {
        Predecessors::None => return choice,
        Predecessors::Auto => &[],
        Predecessors::Pids(pids) => pids,
    };
    let of_hapilots = |pid: &i32| seen.iter().any(|seen| seen.pids.contains(pid));
    choice.others = asked.iter().copied().filter(|pid| !of_hapilots(pid)).collect();
    for (at, Seen { hello, pids }) in seen.iter().enumerate() {
        let auto = *wanted == Predecessors::Auto;
        if !auto && !asked.iter().any(|pid| pids.contains(pid)) {
            continue;
        }
        let instance = &hello.name.instance;
        let note = |what: String, mend: &str| Problem::new(what, mend);
        if age(hello) > *own {
            // It does the same, and finds us.
            if !auto {
                choice.notes.push(note(
                    format!("hapilot {instance} started later than we did"),
                    "the younger one relieves: start this one again, or stop the other",
                ));
            }
        } else if let Some(reason) = stranger(hello.protocol) {
            choice.notes.push(note(
                format!("hapilot {instance} ({}) cannot be relieved: {reason}", hello.version),
                "it serves on beside this one: stop it",
            ));
        } else if LEAVES.contains(&hello.state.as_str()) {
            choice.notes.push(note(
                format!("hapilot {instance} is {} already", hello.state),
                "nothing: it ends when its sessions are over",
            ));
        } else {
            choice.chosen.push(at);
        }
    }
    // One that is taking over itself answers when it is done; asking those first whom it relieves
    // would be in its way.
    choice.chosen.sort_by_key(|at| Reverse(age(&seen[*at].hello)));
    choice
}

#[cfg(test)]
mod tests {
    use super::super::protocol::{Name, PROTOCOL};
    use super::*;

    fn seen(instance: &str, started: u64, pids: &[i32]) -> Seen {
        let hello = Hello {
            protocol: PROTOCOL,
            name: Name { instance: instance.to_owned(), container: None },
            version: "1".to_owned(),
            haproxy_version: "3".to_owned(),
            state: "serving".to_owned(),
            started,
            created: None,
            relieves_all: false,
            transparent: false,
            lineage: Vec::new(),
        };
        Seen { hello, pids: pids.to_vec() }
    }

    fn own() -> Age {
        (100, "me".to_owned())
    }

    #[test]
    fn auto_takes_every_older_one_youngest_first() {
        let all = [seen("b", 20, &[]), seen("later", 200, &[]), seen("a", 10, &[])];
        let choice = choose(&Predecessors::Auto, &own(), &all);
        assert_eq!(choice.chosen, [0, 2]);
        assert!(choice.notes.is_empty());
        assert!(choose(&Predecessors::None, &own(), &all).chosen.is_empty());
    }

    #[test]
    fn of_two_that_started_at_once_exactly_one_relieves_the_other() {
        let (a, b) = (seen("a", 5, &[]), seen("b", 5, &[]));
        let relieves = |who: &Seen, whom: &Seen| {
            !choose(&Predecessors::Auto, &age(&who.hello), std::slice::from_ref(whom))
                .chosen
                .is_empty()
        };
        assert!(relieves(&b, &a) && !relieves(&a, &b));
    }

    #[test]
    fn a_pid_may_be_hapilots_or_its_haproxys_and_others_are_somebody_elses() {
        let all = [seen("a", 1, &[10, 11]), seen("b", 2, &[20])];
        let choice = choose(&Predecessors::Pids(vec![11, 30, 10]), &own(), &all);
        assert_eq!((choice.chosen, choice.others), (vec![0], vec![30]));
    }

    #[test]
    fn who_cannot_be_relieved_is_named() {
        let mut strange = seen("strange", 1, &[]);
        strange.hello.protocol = PROTOCOL + 1;
        let mut leaving = seen("leaving", 1, &[]);
        leaving.hello.state = "relieved".to_owned();
        let choice = choose(&Predecessors::Auto, &own(), &[strange, leaving]);
        assert!(choice.chosen.is_empty());
        let notes: Vec<_> = choice.notes.iter().map(ToString::to_string).collect();
        assert!(notes[0].contains("strange") && notes[0].contains("protocol 3"), "{notes:?}");
        assert!(notes[1].contains("leaving is relieved already"), "{notes:?}");
    }
}
