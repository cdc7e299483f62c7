//! The host when its tools hang or refuse: every call has an end, and what stays is told.
//!
//! A file of its own: a fake iptables stands before the real one in `PATH`, which is the process's.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails the test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hapilot::host::backend::Backend;
use hapilot::host::iptables::Iptables;
use hapilot::host::preflight::{self, Facts};
use hapilot::host::step::{Family, Place, Program};
use hapilot::host::{Host, Wanted, sweep};

#[path = "lab/in_process.rs"]
mod in_process;

use in_process::{in_own_namespace, kill, run};

/// One test at a time has the fake.
static TURN: Mutex<()> = Mutex::new(());
static FAKES: OnceLock<PathBuf> = OnceLock::new();

/// Where the fakes are and what they are told.
fn fakes() -> &'static PathBuf {
    FAKES.get_or_init(|| {
        let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hapilot-fakes-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        for name in ["iptables-nft", "ip6tables-nft", "iptables-nft-restore", "ip6tables-nft-restore"] {
            let real = std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.exists()).unwrap();
            // The sleep is a child that keeps the output open, as a helper of a real tool might.
            let script = format!(
                "#!/bin/sh\n\
                 d={}\n\
                 if [ -s $d/hang ]; then case \"$*\" in *\"$(cat $d/hang)\"*) sleep 987; exit 0;; esac; fi\n\
                 if [ -s $d/refuse ]; then case \"$*\" in *\"$(cat $d/refuse)\"*) echo no such luck >&2; exit 4;; esac; fi\n\
                 {} \"$@\" || exit $?\n\
                 if [ -s $d/late ]; then case \"$*\" in *\"$(cat $d/late)\"*) sleep 987;; esac; fi\n\
                 if [ -s $d/die ]; then case \"$*\" in *\"$(cat $d/die)\"*) kill -9 $$;; esac; fi\n",
                directory.display(),
                real.display()
            );
            fs::write(directory.join(name), script).unwrap();
            fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut directories = vec![directory.clone()];
        directories.extend(std::env::split_paths(&path));
        #[expect(unsafe_code, reason = "set once, before any test has read the environment")]
        // SAFETY: every test has its turn and comes here before it does anything else.
        unsafe {
            std::env::set_var("PATH", std::env::join_paths(directories).unwrap());
            std::env::set_var("XTABLES_LOCKFILE", directory.join("lock"));
        }
        directory
    })
}

fn tell(what: &str, arguments: &str) {
    fs::write(fakes().join(what), arguments).unwrap();
}

fn in_netns<F>(test: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    tell("hang", "");
    tell("refuse", "");
    tell("late", "");
    tell("die", "");
    let result = in_own_namespace(test);
    drop(turn);
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn rules() -> Vec<String> {
    let text = run("iptables-nft-save; ip6tables-nft-save; ip rule; ip -6 rule; \
                    ip route show table all; ip -6 route show table all; \
                    cat /proc/sys/net/ipv[46]/ip_nonlocal_bind");
    text.lines()
        .filter(|line| !line.starts_with(['#', ':', '*']) && *line != "COMMIT")
        .map(Into::into)
        .collect()
}

fn facts() -> Facts {
    let findings = preflight::look(&Wanted::default());
    assert_eq!(findings.transparent, [], "this host cannot run the test");
    assert_eq!(findings.facts.backend, Some(Backend::Iptables(Program::Nft)));
    findings.facts
}

/// Nobody in this namespace may be left asleep; other tests have sleepers of their own.
fn nobody_sleeps() {
    let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let mut sleepers = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let namespace = fs::read_link(entry.path().join("ns/net"));
        if command_line == b"sleep\x00987\x00" && namespace.is_ok_and(|theirs| theirs == ours) {
            sleepers.push(entry.path());
        }
    }
    assert_eq!(sleepers, Vec::<PathBuf>::new());
}

#[test]
fn a_call_that_hangs_is_ended_with_all_its_children() {
    in_netns(|| async {
        tell("hang", "-D FORWARD");
        let mut iptables = Iptables::default();
        let start = Instant::now();
        iptables.finish_by(start + Duration::from_millis(600));
        let place = Place { program: Program::Nft, family: Family::V4 };
        let error = iptables.delete(place, "FORWARD", "-j ACCEPT").unwrap_err();
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(format!("{error:#}").contains("still running"), "{error:#}");
        nobody_sleeps();
        iptables.finish_by(start);
        let error = iptables.delete(place, "FORWARD", "-j ACCEPT").unwrap_err();
        assert!(format!("{error:#}").contains("no time is left"), "{error:#}");
    });
}

#[test]
fn a_set_up_whose_last_step_hangs_is_rolled_back() {
    in_netns(|| async {
        let facts = facts();
        let before = rules();
        tell("hang", "-A PREROUTING");
        let lease = Host::take_lease().unwrap();
        let start = Instant::now();
        let error = Host::set_up(lease.instance(), &Wanted::default(), &facts).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        assert!(format!("{error:#}").contains("-A PREROUTING -p tcp -m socket"), "{error:#}");
        assert_eq!(before, rules());
        nobody_sleeps();
    });
}

#[test]
fn what_a_program_did_before_it_hung_or_was_killed_is_taken_back_too() {
    in_netns(|| async {
        let facts = facts();
        let before = rules();
        let each = ["late", "die"]
            .into_iter()
            .flat_map(|how| [(how, "-A PREROUTING"), (how, "--noflush")]);
        for (how, arguments) in each {
            tell(how, arguments);
            let lease = Host::take_lease().unwrap();
            let error = Host::set_up(lease.instance(), &Wanted::default(), &facts).await.err();
            tell(how, "");
            // What one transaction did not do in time, single commands do.
            assert_eq!(error.is_some(), arguments == "-A PREROUTING", "{error:?}");
            if error.is_none() {
                kill(lease, None);
                sweep::sweep(&facts, None).await.unwrap();
            }
            assert_eq!(before, rules(), "{how} {arguments}");
            assert!(!run("iptables-nft -t mangle -S").contains("HAPILOT"));
            nobody_sleeps();
        }
    });
}

#[test]
fn a_tear_down_whose_every_call_hangs_ends_in_time_names_what_stays_and_a_sweep_removes_it() {
    in_netns(|| async {
        let facts = facts();
        let before = rules();
        let lease = Host::take_lease().unwrap();
        let mut host = Host::set_up(lease.instance(), &Wanted::default(), &facts).await.unwrap();
        tell("hang", "-");
        let start = Instant::now();
        let error = host.tear_down(start + Duration::from_secs(1)).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        let told = error.to_string();
        assert!(told.contains("iptables-nft -t mangle -D PREROUTING"), "{told}");
        assert!(told.contains("ip6tables-nft -t mangle -D PREROUTING"), "{told}");
        nobody_sleeps();
        tell("hang", "");
        kill(lease, Some(host));
        let swept = sweep::sweep(&facts, None).await.unwrap();
        assert!(swept.failures.is_empty(), "{:?}", swept.failures);
        assert_eq!(before, rules());
    });
}

#[test]
fn what_a_sweep_cannot_remove_is_named_and_the_record_stays_for_the_next() {
    in_netns(|| async {
        let facts = facts();
        let before = rules();
        let lease = Host::take_lease().unwrap();
        let host = Host::set_up(lease.instance(), &Wanted::default(), &facts).await.unwrap();
        let instance = lease.instance();
        kill(lease, Some(host));
        tell("refuse", "-D PREROUTING");
        let swept = sweep::sweep(&facts, None).await.unwrap();
        assert_eq!(swept.failures.len(), 2, "{:?}", swept.failures);
        let told = swept.failures[0].to_string();
        assert!(told.contains("-t mangle -D PREROUTING -p tcp -m socket --transparent"), "{told}");
        assert!(told.contains("no such luck"), "{told}");
        assert!(run("iptables-nft-save").contains(&format!("hapilot:{instance}:")));
        tell("refuse", "");
        let swept = sweep::sweep(&facts, None).await.unwrap();
        assert_eq!((swept.instances, swept.failures.len()), (vec![instance], 0));
        assert_eq!(before, rules());
    });
}

#[test]
fn without_its_record_nothing_is_put_back_and_the_next_time_all_is() {
    in_netns(|| async {
        let facts = facts();
        let before = rules();
        let lease = Host::take_lease().unwrap();
        let mut host = Host::set_up(lease.instance(), &Wanted::default(), &facts).await.unwrap();
        let whole = rules();
        run("for p in iptables-nft ip6tables-nft; do $p -t mangle -F; $p -t mangle -X; done
             ip rule del priority 170; ip -6 rule del priority 170");
        let flushed = rules();
        let soon = || Instant::now() + Duration::from_secs(10);
        tell("refuse", "--noflush");
        let error = host.put_back(soon()).await.unwrap_err();
        assert!(format!("{error:#}").contains("no such luck"), "{error:#}");
        assert_eq!(flushed, rules());
        tell("refuse", "");
        assert_eq!(host.put_back(soon()).await.unwrap().len(), 6);
        assert_eq!(whole, rules());
        host.tear_down(soon()).await.unwrap();
        assert_eq!(before, rules());
    });
}
