//! Acts: saves what a HAProxy would take with it if it died, and gives it to the one after.
//!
//! All is asked for over the runtime socket while HAProxy serves, and put back after the next one
//! serves already: nobody waits for it. What is in nobody's configuration is meant: drains,
//! maintenance and weights set by hand, and the entries of stick tables.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::pace::Change;
use super::reload::{give_servers, servers_in, servers_of, still_learning};
use crate::haproxy::peers::{known_to_others, taught};
use crate::haproxy::runtime_api::{Conversation, LIMIT, ask, each_line};
use crate::haproxy::server_state::{Servers, Since, numbers, servers, worth_keeping};
use crate::haproxy::stick_table::{
    Head, Plan, Present, Servers as Numbers, Set, Table, batches, put_back, spellings,
};

/// Of all tables together; some 100 bytes each.
const MOST_ENTRIES: usize = 50_000;
/// Of one of them.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// HAProxy learns from the dead one for 5 s, and from others for another 5 s.
const LEARN_LIMIT: Duration = Duration::from_secs(12);
/// The old one drains no earlier.
const CARRY_LIMIT: Duration = Duration::from_secs(5);
/// For all of it.
const PUT_BACK_LIMIT: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub struct Saved {
    pub at: Instant,
    /// Those that were set by hand or are known to be bad, as HAProxy shows them.
    servers: String,
    by_hand: usize,
    tables: Vec<Table>,
    /// What is not saved, and why.
    pub left_out: Vec<String>,
}

impl Saved {
    #[must_use]
    pub fn servers(&self) -> usize {
        self.by_hand
    }

    /// What the next one is to know from its first moment on.
    #[must_use]
    pub fn known(&self) -> Servers {
        servers(&self.servers)
    }

    #[must_use]
    pub fn entries(&self) -> usize {
        self.tables.iter().map(Table::count).sum()
    }

    fn nothing() -> Self {
        let (servers, tables, left_out) = (String::new(), Vec::new(), Vec::new());
        Self { at: Instant::now(), servers, by_hand: 0, tables, left_out }
    }

    async fn add(&mut self, socket: &Path, heads: Vec<Head>) {
        let mut room = MOST_ENTRIES;
        for head in heads.into_iter().filter(|head| head.used > 0) {
            let (name, used) = (&head.name, head.used);
            if !head.is_settable() {
                self.left_out.push(format!("stick table {name}: keys of its type cannot be set"));
            } else if used > room {
                let why = format!("stick table {name}: more than {MOST_ENTRIES} entries in all");
                self.left_out.push(why);
            } else {
                room -= used;
                let name = head.name.clone();
                match table(socket, head).await {
                    Ok(table) => self.tables.extend(table),
                    Err(error) => self.left_out.push(format!("stick table {name}: {error:#}")),
                }
            }
        }
    }

    #[must_use]
    pub fn change_since(&self, before: Option<&Self>) -> Change {
        let same = before.is_some_and(|before| {
            let elapsed = milliseconds(self.at.duration_since(before.at));
            self.servers == before.servers
                && self.tables.len() == before.tables.len()
                && self.tables.iter().zip(&before.tables).all(|(t, b)| t.is_as(b, elapsed))
        });
        if same { Change::None } else { Change::Some }
    }
}

/// `None` where there is nothing that could be lost: no server and no table.
pub async fn save(socket: &Path) -> Result<Option<Saved>> {
    let mut servers = servers_of(socket).await?;
    let heads = heads(socket).await?;
    if servers.all.is_empty() && heads.is_empty() {
        return Ok(None);
    }
    let mut saved = Saved::nothing();
    (saved.servers, saved.by_hand) = (worth_keeping(&mut servers), servers.by_hand());
    if servers.left_out > 0 {
        saved.left_out.push(format!("{} servers: there are too many", servers.left_out));
    }
    saved.add(socket, heads).await;
    Ok(Some(saved))
}

async fn heads(socket: &Path) -> Result<Vec<Head>> {
    Ok(ask(socket, "show table", LIMIT).await?.lines().filter_map(Head::read).collect())
}

/// `None` where it is not there any more.
async fn table(socket: &Path, head: Head) -> Result<Option<Table>> {
    let command = format!("show table {}", head.name);
    let (mut table, mut found) = (Table::new(head), false);
    let look = |line: &str| match Head::read(line) {
        Some(_) => found = true,
        None if table.bytes() < MOST_BYTES => table.add(line),
        None => {}
    };
    each_line(socket, command.as_bytes(), LIMIT, look).await?;
    ensure!(table.bytes() < MOST_BYTES, "its entries have more than {MOST_BYTES} bytes");
    Ok(found.then_some(table))
}

/// What nobody has got yet of what a dead HAProxy had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    #[default]
    Nothing,
    /// Whoever serves has the servers, and they may have been set anew since.
    Entries,
    All,
}

#[derive(Debug, Default)]
pub struct PutBack {
    pub servers: Vec<String>,
    pub entries: usize,
    pub failures: Vec<String>,
    /// Why it ended half-way.
    pub broken_off: Option<String>,
}

/// Gives what is missing to a HAProxy that serves already. What is broken off, by a reload too, is
/// missing still: who begins anew has some of it already.
pub async fn give(
    socket: &Path,
    saved: &Saved,
    missing: &Cell<Missing>,
    then: Present,
    since: Since,
) -> PutBack {
    let mut done = PutBack::default();
    let servers = saved.known().believed(since);
    // Later on it has checks of its own, which know better.
    let servers = if then == Present::Counts { servers } else { servers.without_checks() };
    let all = give_all(socket, (saved, servers), missing, then, &mut done);
    let all = tokio::time::timeout(PUT_BACK_LIMIT, all).await;
    match all {
        Ok(Ok(())) => missing.set(Missing::Nothing),
        Ok(Err(error)) => done.broken_off = Some(format!("{error:#}")),
        Err(_) => {
            let limit = humantime::format_duration(PUT_BACK_LIMIT);
            done.broken_off = Some(format!("not all of it was put back within {limit}"));
        }
    }
    done
}

async fn give_all(
    socket: &Path,
    (saved, servers): (&Saved, Servers),
    missing: &Cell<Missing>,
    then: Present,
    done: &mut PutBack,
) -> Result<()> {
    let now = {
        let mut new = Conversation::begin(socket).await?;
        let now = servers_in(&mut new).await?;
        if missing.get() == Missing::All {
            let given = give_servers(&servers, &now, &mut new).await?;
            done.servers = given.done;
            done.failures.extend(given.refused);
            missing.set(Missing::Entries);
        }
        now
    };
    if saved.entries() == 0 {
        return Ok(());
    }
    let numbers = numbers(&now);
    let heads = heads(socket).await?;
    let peers = ask(socket, "show peers", LIMIT).await?;
    let others = known_to_others(&peers);
    let known = |table: &&Table| others.contains(table.head.name.as_str());
    let (late, at_once): (Vec<_>, Vec<_>) = saved.tables.iter().partition(known);
    let mut giving = Giving { socket, saved, heads: &heads, numbers: &numbers, done };
    for table in at_once {
        giving.table(table, then).await?;
    }
    if late.iter().any(|table| table.count() > 0) {
        // What they do not know by then they will not teach.
        still_learning(socket, LEARN_LIMIT, LIMIT).await?;
        for table in late {
            giving.table(table, Present::Stays).await?;
        }
    }
    Ok(())
}

/// Stick tables that no `peers` section has, from one that still serves to one that does already.
/// What is counted meanwhile counts in the new one.
pub async fn carry_tables(old: &Path, new: &Path, done: &mut PutBack) {
    let carried = tokio::time::timeout(CARRY_LIMIT, carry(old, new, done)).await;
    match carried {
        Ok(Ok(())) => {}
        Ok(Err(error)) => done.failures.push(format!("{error:#}")),
        Err(_) => {
            let limit = humantime::format_duration(CARRY_LIMIT);
            done.failures.push(format!("not all stick tables were carried over within {limit}"));
        }
    }
}

async fn carry(old: &Path, new: &Path, done: &mut PutBack) -> Result<()> {
    let mut heads_of_old = heads(old).await?;
    if heads_of_old.iter().all(|head| head.used == 0) {
        return Ok(());
    }
    let peers = ask(old, "show peers", LIMIT).await?;
    let taught = taught(&peers);
    heads_of_old.retain(|head| !taught.contains(head.name.as_str()));
    let heads = heads(new).await?;
    // One that the new configuration does not have any more is meant to go.
    heads_of_old.retain(|old| heads.iter().any(|head| head.is_like(old)));
    let mut saved = Saved::nothing();
    saved.add(old, heads_of_old).await;
    done.failures.append(&mut saved.left_out);
    if saved.entries() == 0 {
        return Ok(());
    }
    let numbers = numbers(&servers_of(new).await?);
    let mut giving = Giving { socket: new, saved: &saved, heads: &heads, numbers: &numbers, done };
    for table in &saved.tables {
        giving.table(table, Present::Counts).await?;
    }
    Ok(())
}

struct Giving<'a> {
    socket: &'a Path,
    saved: &'a Saved,
    heads: &'a [Head],
    numbers: &'a HashMap<String, Numbers>,
    done: &'a mut PutBack,
}

impl Giving<'_> {
    async fn table(&mut self, old: &Table, then: Present) -> Result<()> {
        let name = &old.head.name;
        let Some(head) = self.heads.iter().find(|head| head.is_like(&old.head)) else {
            self.done.failures.push(format!("stick table {name} is not there any more"));
            return Ok(());
        };
        let present = table(self.socket, head.clone()).await?;
        let elapsed = milliseconds(self.saved.at.elapsed());
        let plan = put_back(old, present.as_ref(), then, elapsed, self.numbers.get(name));
        if plan.unnamable > 0 {
            let n = plan.unnamable;
            self.done.failures.push(format!("stick table {name}: {n} keys that cannot be written"));
        }
        let spelt = self.spell(name, &plan).await?;
        let commands = plan.sets.iter().map(|set| set.command(name, &spelt));
        let mut refused = Vec::new();
        for batch in batches(commands) {
            refused.extend(self.tell(&batch).await?);
        }
        self.done.entries += plan.sets.len().saturating_sub(refused.len());
        if let Some(first) = refused.first() {
            let n = refused.len();
            self.done.failures.push(format!("stick table {name}: {n} entries refused: {first}"));
        }
        Ok(())
    }

    /// What each kind of data is called; of what HAProxy takes under no name a failure is told.
    async fn spell(&mut self, table: &str, plan: &Plan) -> Result<HashMap<String, String>> {
        let mut spelt = HashMap::new();
        for (name, sample) in plan.samples() {
            match self.spelling(table, name, sample).await? {
                Ok(spelling) => drop(spelt.insert(name.to_owned(), spelling)),
                Err(words) => {
                    self.done.failures.push(format!("stick table {table}: {name}: {words}"));
                }
            }
        }
        Ok(spelt)
    }

    async fn spelling(
        &self,
        table: &str,
        name: &str,
        sample: &Set,
    ) -> Result<std::result::Result<String, String>> {
        let mut words = String::new();
        for spelling in spellings(name) {
            match self.tell(&sample.trial(table, name, &spelling)).await?.pop() {
                None => return Ok(Ok(spelling)),
                Some(refusal) => words = refusal,
            }
        }
        Ok(Err(words))
    }

    /// HAProxy says nothing but empty lines to what it takes.
    async fn tell(&self, commands: &[u8]) -> Result<Vec<String>> {
        let mut words = Vec::new();
        let look = |line: &str| {
            if !line.trim().is_empty() {
                words.push(line.to_owned());
            }
        };
        each_line(self.socket, commands, LIMIT, look).await?;
        Ok(words)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
