//! Decides: what of a stick table is kept, and the commands that put it into another process.
//! Values only.
//!
//! Format: HAProxy management guide, "show table" and "set table". What cannot be set (binary keys,
//! on older versions all but the first element of an array) or must not be (`conn_cur`: those
//! connections died with their process) is left out. Expiry begins anew: nothing can set it.

use std::collections::HashMap;
use std::fmt::Write as _;

/// A command of so many bytes leaves room in the smallest usual buffer of HAProxy.
const LONGEST_COMMAND: usize = 8 * 1024;

/// The line that begins a table: `# table: NAME, type: ip, size:1024, used:3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub name: String,
    kind: String,
    pub used: usize,
}

impl Head {
    #[must_use]
    pub fn read(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix("# table: ")?.split(", ");
        let name = fields.next()?.to_owned();
        let mut field = |key| fields.next().and_then(|field| field.strip_prefix(key));
        let kind = field("type: ")?.to_owned();
        let used = line.rsplit_once("used:")?.1.trim().parse().ok()?;
        Some(Self { name, kind, used })
    }

    /// Entries of one can be put into the other.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.name == other.name && self.kind == other.kind
    }

    /// HAProxy takes keys of these types only.
    #[must_use]
    pub fn is_settable(&self) -> bool {
        ["ip", "ipv6", "integer", "string"].contains(&self.kind.as_str())
    }
}

/// A table with its entries, as small as they can be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub head: Head,
    /// `EXPIRY KEY\tDATA` for each entry, the key as it is shown.
    lines: String,
    count: usize,
    /// The longest that an entry has still to live, in milliseconds.
    longest: u64,
}

impl Table {
    #[must_use]
    pub fn new(head: Head) -> Self {
        Self { head, lines: String::new(), count: 0, longest: 0 }
    }

    /// As it is written down here.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.lines.len()
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    #[must_use]
    pub fn longest(&self) -> u64 {
        self.longest
    }

    /// Adds `0x…: key=KEY use=0 exp=1000 shard=0 gpc0=1`, as it is shown.
    pub fn add(&mut self, shown: &str) {
        let Some((key, exp, data)) = shown_entry(shown) else { return };
        self.longest = self.longest.max(exp);
        self.count += 1;
        // Into a `String` it cannot fail.
        let _ = write!(self.lines, "{exp} {key}\t");
        for datum in data {
            let _ = write!(self.lines, "{datum} ");
        }
        self.lines.push('\n');
    }

    /// Whether both hold the same but for the time that went by. An entry that was used meanwhile
    /// lives longer, even if nothing was counted.
    #[must_use]
    pub fn is_as(&self, before: &Self, elapsed_ms: u64) -> bool {
        const SLACK_MS: u64 = 100;
        let untimed = |table: &Self| {
            let all = table.lines.lines().filter_map(|line| line.split_once(' '));
            all.map(|(_, rest)| rest.to_owned()).collect::<Vec<_>>()
        };
        self.head.name == before.head.name
            && self.count == before.count
            && self.longest + elapsed_ms <= before.longest + SLACK_MS
            && untimed(self) == untimed(before)
    }

    pub fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        self.lines.lines().filter_map(|line| {
            let (exp, rest) = line.split_once(' ')?;
            let (key, data) = rest.split_once('\t')?;
            let mut entry = Entry { key, exp: exp.parse().ok()?, data: vec![], server: None };
            for (name, value) in data.split(' ').filter_map(|datum| datum.split_once('=')) {
                // `conn_rate(30000)`: the period is the table's.
                let name = name.split('(').next().unwrap_or(name);
                match (name, value.parse()) {
                    ("conn_cur", _) => {}
                    ("server_key", _) => entry.server = Some(value),
                    (_, Ok(value)) => entry.data.push((name, value)),
                    (_, Err(_)) => {}
                }
            }
            Some(entry)
        })
    }
}

/// Key, what it has left to live, and the data that is not zero.
fn shown_entry(shown: &str) -> Option<(&str, u64, impl Iterator<Item = &str>)> {
    // In a key as it is shown, `=` has a backslash before it.
    let (key, rest) = shown.split_once(": key=")?.1.split_once(" use=")?;
    let mut words = rest.split(' ').skip(1);
    let exp = words.next()?.strip_prefix("exp=")?.parse().ok()?;
    let unset = |word: &str| word.ends_with("=0") || word.ends_with("=-");
    Some((key, exp, words.filter(move |word| !word.starts_with("shard=") && !unset(word))))
}

/// One entry with what is not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    key: &'a str,
    /// What it had left to live, in milliseconds; 0 where entries live for ever.
    exp: u64,
    data: Vec<(&'a str, u64)>,
    /// The name of the server that `server_id` means.
    server: Option<&'a str>,
}

/// What is to become of an entry that the new process has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// It came from a peer, who knew better.
    Stays,
    /// It was counted anew since the start: both together are right.
    Counts,
    /// It may have what is saved in it already: the larger one is right, and never both.
    Larger,
}

/// How a server is called in the new process by what the old one called it.
pub type Servers = HashMap<String, u64>;

/// What there is to be set, by the keys as a command writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub sets: Vec<Set>,
    /// Entries that no command can name.
    pub unnamable: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    key: Vec<u8>,
    data: Vec<(String, u64)>,
}

/// `servers` are those of the backend of the table's name.
#[must_use]
pub fn put_back(
    saved: &Table,
    present: Option<&Table>,
    then: Present,
    elapsed_ms: u64,
    servers: Option<&Servers>,
) -> Plan {
    let now: HashMap<&str, Entry<'_>> =
        present.into_iter().flat_map(Table::entries).map(|entry| (entry.key, entry)).collect();
    let mut plan = Plan::default();
    for mut entry in saved.entries() {
        let known = now.get(entry.key);
        let expired = entry.exp != 0 && entry.exp <= elapsed_ms;
        if expired || (known.is_some() && then == Present::Stays) {
            continue;
        }
        rename_server(&mut entry, servers);
        match (known, then) {
            (Some(known), Present::Larger) => {
                keep_larger(&mut entry, known);
                if entry.data.is_empty() {
                    continue;
                }
            }
            (Some(known), _) => add_up(&mut entry, known),
            (None, _) => {}
        }
        match word(entry.key) {
            Some(key) => {
                let data = entry.data.into_iter().map(|(name, v)| (name.to_owned(), v)).collect();
                plan.sets.push(Set { key, data });
            }
            None => plan.unnamable += 1,
        }
    }
    plan
}

/// The number may be another one's by now. A name that nobody knows is an address, or of a backend
/// of another name: then the number is all there is.
fn rename_server(entry: &mut Entry<'_>, servers: Option<&Servers>) {
    let Some(number) = entry.server.and_then(|name| servers?.get(name)) else { return };
    for (name, value) in &mut entry.data {
        if *name == "server_id" {
            *value = *number;
        }
    }
}

fn add_up(entry: &mut Entry<'_>, known: &Entry<'_>) {
    for (name, value) in &known.data {
        let is_tag = *name == "server_id" || name.starts_with("gpt");
        match entry.data.iter_mut().find(|(other, _)| other == name) {
            Some((_, saved)) if is_tag => *saved = *value,
            Some((_, saved)) => *saved += value,
            None => {}
        }
    }
    entry.data.retain(|(name, _)| {
        // Else it would be set to what it was a moment ago.
        !(*name == "server_id" && known.data.iter().any(|(other, _)| other == name))
    });
}

/// Tags are no numbers: the newer one stays.
fn keep_larger(entry: &mut Entry<'_>, known: &Entry<'_>) {
    entry.data.retain(|(name, saved)| {
        let is_tag = *name == "server_id" || name.starts_with("gpt");
        let there = known.data.iter().find(|(other, _)| other == name);
        there.is_none_or(|(_, there)| !is_tag && saved > there)
    });
}

/// A key as a word of a command. `None` where there is no way to write it.
fn word(shown: &str) -> Option<Vec<u8>> {
    let mut bytes = shown.bytes();
    let mut word = Vec::with_capacity(shown.len());
    while let Some(byte) = bytes.next() {
        let meant = match byte {
            b'\\' => match bytes.next()? {
                b't' => b'\t',
                b'r' => b'\r',
                b'e' => 0x1b,
                b'n' => return None,
                b'x' => {
                    let digits = [bytes.next()?, bytes.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                }
                itself => itself,
            },
            itself => itself,
        };
        if !(meant.is_ascii_alphanumeric() || b".:_-/".contains(&meant)) {
            word.push(b'\\');
        }
        word.push(meant);
    }
    (!word.is_empty() && word.len() < LONGEST_COMMAND).then_some(word)
}

impl Plan {
    /// For each kind of data that occurs, one entry that has it: to find out how it is called.
    #[must_use]
    pub fn samples(&self) -> Vec<(&str, &Set)> {
        let mut samples: Vec<(&str, &Set)> = Vec::new();
        for set in &self.sets {
            for (name, _) in &set.data {
                if samples.iter().all(|(known, _)| known != name) {
                    samples.push((name, set));
                }
            }
        }
        samples
    }
}

/// What a kind of data may be called in a command. Elements of an array are shown like the data of
/// their own that older configurations store; only newer versions take an index.
#[must_use]
pub fn spellings(name: &str) -> Vec<String> {
    let mut all = vec![name.to_owned()];
    let rest = name.strip_prefix("gpc").or_else(|| name.strip_prefix("gpt")).unwrap_or_default();
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    if digits > 0 {
        let (index, suffix) = rest.split_at(digits);
        let kind = &name[..3];
        all.push(format!("{kind}{suffix}[{index}]"));
        if index == "0" {
            all.push(format!("{kind}{suffix}"));
        }
    }
    all
}

impl Set {
    /// Sets what `spelt` has a name for.
    #[must_use]
    pub fn command(&self, table: &str, spelt: &HashMap<String, String>) -> Vec<u8> {
        let known = self.data.iter().filter_map(|(name, value)| Some((spelt.get(name)?, *value)));
        self.write(table, known)
    }

    /// Sets one kind of data under this name.
    #[must_use]
    pub fn trial(&self, table: &str, name: &str, spelling: &str) -> Vec<u8> {
        let value = self.data.iter().find(|(other, _)| other == name).map_or(0, |(_, v)| *v);
        self.write(table, [(&spelling.to_owned(), value)])
    }

    fn write<'a>(&self, table: &str, data: impl IntoIterator<Item = (&'a String, u64)>) -> Vec<u8> {
        let mut command = format!("set table {table} key ").into_bytes();
        command.extend(&self.key);
        for (name, value) in data {
            command.extend(format!(" data.{name} {value}").into_bytes());
        }
        command
    }
}

/// Many commands on one connection.
#[must_use]
pub fn batches(commands: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    const MOST: usize = 32 * 1024;
    let mut batches: Vec<Vec<u8>> = Vec::new();
    for command in commands {
        match batches.last_mut() {
            Some(batch) if batch.len() + command.len() < MOST => {
                batch.push(b';');
                batch.extend(command);
            }
            _ => batches.push(command),
        }
    }
    batches
}

#[cfg(test)]
mod tests;
