//! Looks at the host before anything is changed, and tells everything that is wrong at once.

use std::env;
use std::fs;
use std::path::Path;

use rustix::thread::{CapabilitySet, capabilities};

use super::Wanted;
use super::backend::{Backend, Firewall};
use super::instance::Instance;
use super::iptables::{Iptables, installed};
use super::mark::FwMark;
use super::nftables::ruleset::trial;
use super::nftables::socket::Refused;
use super::nftables::{Change, Kind, Nftables, Ruleset, Table};
use super::saved::Saved;
use super::step::{Family, Place, Program};
use super::survey::Snapshot;
use super::sysctl;
use crate::problem::Problem;
use crate::process::together::{both, each};

/// Where our sockets live.
pub const RUN_DIRECTORY: &str = "/run/hapilot";

const NFT_IPV6: Place = Place { program: Program::Nft, family: Family::V6 };

/// What the host is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The one that is written to; `None` when none works.
    pub backend: Option<Backend>,
    /// Why that one: for the start-up line.
    pub why: String,
    /// Every one that works here: a dead instance may have used another.
    pub programs: Vec<Program>,
    /// Whether this kernel has tables of nftables.
    pub nftables: bool,
    /// IPv4, and IPv6 where it works.
    pub families: Vec<Family>,
    /// What was there; the set-up looks again only if somebody has changed it.
    pub snapshot: Option<Snapshot>,
    /// As PID 1 orphans come to us; else we must become a child subreaper.
    pub pid_1: bool,
}

impl Facts {
    /// The firewall that is taken, and why.
    #[must_use]
    pub fn firewall(&self) -> String {
        let backend = self.backend.map_or_else(|| "none".into(), |backend| backend.to_string());
        format!("{backend} ({})", self.why)
    }

    /// Whether there is anything in which a dead instance may have left something.
    #[must_use]
    pub fn can_be_swept(&self) -> bool {
        self.nftables || !self.programs.is_empty()
    }
}

/// What preflight found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    pub facts: Facts,
    /// What keeps hapilot from running at all.
    pub problems: Vec<Problem>,
    /// What keeps it from transparent proxying.
    pub transparent: Vec<Problem>,
    /// What it can do without.
    pub warnings: Vec<Problem>,
}

/// Changes nothing.
#[must_use]
pub fn look(wanted: &Wanted) -> Findings {
    let mut findings = Findings {
        facts: Facts {
            backend: None,
            why: String::new(),
            programs: Vec::new(),
            nftables: false,
            families: vec![Family::V4],
            snapshot: None,
            pid_1: std::process::id() == 1,
        },
        problems: run_directory(Path::new(RUN_DIRECTORY)).into_iter().collect(),
        transparent: Vec::new(),
        warnings: Vec::new(),
    };
    // Without the right every other answer would be about the right.
    if net_admin() {
        findings.look_at_the_network(wanted);
    } else {
        findings.transparent.push(Problem::new(
            "the capability CAP_NET_ADMIN is missing",
            "add --cap-add=NET_ADMIN to docker run",
        ));
    }
    findings
}

fn net_admin() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

fn run_directory(path: &Path) -> Option<Problem> {
    let nearest = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let writable = rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK);
    let error = match writable {
        Ok(()) if nearest.is_dir() => return None,
        Ok(()) => format!("{} is not a directory", nearest.display()),
        Err(error) => format!("{}: {error}", nearest.display()),
    };
    Some(Problem::new(
        format!("the directory {} cannot be made: {error}", path.display()),
        "add --tmpfs /run to docker run",
    ))
}

impl Findings {
    fn look_at_the_network(&mut self, wanted: &Wanted) {
        let (iptables, nftables) = (Iptables::default(), Nftables::default());
        // A look that fails is a kernel without: nothing of ours can be there then.
        self.facts.nftables = nftables.tables().is_ok();
        let generation = nftables.generation().ok();
        let Read { usable, unusable, places } = Read::by(&iptables);
        self.facts.programs = usable.iter().map(|(program, _)| *program).collect();
        self.facts.snapshot = generation.map(|generation| Snapshot::new(generation, places));
        let by_program =
            |this: &mut Self| this.choose_program(&iptables, &usable, unusable, wanted);
        let chosen = match wanted.firewall {
            Firewall::Iptables => by_program(self),
            Firewall::Nftables => self.choose_nftables(&nftables, wanted, "it is asked for"),
            Firewall::Auto => by_program(self).or_else(|problems| {
                let reason = problems.first().map(|problem| problem.what.as_str());
                let reason = reason.unwrap_or("no iptables program works here");
                let chosen = self.choose_nftables(&nftables, wanted, reason);
                chosen.map_err(|more| [problems, more].concat())
            }),
        };
        self.transparent.extend(chosen.err().unwrap_or_default());
        let closed = |family: &Family| {
            matches!(sysctl::read(*family), Ok(Some(value)) if value != 1)
                && !sysctl::writable(*family)
        };
        let closed: Vec<Family> = self.facts.families.iter().copied().filter(closed).collect();
        self.warnings.extend(sysctl::unwritable(&closed));
    }

    /// The first of the candidates with which everything works; else what the best one lacks.
    fn choose_program(
        &mut self,
        iptables: &Iptables,
        usable: &[(Program, usize)],
        mut problems: Vec<Problem>,
        wanted: &Wanted,
    ) -> Result<(), Vec<Problem>> {
        for (program, why) in preferences(usable) {
            let place = |family| Place { program, family };
            let (lacking, lacking_for_ipv6) = both(
                || lacking(iptables, place(Family::V4), wanted),
                || lacking_for_ipv6(iptables, place(Family::V6), wanted),
            );
            if lacking.is_empty() {
                self.facts.backend = Some(Backend::Iptables(program));
                self.facts.why = why;
                self.judge_ipv6(&lacking_for_ipv6);
                return Ok(());
            }
            problems.extend(lacking);
        }
        Err(problems)
    }

    /// One table for both protocols, so both have what it needs or neither.
    fn choose_nftables(
        &mut self,
        nftables: &Nftables,
        wanted: &Wanted,
        why: &str,
    ) -> Result<(), Vec<Problem>> {
        let off: Vec<String> = ipv6_off().map(str::to_owned).into_iter().collect();
        let families = if off.is_empty() { &Family::BOTH[..] } else { &[Family::V4] };
        let table = Table { instance: Instance::new(0), kind: Kind::Rules };
        let Some(mark) = FwMark::new(1, 1) else { return Ok(()) };
        let rules = Ruleset { table, families, mark, intercept: &wanted.intercept };
        nftables.probe(&trial(&rules)).map_err(|refused| vec![lacking_in_nftables(&refused)])?;
        self.facts.backend = Some(Backend::Nftables);
        why.clone_into(&mut self.facts.why);
        self.judge_ipv6(&off);
        Ok(())
    }

    fn judge_ipv6(&mut self, lacking: &[String]) {
        if lacking.is_empty() {
            self.facts.families.push(Family::V6);
        } else {
            self.warnings.push(Problem::new(
                format!("transparent proxying is for IPv4 only: {}", lacking.join(", ")),
                "nothing to do if this host has no IPv6",
            ));
        }
    }
}

fn lacking_in_nftables(refused: &Refused) -> Problem {
    let mend = match &refused.change {
        Some(Change::AddTable(_)) => {
            "tables with an owner need Linux 5.12; use an iptables program"
        }
        _ => "run 'modprobe -a nf_tables nft_socket nft_tproxy' on the host",
    };
    Problem::new(format!("nftables does not do what is needed: {refused}"), mend)
}

fn lacking_for_ipv6(iptables: &Iptables, place: Place, wanted: &Wanted) -> Vec<String> {
    match ipv6_off() {
        Some(why) => vec![why.to_owned()],
        None => lacking(iptables, place, wanted).into_iter().map(|p| p.what).collect(),
    }
}

fn ipv6_off() -> Option<&'static str> {
    if !Path::new("/proc/thread-self/net/if_inet6").exists() {
        return Some("this kernel has no IPv6");
    }
    // With it the kernel refuses the route on lo.
    let disabled = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    disabled.is_ok_and(|text| text.trim() == "1").then_some("IPv6 is disabled on lo")
}

/// What the programs read.
#[derive(Default)]
struct Read {
    /// Those that are installed and can read IPv4 rules, with how many of them are others'.
    usable: Vec<(Program, usize)>,
    unusable: Vec<Problem>,
    /// Of `iptables-nft`.
    places: Vec<(Place, Saved)>,
}

impl Read {
    fn by(iptables: &Iptables) -> Self {
        let mut read = Self::default();
        let there =
            |p: &Program| installed(p.command(Family::V4)) && installed(p.save_command(Family::V4));
        let mut candidates: Vec<Program> =
            [Program::Nft, Program::Legacy].into_iter().filter(there).collect();
        if candidates.is_empty() {
            candidates.extend(Some(Program::Plain).filter(there));
        }
        if candidates.is_empty() {
            let path = env::var_os("PATH").unwrap_or_default();
            let what = format!("no iptables program in PATH={}", path.display());
            read.unusable.push(Problem::new(what, "use an image that has the package iptables"));
        }
        let mut places: Vec<Place> =
            candidates.iter().map(|&program| Place { program, family: Family::V4 }).collect();
        // For the snapshot alone: IPv6 is judged by the trial of its rules.
        places.extend(candidates.contains(&Program::Nft).then_some(NFT_IPV6));
        let saved = each(&places, |&place| iptables.saved(place));
        for (place, saved) in places.into_iter().zip(saved) {
            match saved {
                Ok(saved) => read.put(place, saved),
                Err(_) if place == NFT_IPV6 => {}
                Err(error) => {
                    let mend = kernel_mend(place.program);
                    read.unusable.push(Problem::new(format!("{error:#}"), mend));
                }
            }
        }
        read
    }

    fn put(&mut self, place: Place, saved: Saved) {
        if place.family == Family::V4 {
            self.usable.push((place.program, saved.foreign_rules));
        }
        if place.program == Program::Nft {
            self.places.push((place, saved));
        }
    }
}

/// In the order in which they are tried: the one in which the host's other rules are.
fn preferences(counts: &[(Program, usize)]) -> Vec<(Program, String)> {
    let count = |wanted| counts.iter().find(|(p, _)| *p == wanted).map(|(_, rules)| *rules);
    let (nft, legacy) = (count(Program::Nft), count(Program::Legacy));
    match (nft, legacy) {
        (Some(0), Some(rules)) if rules > 0 => vec![
            (Program::Legacy, format!("the host's {rules} other rules are there")),
            (Program::Nft, "iptables-legacy does not work here".into()),
        ],
        (Some(0), Some(_)) => vec![
            (Program::Nft, "the host has no other rules".into()),
            (Program::Legacy, "iptables-nft does not work here".into()),
        ],
        (Some(rules), Some(_)) => vec![
            (Program::Nft, format!("{rules} of the host's other rules are there")),
            (Program::Legacy, "iptables-nft does not work here".into()),
        ],
        _ => counts.iter().map(|(p, _)| (*p, "it is the only one here".into())).collect(),
    }
}

/// What program or kernel do not know of what our rules use.
fn lacking(iptables: &Iptables, place: Place, wanted: &Wanted) -> Vec<Problem> {
    const SOCKET: &str = "-p tcp -m socket --transparent";
    const COMMENT: &str = "-m comment --comment hapilot";
    const MARK: &str = "-j MARK --set-xmark 0x1/0x1";
    const TPROXY: &str = "-p tcp --dport 1 -j TPROXY --on-port 1 --tproxy-mark 0x1/0x1";
    let mut lacking = Vec::new();
    let all = format!("{SOCKET} {COMMENT} {MARK}");
    if iptables.probe(place, &all).is_err() {
        // One by one only now: each costs a process.
        let single = [("match socket", SOCKET), ("match comment", COMMENT), ("target MARK", MARK)];
        lacking.extend(single.into_iter().filter_map(|(n, rule)| probe(iptables, place, n, rule)));
    }
    if !wanted.intercept.is_empty() {
        lacking.extend(probe(iptables, place, "target TPROXY", TPROXY));
    }
    lacking
}

fn probe(iptables: &Iptables, place: Place, name: &str, rule: &str) -> Option<Problem> {
    let error = iptables.probe(place, rule).err()?;
    Some(Problem::new(format!("the {name} does not work: {error:#}"), kernel_mend(place.program)))
}

fn kernel_mend(program: Program) -> &'static str {
    match program {
        Program::Legacy => {
            "run 'modprobe -a iptable_mangle xt_socket xt_TPROXY xt_mark xt_comment' on the host"
        }
        Program::Nft | Program::Plain => {
            "run 'modprobe -a nft_compat xt_socket xt_TPROXY xt_mark xt_comment' on the host"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(counts: &[(Program, usize)]) -> Option<Program> {
        preferences(counts).first().map(|(program, _)| *program)
    }

    #[test]
    fn legacy_comes_first_only_where_it_has_rules_and_nft_has_none() {
        use Program::{Legacy, Nft, Plain};
        assert_eq!(first(&[(Nft, 0), (Legacy, 0)]), Some(Nft));
        assert_eq!(first(&[(Nft, 0), (Legacy, 3)]), Some(Legacy));
        assert_eq!(first(&[(Nft, 1), (Legacy, 3)]), Some(Nft));
        assert_eq!(first(&[(Legacy, 0)]), Some(Legacy));
        assert_eq!(first(&[(Plain, 0)]), Some(Plain));
        assert_eq!(first(&[]), None);
    }

    #[test]
    fn the_other_program_is_tried_when_the_first_does_not_work() {
        let order: Vec<_> = preferences(&[(Program::Nft, 0), (Program::Legacy, 2)])
            .into_iter()
            .map(|(program, _)| program)
            .collect();
        assert_eq!(order, [Program::Legacy, Program::Nft]);
    }

    #[test]
    fn a_run_directory_that_cannot_be_made_is_a_problem_with_its_flag() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let problem = run_directory(&file.path().join("hapilot")).unwrap();
        assert!(problem.what.contains("is not a directory"), "{problem}");
        assert!(problem.mend.contains("--tmpfs /run"), "{problem}");
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(run_directory(&directory.path().join("a/b")), None);
    }
}
