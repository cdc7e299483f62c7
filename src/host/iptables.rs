//! The only caller of the iptables programs.
//!
//! The status and the words of every call are judged here: "absent" is one answer, a failure another.
//! Every call is bounded in time (`process::program`), and so is the wait for the lock of the legacy
//! program.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::instance::ChainName;
use super::nftables::Nftables;
use super::saved::Saved;
use super::step::{Family, Place, Program};
use crate::process::program::{Ended, Run};

/// How long one call may take: the lock of the legacy program is held for milliseconds.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Some 300,000 rules. A list that is cut would be read as if the rest were not there.
const MOST_OUTPUT: usize = 32 * 1024 * 1024;

/// The caller. Holds only how long it may go on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Iptables {
    until: Option<Instant>,
}

/// What a call came to, where it was not a plain success.
#[derive(Debug)]
enum Answer {
    Done,
    /// What it was about is not there.
    Absent,
    Failed(anyhow::Error),
}

impl Iptables {
    /// No call goes on after `until`.
    pub fn finish_by(&mut self, until: Instant) {
        self.until = Some(until);
    }

    fn limit(&self) -> Duration {
        // Half of what is left: one call that hangs shall not cost all the others their turn.
        self.until
            .map_or(LIMIT, |until| (until.saturating_duration_since(Instant::now()) / 2).min(LIMIT))
    }

    /// The program gives up on the lock before we kill it: then it can still say why.
    fn lock_limit(&self) -> u64 {
        self.limit().as_secs().saturating_sub(1).max(1)
    }

    pub fn new_chain(&self, place: Place, chain: ChainName) -> Result<()> {
        self.change(place, &format!("-N {chain}"))
    }

    pub fn append(&self, place: Place, chain: &str, rule: &str) -> Result<()> {
        self.change(place, &format!("-A {chain} {rule}"))
    }

    /// Removes every copy.
    pub fn delete(&self, place: Place, chain: &str, rule: &str) -> Result<()> {
        loop {
            match self.ask(place, &format!("-D {chain} {rule}")) {
                Answer::Done => {}
                Answer::Absent => return Ok(()),
                Answer::Failed(error) => return Err(error),
            }
        }
    }

    pub fn remove_chain(&self, place: Place, chain: ChainName) -> Result<()> {
        for option in ["-F", "-X"] {
            match self.ask(place, &format!("{option} {chain}")) {
                Answer::Done => {}
                Answer::Absent => return Ok(()),
                Answer::Failed(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether program and kernel know everything that `rule` uses. Changes nothing.
    pub fn probe(&self, place: Place, rule: &str) -> Result<()> {
        match self.ask(place, &format!("-C PREROUTING {rule}")) {
            Answer::Done | Answer::Absent => Ok(()),
            Answer::Failed(error) => Err(error),
        }
    }

    /// Everything in every table that is in use. (`-S` would bring a table into use by asking.)
    pub fn saved(&self, place: Place) -> Result<Saved> {
        self.save(place, &[])
    }

    /// The same of the one table that our rules are in.
    pub fn mangle(&self, place: Place) -> Result<Saved> {
        self.save(place, &["-t", "mangle"])
    }

    fn save(&self, place: Place, arguments: &[&str]) -> Result<Saved> {
        if is_empty(place) {
            return Ok(Saved::default());
        }
        let text = self.output(place.program.save_command(place.family), arguments)?;
        Ok(Saved::parse(&text))
    }

    /// All of these lines in the mangle table or none. Each program by itself costs some 3 ms, and
    /// 13 ms where `nf_tables` removes something.
    pub fn transaction(&self, place: Place, lines: &[String]) -> Result<()> {
        let script = format!("*mangle\n{}\nCOMMIT\n", lines.join("\n"));
        let lock_limit = self.lock_limit().to_string();
        let program = place.program.restore_command(place.family);
        let run = self.program(program).arguments(["-w", &lock_limit, "--noflush"]).input(script);
        accepted(program, run)?;
        Ok(())
    }

    /// What another program prints; here because it needs the same bound.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let ended = accepted(program, self.program(program).arguments(arguments))?;
        if ended.cut {
            bail!("{program} says more than {} MiB, which is too much", MOST_OUTPUT >> 20);
        }
        Ok(String::from_utf8_lossy(&ended.output).into_owned())
    }

    fn program(&self, program: &str) -> Run {
        Run::new(program, self.limit()).most_output(MOST_OUTPUT)
    }

    fn change(&self, place: Place, command: &str) -> Result<()> {
        match self.ask(place, command) {
            Answer::Done => Ok(()),
            Answer::Absent => Err(anyhow!("what it needs is not there")),
            Answer::Failed(error) => Err(error),
        }
    }

    fn ask(&self, place: Place, command: &str) -> Answer {
        match self.execute(place, command) {
            Err(error) => Answer::Failed(error),
            Ok(output) if output.status.success() => Answer::Done,
            Ok(output) if says_absent(&output) && !unsupported(&output) => Answer::Absent,
            Ok(output) => Answer::Failed(complaint(place, &output)),
        }
    }

    fn execute(&self, place: Place, command: &str) -> Result<Ended> {
        let lock_limit = self.lock_limit().to_string();
        let run = self.program(place.program.command(place.family));
        let run = run.arguments(["-t", "mangle", "-w", &lock_limit]);
        Ok(run.arguments(command.split_whitespace()).to_end()?)
    }
}

/// Its answer, where its status is good.
fn accepted(program: &str, run: Run) -> Result<Ended> {
    let ended = run.to_end()?;
    if !ended.status.success() {
        bail!("{program} says {:?} ({})", words(&ended), ended.status);
    }
    Ok(ended)
}

fn complaint(place: Place, output: &Ended) -> anyhow::Error {
    let program = place.program.command(place.family);
    anyhow!("{program} says {:?} ({})", words(output), output.status)
}

/// The exit status does not tell "absent" from "busy": legacy says 1 for both.
fn says_absent(output: &Ended) -> bool {
    let text = String::from_utf8_lossy(&output.words);
    match output.status.code() {
        Some(1) => {
            text.contains("No chain/target/match by that name")
                || text.contains("does a matching rule exist")
        }
        // A jump to a chain that is not there cannot be there either.
        Some(2) => ["Chain 'HAPILOT-", "Couldn't load target `HAPILOT-"]
            .iter()
            .any(|start| text.contains(start)),
        _ => false,
    }
}

/// Said with a status of 1 as well when the kernel lacks a match or a target.
fn unsupported(output: &Ended) -> bool {
    let text = String::from_utf8_lossy(&output.words);
    text.contains("not supported") || text.contains("missing kernel module")
}

fn words(output: &Ended) -> String {
    let text = String::from_utf8_lossy(&output.words);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Try `"))
        .collect();
    lines.join(" ")
}

/// Whether there is nothing to be read by the program: by what the kernel says, which is quicker.
fn is_empty(place: Place) -> bool {
    match place.program {
        Program::Legacy => !legacy_tables(place.family),
        // Where the kernel does not answer, the program says what is wrong.
        Program::Nft => Nftables::default().has_rules(place.family).is_ok_and(|any| !any),
        // Either of the two.
        Program::Plain => false,
    }
}

/// Whether the legacy kernel interface has any table in this namespace.
fn legacy_tables(family: Family) -> bool {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    fs::read_to_string(path).is_ok_and(|names| !names.trim().is_empty())
}

/// Whether `PATH` has it.
#[must_use]
pub fn installed(program: &str) -> bool {
    let executable = |path: std::path::PathBuf| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|dir| executable(dir.join(program))))
}
