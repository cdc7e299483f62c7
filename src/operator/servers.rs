//! Acts: `hapilot drain`, `enable` and `weight`: tells HAProxy, and reads back what it really did.
//!
//! A reload reads what was set by hand at one moment and sets it again in the new generation; what
//! is said in between would be lost. So it is said until the one that serves is the same before and
//! after, and nothing is on its way.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::ask::{ask, door};
use super::server::{Patterns, Server, Wish, servers};
use crate::control::protocol::{GenerationStatus, Status};
use crate::supervisor::lifecycle::{Phase, StateName};

/// For a reload that is under way.
const LIMIT: Duration = Duration::from_mins(1);
/// HAProxy tells nobody when a session ends or a reload is over.
const AGAIN: Duration = Duration::from_millis(200);

/// Which servers are to become what.
#[derive(Debug)]
pub struct Order {
    pub patterns: Patterns,
    pub wish: Wish,
}

#[derive(Debug, Default)]
pub struct Done {
    pub servers: Vec<Server>,
    /// Why some did not become what they should.
    pub refused: Vec<String>,
}

/// Enough to see how they are called.
fn some(names: &[&str]) -> String {
    const MOST: usize = 20;
    let first = names[..names.len().min(MOST)].join(", ");
    match names.len().saturating_sub(MOST) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

impl Order {
    /// Those that are meant, as they are now; every pattern must mean somebody.
    pub fn look(&self) -> Result<Vec<Server>> {
        let all = all()?;
        let names: Vec<_> = all.iter().map(|server| &*server.name).collect();
        let idle = self.patterns.idle(&names);
        if names.is_empty() {
            bail!("no backend of HAProxy's configuration has a server");
        }
        if !idle.is_empty() {
            bail!("no server is meant by {}; there are: {}", idle.join(", "), some(&names));
        }
        Ok(all.into_iter().filter(|server| self.patterns.mean(&server.name)).collect())
    }

    /// `status` asks hapilot how things are.
    pub fn carry_out(&self, status: impl Fn() -> Result<Box<Status>>) -> Result<Done> {
        let until = Instant::now() + LIMIT;
        let mut refused = BTreeMap::new();
        loop {
            let before = serving(&*status()?);
            for server in self.look()? {
                let name = server.name.clone();
                if self.wish.is_true_of(&server) || refused.contains_key(&name) {
                    continue;
                }
                let answer = ask(&door(), &self.wish.command(&name))?;
                if answer.refused {
                    refused.insert(name, answer.text);
                }
            }
            let (now, after) = (self.look()?, serving(&*status()?));
            if before.is_some() && before == after {
                return Ok(self.judge(now, &refused));
            }
            if Instant::now() > until {
                bail!(
                    "a reload has been under way for {}; what was said may be lost by it: say it \
                     again afterwards",
                    humantime::format_duration(LIMIT)
                );
            }
            sleep(AGAIN);
        }
    }

    fn judge(&self, servers: Vec<Server>, refused: &BTreeMap<String, String>) -> Done {
        let mut done = Done::default();
        for server in &servers {
            if !self.wish.is_true_of(server) {
                let words =
                    refused.get(&server.name).map_or("HAProxy did not do it", |words| words);
                done.refused.push(format!("{} is not {}: {words}", server.name, self.wish));
            }
        }
        done.servers = servers;
        done
    }

    /// Until none of them has a session any more; the answer is who still has some.
    pub fn wait(&self, limit: Duration) -> Result<Vec<Server>> {
        let until = Instant::now() + limit;
        loop {
            let busy: Vec<_> = self.look()?.into_iter().filter(|s| s.sessions > 0).collect();
            if busy.is_empty() || Instant::now() >= until {
                return Ok(busy);
            }
            sleep(AGAIN.min(until.saturating_duration_since(Instant::now())));
        }
    }
}

fn all() -> Result<Vec<Server>> {
    let state = ask(&door(), "show servers state")?;
    let stat = ask(&door(), "show stat -1 4 -1")?;
    Ok(servers(&state.text, &stat.text))
}

/// Who serves, if nothing is on its way.
fn serving(status: &Status) -> Option<u32> {
    let settled = status.state == StateName::Serving.as_str();
    let serves = |generation: &&GenerationStatus| generation.state == Phase::Serving.as_str();
    let serving = status.generations.iter().find(serves);
    serving.filter(|_| settled).map(|generation| generation.id)
}
