//! Acts: how one that was relieved knows it when its container is started again.
//!
//! A restart policy starts it again; it must not take the service back. Two things tell it: a mark
//! that it left in its run directory, which is there again after `docker restart` unless `/run` is
//! a tmpfs, and the container's own name, which the successor was told. The successor may be started
//! again as well: for whom it stands is in its own run directory. Where that is a tmpfs, too, nobody
//! remembers; then of two containers the one that was made later is the successor.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::hapilot::Hapilot;
use super::protocol::{Caller, Hello, Name, SERVES};
use crate::fault::{self, Point};
use crate::host::instance::Instance;
use crate::host::lease;
use crate::process::file::{Readers, replace};

const FILE: &str = "relieved";
const LINEAGE: &str = "lineage";

/// What one that was relieved leaves for the next run in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub instance: String,
    /// Who relieved it.
    pub by: String,
    /// Its successor's, which is the same once that was started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// RFC 3339.
    pub at: String,
}

#[must_use]
pub fn path(run_directory: &Path) -> PathBuf {
    run_directory.join(FILE)
}

pub fn write(run_directory: &Path, mark: &Mark) -> Result<()> {
    let (path, text) = (path(run_directory), serde_json::to_string(mark)?);
    let written =
        fault::at(Point::Mark).and_then(|()| replace(&path, text.as_bytes(), Readers::Owner));
    written.with_context(|| format!("write {}", path.display()))
}

/// `None` where there is none that can be understood.
#[must_use]
pub fn read(run_directory: &Path) -> Option<Mark> {
    serde_json::from_str(&fs::read_to_string(path(run_directory)).ok()?).ok()
}

/// For the next run in this place. What is not there, or not understood, is nobody.
#[must_use]
pub fn lineage(run_directory: &Path) -> Vec<Name> {
    let text = fs::read_to_string(run_directory.join(LINEAGE)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

pub fn write_lineage(run_directory: &Path, lineage: &[Name]) -> Result<()> {
    let (path, text) = (run_directory.join(LINEAGE), serde_json::to_string(lineage)?);
    replace(&path, text.as_bytes(), Readers::Owner)
        .with_context(|| format!("write {}", path.display()))
}

pub fn remove(run_directory: &Path) -> Result<()> {
    let path = path(run_directory);
    match fault::at(Point::Unmark).and_then(|()| fs::remove_file(&path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// What tells our container from every other and is the same when it is started again: the
/// directory in which the engine keeps its files or, where the storage driver hides it, its number
/// in the name of our cgroup, or where its `/etc/hostname` is kept; and what is mounted on `/run`.
/// The hostname belongs to another container where the network does (`--net=container:`), see
/// `relieved_by`.
#[must_use]
pub fn container() -> Option<String> {
    let cgroups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    container_in(&fs::read_to_string("/proc/self/mountinfo").ok()?, &cgroups)
}

fn container_in(mountinfo: &str, cgroups: &str) -> Option<String> {
    let files = |target| mount(mountinfo, target)?.of_one_container();
    let own = files("/").or_else(|| cgroups.lines().find_map(long_number));
    let own = own.or_else(|| files("/etc/hostname"))?;
    let run = mount(mountinfo, "/run").map_or("-", |run| run.root);
    Some(format!("{own} {run}"))
}

/// When our container was made, in nanoseconds since the epoch, where its files tell.
#[must_use]
pub fn created() -> Option<u64> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = |target: &&str| mount(&mountinfo, target).is_some_and(Mount::is_of_one_container);
    let files = ["/", "/etc/hostname"].into_iter().find(own)?;
    let created = fs::metadata(files).and_then(|files| files.created()).ok()?;
    u64::try_from(created.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_nanos()).ok()
}

/// Whether what is written there is gone when the container is started again.
#[must_use]
pub fn forgets(run_directory: &Path) -> bool {
    const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
    let there = run_directory.ancestors().find_map(|path| rustix::fs::statfs(path).ok());
    there.is_some_and(|there| {
        u32::try_from(there.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind))
    })
}

/// The number that an engine gave a container, the innermost where they are nested.
fn long_number(text: &str) -> Option<&str> {
    let words = text.rsplit(|c: char| !c.is_ascii_hexdigit());
    words.into_iter().find(|word| word.len() == 64)
}

/// A line of `/proc/PID/mountinfo` (proc(5)).
#[derive(Clone, Copy)]
struct Mount<'a> {
    /// Which directory of its file system.
    root: &'a str,
    options: &'a str,
}

/// What was mounted there last.
fn mount<'a>(mountinfo: &'a str, target: &str) -> Option<Mount<'a>> {
    mountinfo.lines().rev().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let options = file_system.split(' ').nth(2)?;
        (at == target).then_some(Mount { root, options })
    })
}

impl<'a> Mount<'a> {
    /// Overlay names its upper directory; else a directory has the container's long number.
    fn of_one_container(self) -> Option<&'a str> {
        let upper = self.options.split(',').find_map(|option| option.strip_prefix("upperdir="));
        upper.or_else(|| long_number(self.root).and(Some(self.root)))
    }

    fn is_of_one_container(self) -> bool {
        self.of_one_container().is_some()
    }
}

/// Who lives here and has relieved the one that ran in this container before, if anybody.
#[must_use]
pub fn relieved_by(
    own: &Name,
    mark: Option<&Mark>,
    living: &[(Instance, Option<Hello>)],
) -> Option<Instance> {
    let former = mark.map(|mark| Name { instance: mark.instance.clone(), ..own.clone() });
    let us = former.as_ref().unwrap_or(own);
    let stands_for_us = |(instance, hello): &&(Instance, Option<Hello>)| match hello {
        // Nobody but us lives in our container: one that says so shows that the name is not ours
        // alone.
        Some(Hello { name, lineage, .. }) if name.container == us.container => {
            lineage.iter().any(|name| name.instance == us.instance)
        }
        Some(Hello { name, lineage, .. }) => {
            let by = mark.and_then(|mark| mark.container.as_ref());
            lineage.iter().any(|name| name.is_of(us))
                || (by.is_some() && name.container.as_ref() == by)
        }
        // It does not answer; but it is the very one.
        None => mark.is_some_and(|mark| mark.by == instance.to_string()),
    };
    living.iter().find(stands_for_us).map(|(instance, _)| *instance)
}

/// Who serves here in a container that was made after ours, where one of both means to relieve
/// whoever was there before: for one whose run directory forgets. A container that was made earlier
/// and is started later for the first time is taken for one that was relieved as well.
#[must_use]
pub fn made_later(
    own: &Name,
    created: Option<u64>,
    relieves_all: bool,
    living: &[(Instance, Option<Hello>)],
) -> Option<Instance> {
    let is_successor = |hello: &Hello| {
        let known = own.container.is_some() && hello.name.container.is_some();
        known
            && own.container != hello.name.container
            && created.is_some_and(|ours| hello.created.is_some_and(|theirs| theirs > ours))
            && (relieves_all || hello.relieves_all)
            && SERVES.contains(&hello.state.as_str())
    };
    let successor = living.iter().find(|(_, hello)| hello.as_ref().is_some_and(is_successor));
    successor.map(|(instance, _)| *instance)
}

/// Whoever may stand for us, as far as they answer and can be believed.
pub async fn living(caller: &Caller) -> Vec<(Instance, Option<Hello>)> {
    let living = lease::living().unwrap_or_default();
    let powerless = lease::powerless(&living);
    let living: Vec<_> = living.into_iter().collect();
    let met = Hapilot::meet_each(&living, caller).await;
    let hello = |hapilot: Hapilot| (!hapilot.is_doubtful).then_some(hapilot.hello);
    let hellos = met.into_iter().map(|met| met.ok().and_then(hello));
    // A name alone says nothing that any process could not say.
    let living = living.into_iter().zip(hellos);
    living.filter(|(of, hello)| hello.is_some() || !powerless.contains(of)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_known_by_where_its_files_are_kept() {
        let line = |root: &str, target: &str, options: &str| {
            format!("1 2 8:1 {root} {target} rw,relatime master:1 - fs source {options}\n")
        };
        let overlay = "rw,lowerdir=/l:/k,upperdir=/var/lib/docker/overlay2/abc/diff,workdir=/w";
        let tmpfs = line("/", "/run", "rw,size=8k");
        for (text, known) in [
            (line("/", "/", overlay), Some("/var/lib/docker/overlay2/abc/diff -")),
            (line("/", "/", overlay) + &tmpfs, Some("/var/lib/docker/overlay2/abc/diff /")),
            (
                line("/", "/", overlay) + &line("/runs/a", "/run", "rw"),
                Some("/var/lib/docker/overlay2/abc/diff /runs/a"),
            ),
            (line("/", "/", "rw") + &tmpfs, None),
            (line("/", "/data", overlay), None),
            (line("/etc/hostname", "/etc/hostname", "rw"), None),
            ("garbage".to_owned(), None),
        ] {
            assert_eq!(container_in(&text, "0::/").as_deref(), known, "{text}");
        }
        let vfs = format!("/var/lib/docker/vfs/dir/{}", "0123456789abcdef".repeat(4));
        let hostname = format!("{vfs}/hostname");
        for (root, target) in [(&vfs, "/"), (&hostname, "/etc/hostname")] {
            let text = line("/", "/", "rw") + &line(root, target, "rw");
            assert_eq!(container_in(&text, ""), Some(format!("{root} -")));
        }
        let (outer, inner) = ("a1".repeat(32), "b2".repeat(32));
        let cgroups = format!("1:cpu:/docker/{outer}/docker-{inner}.scope/init\n0::/\n");
        let hidden = line("/", "/", "rw") + &tmpfs + &line(&hostname, "/etc/hostname", "rw");
        assert_eq!(container_in(&hidden, &cgroups), Some(format!("{inner} /")));
        let of_its_own = line("/", "/", overlay);
        let upper = "/var/lib/docker/overlay2/abc/diff -";
        assert_eq!(container_in(&of_its_own, &cgroups).as_deref(), Some(upper));
    }

    #[test]
    fn where_nobody_remembers_the_container_that_was_made_later_is_the_successor() {
        let name = |container: Option<&str>| Name {
            instance: "-".to_owned(),
            container: container.map(str::to_owned),
        };
        let hello = |container, created| Hello {
            protocol: 1,
            name: name(container),
            version: String::new(),
            haproxy_version: String::new(),
            state: "serving".to_owned(),
            started: 1,
            created,
            relieves_all: true,
            transparent: false,
            lineage: Vec::new(),
        };
        let own = name(Some("ours"));
        let theirs = hello(Some("theirs"), Some(20));
        let by = |own: &Name, created, hello: &Hello| {
            made_later(own, created, false, &[(Instance::new(7), Some(hello.clone()))]).is_some()
        };
        assert!(by(&own, Some(10), &theirs));
        assert!(!by(&own, Some(20), &theirs) && !by(&own, Some(30), &theirs));
        assert!(!by(&own, None, &theirs) && !by(&name(None), Some(10), &theirs));
        for other in [hello(Some("ours"), Some(20)), hello(None, Some(20)), hello(Some("x"), None)]
        {
            assert!(!by(&own, Some(10), &other), "{other:?}");
        }
        // One that ends or starts may never serve.
        for state in ["starting", "stopping", "relieved"] {
            let other = Hello { state: state.to_owned(), ..theirs.clone() };
            assert!(!by(&own, Some(10), &other), "{other:?}");
        }
        let beside = Hello { relieves_all: false, ..theirs };
        assert!(!by(&own, Some(10), &beside));
        let living = [(Instance::new(7), Some(beside))];
        assert!(made_later(&own, Some(10), true, &living).is_some());
        assert_eq!(made_later(&own, Some(10), true, &[(Instance::new(7), None)]), None);
    }

    #[test]
    fn a_file_system_in_memory_forgets() {
        assert!(forgets(Path::new("/dev/shm/not/there")));
        assert!(!forgets(Path::new("/proc/not/there")));
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let mark = Mark {
            instance: "0a".to_owned(),
            by: "0b".to_owned(),
            container: Some("c".to_owned()),
            at: "2026".to_owned(),
        };
        assert_eq!(read(directory.path()), None);
        write(directory.path(), &mark).unwrap();
        assert_eq!(read(directory.path()), Some(mark.clone()));
        remove(directory.path()).unwrap();
        remove(directory.path()).unwrap();
        assert_eq!(read(directory.path()), None);
        assert_eq!(lineage(directory.path()), []);
        let names = [Name { instance: mark.instance, container: mark.container }];
        write_lineage(directory.path(), &names).unwrap();
        assert_eq!(lineage(directory.path()), names);
        fs::write(directory.path().join(LINEAGE), "[{").unwrap();
        assert_eq!(lineage(directory.path()), []);
    }

    #[test]
    fn who_was_relieved_stays_away_while_one_lives_that_stands_for_it() {
        let name = |instance: &str, container: Option<&str>| Name {
            instance: instance.to_owned(),
            container: container.map(str::to_owned),
        };
        let own = name("fresh", Some("c1"));
        let successor = Instance::new(7);
        let by = successor.to_string();
        let mark = Mark { instance: "before".to_owned(), by, container: None, at: String::new() };
        let by_c2 = Mark { container: Some("c2".to_owned()), ..mark.clone() };
        let by_c1 = Mark { container: Some("c1".to_owned()), ..mark.clone() };
        let hello = |container: &str, lineage: &[Name]| Hello {
            protocol: 1,
            name: name("successor", Some(container)),
            version: String::new(),
            haproxy_version: String::new(),
            state: "serving".to_owned(),
            started: 1,
            created: None,
            relieves_all: false,
            transparent: false,
            lineage: lineage.to_vec(),
        };
        let (before, first) = (name("before", None), name("before", Some("c1")));
        let other = name("before", Some("c2"));
        for (mark, hello, stays_away) in [
            (Some(&mark), Some(hello("c2", &[before])), true),
            (Some(&mark), None, true),
            (Some(&mark), Some(hello("c2", &[])), false),
            (None, Some(hello("c2", std::slice::from_ref(&first))), true),
            (None, Some(hello("c3", &[other])), false),
            // Its container is called as ours: the name says nothing.
            (None, Some(hello("c1", std::slice::from_ref(&first))), false),
            (Some(&mark), Some(hello("c1", &[first])), true),
            (None, None, false),
            // The successor was started again, and has forgotten.
            (Some(&by_c2), Some(hello("c2", &[])), true),
            (Some(&by_c2), Some(hello("c3", &[])), false),
            (Some(&by_c1), Some(hello("c1", &[])), false),
        ] {
            let by = relieved_by(&own, mark, &[(successor, hello.clone())]);
            assert_eq!(by.is_some(), stays_away, "{mark:?} {hello:?}");
        }
        assert_eq!(relieved_by(&own, Some(&mark), &[]), None);
    }
}
