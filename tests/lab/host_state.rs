//! Everything on a host that hapilot might change, as text; two of them are compared to the byte.
//!
//! Left out is what changes by itself (counters, the date in a dump) and the empty built-in tables
//! and chains that the iptables program creates when it is asked anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::Namespace;

#[derive(Clone, Debug, PartialEq)]
pub struct HostState {
    parts: BTreeMap<&'static str, String>,
}

const DUMPS: [&str; 4] =
    ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"];
const LISTS: [&str; 4] =
    ["ip rule show", "ip -6 rule show", "ip route show table all", "ip -6 route show table all"];

impl HostState {
    pub fn of(namespace: &Namespace) -> Self {
        let mut parts = BTreeMap::new();
        for dump in DUMPS {
            parts.insert(dump, without_empty_tables(&namespace.run(dump)));
        }
        for list in LISTS {
            parts.insert(list, namespace.run(list));
        }
        parts.insert("nft list ruleset", without_empty_chains(&namespace.run("nft list ruleset")));
        parts.insert("sysctl net", namespace.enter(sysctls));
        parts.insert("leases", namespace.enter(leases));
        Self { parts }
    }

    pub fn part(&self, name: &str) -> &str {
        self.parts.get(name).unwrap_or_else(|| panic!("no such part of the state: {name}"))
    }

    /// Fails with the lines that came or went.
    pub fn assert_same_as(&self, before: &Self) {
        let difference = self.difference(before);
        assert!(difference.is_empty(), "the host is not as it was before:\n{difference}");
    }

    /// nft lists what was made first first: the same lines whenever they were made.
    #[must_use]
    pub fn in_no_order(mut self) -> Self {
        if let Some(list) = self.parts.get_mut("nft list ruleset") {
            let mut lines: Vec<&str> = list.lines().collect();
            lines.sort_unstable();
            *list = lines.join("\n");
        }
        self
    }

    /// Which of two made theirs first shows nowhere any more.
    #[must_use]
    pub fn sorted(mut self) -> Self {
        for part in self.parts.values_mut() {
            let mut lines: Vec<&str> = part.lines().collect();
            lines.sort_unstable();
            *part = lines.join("\n");
        }
        self
    }

    pub fn difference(&self, before: &Self) -> String {
        let mut text = String::new();
        for (name, now) in &self.parts {
            let was = before.part(name);
            if was == now {
                continue;
            }
            let _ = writeln!(text, "{name}:");
            let lacking = |line: &&str, other: &str| !other.lines().any(|there| there == *line);
            for line in was.lines().filter(|line| lacking(line, now)) {
                let _ = writeln!(text, "  - {line}");
            }
            for line in now.lines().filter(|line| lacking(line, was)) {
                let _ = writeln!(text, "  + {line}");
            }
            if text.ends_with(":\n") {
                let _ =
                    writeln!(text, "  the same lines in another order or number:\n{was}---\n{now}");
            }
        }
        text
    }
}

/// `iptables-save` without dates, counters, and tables in which there is nothing.
fn without_empty_tables(dump: &str) -> String {
    let mut kept = String::new();
    let mut table: Vec<String> = Vec::new();
    for line in dump.lines().filter(|line| !line.starts_with('#')) {
        let line = line.split(" [").next().unwrap_or(line).to_owned();
        let last = line == "COMMIT";
        table.push(line);
        if last {
            let is_empty = |line: &String| line.starts_with(':') && line.ends_with(" ACCEPT");
            if !table[1..table.len() - 1].iter().all(is_empty) {
                kept.extend(table.iter().map(|line| format!("{line}\n")));
            }
            table.clear();
        }
    }
    assert!(table.is_empty(), "a dump must end with COMMIT:\n{dump}");
    kept
}

/// `nft list ruleset` without counters, and without the tables and chains that iptables makes.
fn without_empty_chains(list: &str) -> String {
    let mut kept: Vec<String> = Vec::new();
    let mut block: Vec<String> = Vec::new();
    for line in list.lines() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let opens = line.trim_end().ends_with('{');
        let closes = line.trim() == "}";
        if opens && !line.starts_with('\t') {
            kept.push(line.to_owned());
        } else if opens {
            block = vec![line.to_owned()];
        } else if closes && !block.is_empty() {
            block.push(line.to_owned());
            let base =
                block.len() == 3 && block[1].contains("type ") && block[1].contains("accept");
            if !base {
                kept.append(&mut block);
            }
            block.clear();
        } else if closes {
            let built_in = kept.last().is_some_and(|line| is_built_in(line));
            if built_in {
                kept.pop();
            } else {
                kept.push(line.to_owned());
            }
        } else if block.is_empty() {
            kept.push(uncounted(line));
        } else {
            block.push(uncounted(line));
        }
    }
    kept.into_iter().map(|line| line + "\n").collect()
}

fn is_built_in(table: &str) -> bool {
    let names = ["filter", "nat", "mangle", "raw", "security"];
    let line = |family, name| format!("table {family} {name} {{");
    names.iter().any(|name| table == line("ip", name) || table == line("ip6", name))
}

/// The same words, with every number after `packets` and `bytes` made nought.
fn uncounted(line: &str) -> String {
    let mut words: Vec<&str> = line.split(' ').collect();
    for index in 1..words.len() {
        if matches!(words[index - 1], "packets" | "bytes") {
            words[index] = "0";
        }
    }
    words.join(" ")
}

/// Every readable setting of the namespace, not only those that we know we touch.
fn sysctls() -> String {
    let mut text = String::new();
    for chapter in ["core", "ipv4", "ipv6"] {
        collect(&Path::new("/proc/sys/net").join(chapter), &mut text);
    }
    text
}

fn collect(path: &Path, text: &mut String) {
    if path.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for entry in entries {
            collect(&entry, text);
        }
    } else if let Ok(value) = fs::read_to_string(path) {
        let _ = writeln!(text, "{} = {}", path.display(), value.trim());
    }
}

/// The abstract sockets by which instances show that they are alive.
fn leases() -> String {
    let sockets = fs::read_to_string("/proc/thread-self/net/unix").unwrap();
    let names = sockets.lines().filter_map(|line| line.split_once(" @").map(|(_, name)| name));
    let mut names: Vec<_> = names.filter(|name| name.starts_with("hapilot")).collect();
    names.sort_unstable();
    names.dedup();
    names.join("\n")
}
