//! The host's state before equals the state after, with the real iptables, rules and routes.
//!
//! Each test has a thread in a network namespace of its own; nothing here can touch the machine's.
//! Needs root (or the right to make a network namespace), the iptables programs, iproute2 and nft.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Once;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hapilot::handover::guard::Guard;
use hapilot::handover::strategy::Kind;
use hapilot::host::applied::{Applied, Kernel};
use hapilot::host::backend::{Backend, Firewall};
use hapilot::host::barrier::{Barrier, Site};
use hapilot::host::debts::Debts;
use hapilot::host::lease::{self, Lease, SetupLock};
use hapilot::host::linux::Linux;
use hapilot::host::mark::{FwMark, Intercept, Port, TableId};
use hapilot::host::nftables::Nftables;
use hapilot::host::plan::Plan;
use hapilot::host::preflight::{self, Facts};
use hapilot::host::record::Migration;
use hapilot::host::step::{Family, Program};

use hapilot::host::{Host, Wanted, plan_for, sweep};
use nix::sched::{CloneFlags, unshare};

#[path = "lab/in_process.rs"]
mod in_process;

use in_process::{in_own_namespace, kill, run};

static ONCE: Once = Once::new();

/// The lock file of the legacy program is the machine's, not the namespace's.
fn private_lock_file() {
    ONCE.call_once(|| {
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("hapilot-test-{}.lock", std::process::id()));
        #[expect(unsafe_code, reason = "set once, before any test has read the environment")]
        // SAFETY: every test calls this first, and `call_once` makes the others wait.
        unsafe {
            std::env::set_var("XTABLES_LOCKFILE", file);
        }
    });
}

/// A fresh thread in a fresh namespace with `lo` up, and a runtime as the program has it.
fn in_netns<F>(test: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    private_lock_file();
    if let Err(panic) = in_own_namespace(test) {
        std::panic::resume_unwind(panic);
    }
}

/// All that issue 2 names, by the command that shows it.
type State = BTreeMap<&'static str, String>;

fn state() -> State {
    const COMMANDS: [&str; 11] = [
        "iptables-nft-save",
        "ip6tables-nft-save",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
        "nft -s list ruleset",
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
        "cat /proc/sys/net/ipv4/ip_nonlocal_bind",
        "cat /proc/sys/net/ipv6/ip_nonlocal_bind",
    ];
    COMMANDS.into_iter().map(|command| (command, stable(command, &run(command)))).collect()
}

/// Without counters, dates, and the built-in tables that asking iptables anything creates.
fn stable(command: &str, text: &str) -> String {
    if command.starts_with("nft") {
        // Of a table that has an owner.
        let line = |line: &str| line.split(" # progname").next().unwrap().to_owned() + "\n";
        return without_empty_nft_tables(&text.lines().map(line).collect::<String>());
    }
    if !command.ends_with("-save") {
        return text.into();
    }
    let mut kept = String::new();
    for table in text.split_inclusive("COMMIT\n") {
        let lines: Vec<&str> = table
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(" [").next().unwrap())
            .collect();
        let built_in =
            |line: &&str| line.starts_with('*') || line.ends_with(" ACCEPT") || *line == "COMMIT";
        if !lines.iter().all(|line| built_in(line) && !line.starts_with("-A")) {
            kept.push_str(&lines.join("\n"));
            kept.push('\n');
        }
    }
    kept
}

fn without_empty_nft_tables(text: &str) -> String {
    let tables = text.split("# Warning: table").flat_map(|t| t.split_inclusive("\n}\n"));
    tables
        .map(|table| {
            let lines = table.lines().map(str::trim).filter(|l| !l.is_empty());
            lines.filter(|l| !l.contains("is managed by iptables-nft")).collect::<Vec<_>>()
        })
        .filter(|lines| {
            let empty = |l: &&str| {
                l.starts_with("table ")
                    || l.starts_with("chain ")
                    || *l == "}"
                    || l.starts_with("type ")
            };
            !lines.iter().all(empty)
        })
        .map(|lines| lines.join("\n") + "\n")
        .collect()
}

#[track_caller]
fn assert_same(before: &State, after: &State) {
    for (command, text) in before {
        assert_eq!(text, &after[command], "{command}");
    }
}

/// Rules that live with one program, as others would have put them.
fn someone_elses(program: &str) {
    run(&format!(
        "{program} -t mangle -N DIVERT
         {program} -t mangle -A DIVERT -j MARK --set-mark 1
         {program} -t mangle -A PREROUTING -p tcp --dport 5 -j DIVERT
         {program} -t nat -A PREROUTING -p tcp --dport 7 -j MARK --or-mark 0x4000
         {program} -t filter -A INPUT -m mark --mark 0x80000/0xff0000 -j ACCEPT
         ip rule add fwmark 1 lookup 100; ip -6 rule add fwmark 1 lookup 100
         ip route add local default dev lo table 100
         ip -6 route add local default dev lo table 100
         ip rule add from 192.0.2.1 lookup 29000 priority 170
         ip route add blackhole 198.51.100.0/24 table 29001"
    ));
}

fn port(number: u16) -> Port {
    Port::new(number).unwrap()
}

fn wanted() -> Wanted {
    let intercept = vec![
        Intercept { from: port(80), to: port(8080) },
        Intercept { from: port(443), to: port(8443) },
    ];
    Wanted { intercept, ..Wanted::default() }
}

#[track_caller]
fn facts() -> Facts {
    let findings = preflight::look(&wanted());
    assert_eq!(findings.transparent, [], "this host cannot run the test");
    assert_eq!(findings.facts.families, Family::BOTH, "{:?}", findings.warnings);
    findings.facts
}

const NFT: Backend = Backend::Iptables(Program::Nft);
const LEGACY: Backend = Backend::Iptables(Program::Legacy);
const NFTABLES: Backend = Backend::Nftables;

fn facts_for(backend: Backend) -> Facts {
    Facts { backend: Some(backend), ..facts() }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

async fn set_up(facts: &Facts) -> (Lease, Host) {
    let lease = Host::take_lease().unwrap();
    let host = Host::set_up(lease.instance(), &wanted(), facts).await.unwrap();
    (lease, host)
}

async fn the_state_is_the_same_after(backend: Backend, others: &str) {
    someone_elses(others);
    let before = state();
    let facts = facts_for(backend);
    let (_lease, mut host) = set_up(&facts).await;
    host.intercept_on(soon()).await.unwrap();
    host.intercept_on(soon()).await.unwrap();
    let meanwhile = state();
    let (dump, diverts, intercepts, items) = match backend {
        Backend::Iptables(program) => (
            program.save_command(Family::V4),
            "-m socket --transparent -j HAPILOT-",
            "-A PREROUTING ! -i lo -p tcp -j HAPILOT-",
            14,
        ),
        Backend::Nftables => ("nft -s list ruleset", "socket transparent 1", "tproxy to :8080", 9),
    };
    let save = &meanwhile[dump];
    assert_eq!(save.matches(diverts).count(), 1, "{save}");
    assert_eq!(save.matches(intercepts).count(), 1, "{save}");
    let route = run("ip route get 203.0.113.9 mark 0x10000000");
    assert!(route.starts_with("local 203.0.113.9 dev lo table 29002"), "{route}");
    let route = run("ip -6 route get 2001:db8::9 mark 0x10000000");
    assert!(route.contains("dev lo") && route.contains("29002"), "{route}");
    assert_eq!(meanwhile["cat /proc/sys/net/ipv4/ip_nonlocal_bind"], "1\n");
    assert_eq!(meanwhile["cat /proc/sys/net/ipv6/ip_nonlocal_bind"], "1\n");
    assert_eq!(host.owned().len(), items, "{:#?}", host.owned());
    host.intercept_off(soon()).await.unwrap();
    host.intercept_off(soon()).await.unwrap();
    let save = run(dump);
    assert!(!save.contains(intercepts), "{save}");
    host.tear_down(soon()).await.unwrap();
    assert!(host.owned().is_empty());
    assert_same(&before, &state());
}

#[test]
fn nft_the_state_after_is_the_state_before() {
    in_netns(|| the_state_is_the_same_after(NFT, "iptables-nft"));
}

#[test]
fn legacy_the_state_after_is_the_state_before() {
    in_netns(|| the_state_is_the_same_after(LEGACY, "iptables-legacy"));
}

#[test]
fn nftables_the_state_after_is_the_state_before() {
    in_netns(|| the_state_is_the_same_after(NFTABLES, "iptables-nft"));
}

#[test]
fn the_undo_commands_that_status_shows_really_clean_the_host() {
    in_netns(|| async {
        let before = state();
        let (_lease, mut host) = set_up(&facts()).await;
        host.intercept_on(soon()).await.unwrap();
        for owned in host.owned().into_iter().rev() {
            run(&owned.undo);
        }
        assert_same(&before, &state());
        // What a person has removed already is not an error.
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

async fn by_hand_as_by_set_up(facts: Facts) {
    {
        let lease = Host::take_lease().unwrap();
        let before = state();
        let plan = plan_for(lease.instance(), &wanted(), &facts).await.unwrap();
        assert_same(&before, &state());
        for step in plan.steps() {
            run(&step.to_string());
        }
        let mut by_hand = state();
        for undo in plan
            .steps()
            .filter_map(hapilot::host::step::Step::undo)
            .collect::<Vec<_>>()
            .iter()
            .rev()
        {
            run(&undo.to_string());
        }
        let mut host = Host::set_up(lease.instance(), &wanted(), &facts).await.unwrap();
        host.intercept_on(soon()).await.unwrap();
        let mut set_up = state();
        if facts.backend == Some(NFTABLES) {
            // By hand nobody can own a table.
            let list = set_up.get_mut("nft -s list ruleset").unwrap();
            assert_eq!(list.matches("flags owner\n").count(), 1, "{list}");
            *list = list.replace("flags owner\n", "");
        } else {
            // nft lists chains in the order in which they were made, the built-in ones included.
            by_hand.remove("nft -s list ruleset");
        }
        assert_same(&by_hand, &set_up);
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    }
}

#[test]
fn the_plans_commands_do_by_hand_what_set_up_does() {
    in_netns(|| async { by_hand_as_by_set_up(facts()).await });
}

#[test]
fn nftables_the_plans_commands_do_by_hand_what_set_up_does() {
    in_netns(|| async { by_hand_as_by_set_up(facts_for(NFTABLES)).await });
}

async fn two_instances(backend: Backend) {
    let before = state();
    let facts = facts_for(backend);
    let (first_lease, mut first) = set_up(&facts).await;
    let only_first = state();
    let (second_lease, mut second) = set_up(&facts).await;
    second.intercept_on(soon()).await.unwrap();
    // A sweep beside two that live removes nothing.
    let both = state();
    assert!(sweep::sweep(&facts, None).await.unwrap().undone.is_empty());
    assert_same(&both, &state());
    second.tear_down(soon()).await.unwrap();
    assert_same(&only_first, &state());
    kill(second_lease, None);
    let (third_lease, mut third) = set_up(&facts).await;
    first.tear_down(soon()).await.unwrap();
    kill(first_lease, None);
    // The first has set the sysctl; the third has adopted it and still needs it.
    let third_alone = state();
    assert_eq!(third_alone["cat /proc/sys/net/ipv4/ip_nonlocal_bind"], "1\n");
    assert!(third_alone["ip rule"].contains("171"), "{}", third_alone["ip rule"]);
    third.tear_down(soon()).await.unwrap();
    drop(third_lease);
    assert_same(&before, &state());
}

#[test]
fn nft_of_two_instances_either_leaves_the_other_whole_and_the_last_restores_the_sysctls() {
    in_netns(|| two_instances(NFT));
}

#[test]
fn legacy_of_two_instances_either_leaves_the_other_whole_and_the_last_restores_the_sysctls() {
    in_netns(|| two_instances(LEGACY));
}

#[test]
fn nftables_of_two_instances_either_leaves_the_other_whole_and_the_last_restores_the_sysctls() {
    in_netns(|| two_instances(NFTABLES));
}

#[test]
fn two_instances_with_one_fixed_mark_and_table_share_the_route() {
    in_netns(|| async {
        let before = state();
        let facts = facts();
        let fixed =
            Wanted { mark: FwMark::new(0x2, 0x2), table: TableId::new(100), ..Wanted::default() };
        let (one, two) = (Host::take_lease().unwrap(), Host::take_lease().unwrap());
        let mut first = Host::set_up(one.instance(), &fixed, &facts).await.unwrap();
        let mut second = Host::set_up(two.instance(), &fixed, &facts).await.unwrap();
        assert_eq!(second.warnings().len(), 2, "{:?}", second.warnings());
        first.tear_down(soon()).await.unwrap();
        let route = run("ip route get 203.0.113.9 mark 2");
        assert!(route.starts_with("local 203.0.113.9 dev lo table 100"), "{route}");
        kill(one, None);
        second.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

#[test]
fn a_fixed_table_with_somebodys_default_route_is_refused_and_left_as_it_was() {
    in_netns(|| async {
        run("ip route add blackhole default table 100");
        let before = state();
        let fixed = Wanted { table: TableId::new(100), ..Wanted::default() };
        let lease = Host::take_lease().unwrap();
        let error = Host::set_up(lease.instance(), &fixed, &facts()).await.unwrap_err();
        assert!(format!("{error:#}").contains("another default route"), "{error:#}");
        assert_same(&before, &state());
    });
}

#[test]
fn a_sysctl_that_was_one_stays_one() {
    in_netns(|| async {
        run("echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind");
        let before = state();
        let (_lease, mut host) = set_up(&facts()).await;
        host.tear_down(soon()).await.unwrap();
        let after = state();
        assert_eq!(after["cat /proc/sys/net/ipv4/ip_nonlocal_bind"], "1\n");
        assert_same(&before, &after);
    });
}

/// What a kill leaves after each number of steps, the sweep removes.
async fn swept_at_every_step(backend: Backend, others: &str) {
    someone_elses(others);
    let facts = facts_for(backend);
    let before = state();
    let lease = Host::take_lease().unwrap();
    let steps = plan_for(lease.instance(), &wanted(), &facts).await.unwrap();
    drop(lease);
    for killed_after in 0..=steps.steps().count() {
        let lease = Host::take_lease().unwrap();
        let plan = plan_for(lease.instance(), &wanted(), &facts).await.unwrap();
        let steps: Vec<_> = plan.steps().take(killed_after).cloned().collect();
        let mut kernel = Linux::default();
        Applied::default().apply(&mut kernel, &steps).await.unwrap();
        let left = state();
        assert!(sweep::sweep(&facts, None).await.unwrap().undone.is_empty(), "it lives");
        assert_same(&left, &state());
        let instance = lease.instance();
        drop(kernel);
        kill(lease, None);
        if backend == NFTABLES {
            let rules = run("nft list ruleset");
            assert!(!rules.contains("flags owner") && !rules.contains("socket"), "{rules}");
        }
        let left = state();
        let told = sweep::dry_run(&facts, None).await.unwrap();
        assert_same(&left, &state());
        let swept = sweep::sweep(&facts, None).await.unwrap();
        assert!(swept.failures.is_empty(), "{:?}", swept.failures);
        assert_eq!(swept.undone, told);
        let found = if killed_after == 0 { vec![] } else { vec![instance] };
        assert_eq!(swept.instances, found);
        assert_same(&before, &state());
    }
}

#[test]
fn nft_what_a_kill_leaves_at_any_step_is_swept() {
    in_netns(|| swept_at_every_step(NFT, "iptables-nft"));
}

#[test]
fn legacy_what_a_kill_leaves_at_any_step_is_swept() {
    in_netns(|| swept_at_every_step(LEGACY, "iptables-legacy"));
}

#[test]
fn nftables_what_a_kill_leaves_at_any_step_is_swept() {
    in_netns(|| swept_at_every_step(NFTABLES, "iptables-nft"));
}

/// What a kill leaves after each number of undos, the sweep removes.
async fn swept_in_the_middle_of_a_tear_down(facts: Facts) {
    {
        let before = state();
        for killed_after in 0..14 {
            let lease = Host::take_lease().unwrap();
            let plan = plan_for(lease.instance(), &wanted(), &facts).await.unwrap();
            let mut kernel = Linux::default();
            let steps: Vec<_> = plan.steps().cloned().collect();
            Applied::default().apply(&mut kernel, &steps).await.unwrap();
            let mut undos: Vec<_> =
                steps.iter().filter_map(hapilot::host::step::Step::undo).collect();
            undos.sort_by_key(hapilot::host::step::Undo::urgency);
            for undo in undos.into_iter().rev().take(killed_after) {
                kernel.undo(&undo).await.unwrap();
            }
            drop(kernel);
            kill(lease, None);
            let swept = sweep::sweep(&facts, None).await.unwrap();
            assert!(swept.failures.is_empty(), "{:?}", swept.failures);
            assert_same(&before, &state());
        }
    }
}

#[test]
fn what_a_kill_leaves_in_the_middle_of_a_tear_down_is_swept() {
    in_netns(|| async { swept_in_the_middle_of_a_tear_down(facts()).await });
}

#[test]
fn nftables_what_a_kill_leaves_in_the_middle_of_a_tear_down_is_swept() {
    in_netns(|| async { swept_in_the_middle_of_a_tear_down(facts_for(NFTABLES)).await });
}

#[test]
fn a_dead_instance_of_another_firewall_is_swept_too() {
    in_netns(|| async {
        let before = state();
        for (dead, sweeper) in [(LEGACY, NFT), (NFTABLES, NFT), (NFT, NFTABLES)] {
            let (lease, host) = set_up(&facts_for(dead)).await;
            kill(lease, Some(host));
            let swept = sweep::sweep(&facts_for(sweeper), None).await.unwrap();
            assert_eq!(swept.instances.len(), 1, "{dead}");
            assert_same(&before, &state());
        }
    });
}

#[test]
fn rules_and_routes_whose_record_somebody_flushed_are_swept_once_nobody_can_own_them() {
    in_netns(|| async {
        run("ip rule add fwmark 0x4/0x4 lookup 77 priority 900 protocol 122");
        run("ip route add blackhole default table 77");
        run("ip rule add fwmark 0x8/0x8 lookup 78 priority 901");
        run("ip route add local default dev lo table 78");
        run("echo 1 | tee /proc/sys/net/ipv[46]/ip_nonlocal_bind");
        let before = state();
        let facts = facts();
        let (lease, host) = set_up(&facts).await;
        run("iptables-nft -t mangle -F; iptables-nft -t mangle -X; \
             ip6tables-nft -t mangle -F; ip6tables-nft -t mangle -X");
        assert!(sweep::sweep(&facts, None).await.unwrap().undone.is_empty(), "it lives");
        kill(lease, Some(host));
        let us = Host::take_lease().unwrap();
        let told = sweep::dry_run(&facts, Some(us.instance())).await.unwrap();
        let swept = sweep::sweep(&facts, Some(us.instance())).await.unwrap();
        assert_eq!((swept.undone.len(), swept.failures.len()), (4, 0));
        assert_eq!(swept.undone, told);
        assert_same(&before, &state());
    });
}

#[test]
fn the_sysctls_of_a_dead_instance_stay_while_a_living_one_needs_them() {
    in_netns(|| async {
        let before = state();
        let facts = facts();
        let (dead_lease, dead) = set_up(&facts).await;
        let (_lease, mut living) = set_up(&facts).await;
        kill(dead_lease, Some(dead));
        sweep::sweep(&facts, None).await.unwrap();
        assert_eq!(run("cat /proc/sys/net/ipv4/ip_nonlocal_bind"), "1\n");
        living.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

#[test]
fn legacy_is_chosen_only_where_the_hosts_rules_are() {
    in_netns(|| async {
        assert_eq!(facts().backend, Some(NFT));
        run("iptables-legacy -A INPUT -p tcp --dport 9 -j ACCEPT");
        let facts = facts();
        assert_eq!(facts.backend, Some(LEGACY), "{}", facts.why);
        run("iptables-nft -A INPUT -p tcp --dport 9 -j ACCEPT");
        assert_eq!(self::facts().backend, Some(NFT));
    });
}

#[test]
fn preflight_changes_nothing() {
    in_netns(|| async {
        let before = state();
        facts();
        assert_same(&before, &state());
    });
}

#[test]
fn without_ipv6_there_is_one_warning_and_the_rest_works() {
    in_netns(|| async {
        run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
        let before = state();
        let findings = preflight::look(&wanted());
        assert_eq!(findings.transparent, []);
        assert_eq!(findings.warnings.len(), 1, "{:?}", findings.warnings);
        assert_eq!(findings.facts.families, [Family::V4]);
        let (_lease, mut host) = set_up(&findings.facts).await;
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

#[test]
fn a_lease_lives_as_long_as_it_is_held() {
    in_netns(|| async {
        let lease = Host::take_lease().unwrap();
        let instance = lease.instance();
        assert!(lease::lives(instance).unwrap());
        assert!(Lease::of(instance).unwrap().is_none());
        kill(lease, None);
        assert!(Lease::of(instance).unwrap().is_some());
    });
}

#[test]
fn the_set_up_lock_is_waited_for_and_the_wait_has_an_end() {
    in_netns(|| async {
        let held = SetupLock::take(Duration::from_secs(1)).await.unwrap();
        let error = SetupLock::take(Duration::from_millis(50)).await.unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains("another hapilot"), "{said}");
        // Root is believed, and named.
        assert!(said.contains(&format!("process {} ", std::process::id())), "{said}");
        let (second, ()) = tokio::join!(SetupLock::take(Duration::from_secs(10)), async {
            tokio::task::yield_now().await;
            drop(held);
        });
        drop(second.unwrap());
    });
}

/// Here it was 1 before: a guard whose owner was killed had made it so.
#[test]
fn no_sweep_restores_a_sysctl_under_a_guard_that_relies_on_it() {
    in_netns(|| async {
        const MIGRATE: &str = "/proc/sys/net/ipv4/tcp_migrate_req";
        run(&format!("echo 1 > {MIGRATE}"));
        let facts = facts();
        let site = |lease: &Lease| Site {
            instance: lease.instance(),
            backend: facts.backend,
            families: facts.families.clone(),
            nftables: Nftables::default(),
            debts: Debts::default(),
            limit: Duration::from_secs(1),
        };
        let (dead, living) = (Host::take_lease().unwrap(), Host::take_lease().unwrap());
        let left = Migration { instance: dead.instance(), former: 0 };
        let _left = Barrier::note(&site(&dead), left).await.unwrap();
        let (ours, ports) = (site(&living), BTreeSet::from([80]));
        let guard = Guard::raise(Kind::Migrate, &ours, &ports).await.unwrap();
        kill(dead, None);
        let mut swept = std::pin::pin!(sweep::sweep(&facts, None));
        let waits = tokio::time::timeout(Duration::from_millis(50), &mut swept).await;
        assert!(waits.is_err(), "{waits:?}");
        assert_eq!(run(&format!("cat {MIGRATE}")), "1\n");
        assert_eq!(guard.lower().await.finish().await.failures, Vec::<String>::new());
        let swept = swept.await.unwrap();
        assert_eq!((swept.instances, swept.failures.len()), (vec![left.instance], 0));
        assert_eq!(run(&format!("cat {MIGRATE}")), "0\n");
    });
}

#[test]
fn a_tear_down_goes_on_without_a_set_up_lock_that_somebody_holds_for_ever() {
    in_netns(|| async {
        let before = state();
        let (_lease, mut host) = set_up(&facts()).await;
        let _held = SetupLock::take(Duration::from_secs(1)).await.unwrap();
        let start = Instant::now();
        host.tear_down(soon()).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert_same(&before, &state());
    });
}

#[test]
fn a_plan_can_be_applied_once_only_because_a_second_fails_and_is_rolled_back() {
    in_netns(|| async {
        let facts = facts();
        let lease = Host::take_lease().unwrap();
        let plan: Plan = plan_for(lease.instance(), &wanted(), &facts).await.unwrap();
        let mut kernel = Linux::default();
        let mut applied = Applied::default();
        applied.apply(&mut kernel, &plan.foundation).await.unwrap();
        let once = state();
        let error = Applied::default().apply(&mut kernel, &plan.foundation).await.unwrap_err();
        assert!(format!("{error:#}").contains("-N HAPILOT-"), "{error:#}");
        assert_same(&once, &state());
        assert!(applied.roll_back(&mut kernel).await.is_empty());
    });
}

/// As Docker does it: `/proc/sys` read-only, in a mount namespace of this thread's own.
fn proc_sys_read_only() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    run("mount --make-rprivate / && mount --bind /proc/sys /proc/sys \
         && mount -o remount,bind,ro /proc/sys");
}

#[test]
fn where_proc_sys_is_read_only_there_is_a_warning_with_the_mount_and_the_rest_works() {
    in_netns(|| async {
        proc_sys_read_only();
        let before = state();
        let findings = preflight::look(&wanted());
        assert_eq!(findings.transparent, []);
        assert_eq!(findings.warnings.len(), 1, "{:?}", findings.warnings);
        let told = findings.warnings[0].to_string();
        for part in [
            "-v /proc/sys/net/ipv4/ip_nonlocal_bind:/var/proc/sys/net/ipv4/ip_nonlocal_bind",
            "sysctl -w net.ipv4.ip_nonlocal_bind=1",
        ] {
            assert!(told.contains(part), "{told}");
        }
        let (_lease, mut host) = set_up(&findings.facts).await;
        assert!(!host.owned().iter().any(|owned| owned.what.contains("sysctl")));
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

async fn what_a_tear_down_cannot_undo_a_sweep_still_finds(backend: Backend) {
    let facts = facts_for(backend);
    let before = state();
    let (lease, mut host) = set_up(&facts).await;
    proc_sys_read_only();
    let error = host.tear_down(soon()).await.unwrap_err();
    let told: Vec<String> = error.0.iter().map(|failure| failure.undo.to_string()).collect();
    let sysctls = told.iter().filter(|command| command.starts_with("sysctl -w")).count();
    assert_eq!(sysctls, 2, "{told:?}");
    let left: Vec<String> = host.owned().into_iter().map(|owned| owned.undo).collect();
    assert_eq!(BTreeSet::from_iter(&told), BTreeSet::from_iter(&left), "all that is left is told");
    let instance = lease.instance();
    kill(lease, Some(host));
    run("umount /proc/sys");
    let swept = sweep::sweep(&facts, None).await.unwrap();
    assert_eq!((swept.instances, swept.failures.len()), (vec![instance], 0));
    assert_same(&before, &state());
}

#[test]
fn what_a_tear_down_cannot_undo_has_its_record_still() {
    in_netns(|| what_a_tear_down_cannot_undo_a_sweep_still_finds(NFT));
}

#[test]
fn legacy_what_a_tear_down_cannot_undo_has_its_record_still() {
    in_netns(|| what_a_tear_down_cannot_undo_a_sweep_still_finds(LEGACY));
}

#[test]
fn nftables_what_a_tear_down_cannot_undo_has_its_record_still() {
    in_netns(|| what_a_tear_down_cannot_undo_a_sweep_still_finds(NFTABLES));
}

#[test]
fn a_sysctl_that_is_mounted_elsewhere_is_written_there() {
    in_netns(|| async {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        run("mount --make-rprivate / && mount -t tmpfs none /var \
             && mkdir -p /var/proc/sys/net/ipv4 /var/proc/sys/net/ipv6 \
             && for v in ipv4 ipv6; do f=net/$v/ip_nonlocal_bind; touch /var/proc/sys/$f \
             && mount --bind /proc/sys/$f /var/proc/sys/$f; done");
        proc_sys_read_only();
        let before = state();
        let findings = preflight::look(&wanted());
        assert_eq!(findings.warnings, []);
        let (_lease, mut host) = set_up(&findings.facts).await;
        assert_eq!(run("cat /proc/sys/net/ipv4/ip_nonlocal_bind"), "1\n");
        assert_eq!(run("cat /proc/sys/net/ipv6/ip_nonlocal_bind"), "1\n");
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

#[test]
fn without_the_capability_that_alone_is_told_with_its_flag() {
    in_netns(|| async {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(rustix::thread::CapabilitySet::NET_ADMIN);
        rustix::thread::set_capabilities(None, sets).unwrap();
        let findings = preflight::look(&wanted());
        assert_eq!(findings.transparent.len(), 1, "{:?}", findings.transparent);
        assert!(findings.transparent[0].mend.contains("--cap-add=NET_ADMIN"));
        assert_eq!((findings.problems, findings.facts.backend), (vec![], None));
    });
}

#[test]
fn a_held_lock_of_the_legacy_program_ends_in_an_error_that_says_so() {
    in_netns(|| async {
        let facts = facts_for(LEGACY);
        let before = state();
        let (_lease, mut host) = set_up(&facts).await;
        // The lock is every test's: held for as short as can be, while one call waits for it.
        let file = fs::File::options()
            .create(true)
            .append(true)
            .open(std::env::var_os("XTABLES_LOCKFILE").unwrap())
            .unwrap();
        file.lock().unwrap();
        let start = Instant::now();
        let error = host.tear_down(start + Duration::from_millis(500)).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(error.to_string().contains("iptables-legacy -t mangle -D PREROUTING"), "{error}");
        file.unlock().unwrap();
        // The same again when the lock is free.
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

async fn put_back_after_a_flush(program: Program) {
    let before = state();
    let (_lease, mut host) = set_up(&facts_for(Backend::Iptables(program))).await;
    host.intercept_on(soon()).await.unwrap();
    let mut whole = state();
    // nft lists chains in the order in which they were made.
    whole.remove("nft -s list ruleset");
    assert_eq!(host.put_back(soon()).await.unwrap(), Vec::<String>::new());
    assert_same(&whole, &state());
    let v4 = program.command(Family::V4);
    for (damage, items) in [
        (format!("{v4} -t mangle -F PREROUTING"), 2),
        (format!("{v4} -t mangle -F; {v4} -t mangle -X"), 4),
        (format!("{v4} -t mangle -D PREROUTING 1"), 1),
        ("ip rule del priority 170; ip -6 route flush table 29000".into(), 2),
    ] {
        run(&damage);
        let gone = host.put_back(soon()).await.unwrap();
        assert_eq!(gone.len(), items, "{damage}: {gone:?}");
        assert_same(&whole, &state());
    }
    host.tear_down(soon()).await.unwrap();
    assert_same(&before, &state());
}

#[test]
fn nft_what_somebody_flushed_is_put_back() {
    in_netns(|| put_back_after_a_flush(Program::Nft));
}

#[test]
fn legacy_what_somebody_flushed_is_put_back() {
    in_netns(|| put_back_after_a_flush(Program::Legacy));
}

/// It is in the middle as soon as it waits for the kernel.
async fn swept_in_the_middle_of_putting_back(program: Program) {
    let before = state();
    let facts = facts_for(Backend::Iptables(program));
    let (lease, mut host) = set_up(&facts).await;
    let [v4, v6] = Family::BOTH.map(|family| program.command(family));
    run(&format!(
        "for p in {v4} {v6}; do $p -t mangle -F; $p -t mangle -X; done
         for ip in 'ip -4' 'ip -6'; do $ip rule del priority 170; $ip route flush table 29000; done"
    ));
    assert!(host.put_back(soon()).now_or_never().is_none(), "it had nothing to wait for");
    let instance = lease.instance();
    kill(lease, Some(host));
    let swept = sweep::sweep(&facts, None).await.unwrap();
    assert_eq!((swept.instances, swept.failures.len()), (vec![instance], 0));
    assert_same(&before, &state());
}

#[test]
fn nft_what_a_kill_leaves_in_the_middle_of_putting_back_is_swept() {
    in_netns(|| swept_in_the_middle_of_putting_back(Program::Nft));
}

#[test]
fn legacy_what_a_kill_leaves_in_the_middle_of_putting_back_is_swept() {
    in_netns(|| swept_in_the_middle_of_putting_back(Program::Legacy));
}

#[test]
fn nftables_what_somebody_flushed_is_put_back() {
    in_netns(|| async {
        let before = state();
        let (_lease, mut host) = set_up(&facts_for(NFTABLES)).await;
        host.intercept_on(soon()).await.unwrap();
        let mut whole = state();
        // nft lists tables in the order in which they were made.
        let tables = whole.remove("nft -s list ruleset").unwrap();
        run("nft flush ruleset; ip rule del priority 170; ip -6 route flush table 29000");
        let flushed = run("nft list ruleset");
        assert!(flushed.contains("flags owner") && !flushed.contains("-RECORD"), "{flushed}");
        let broken = host.put_back(soon()).await.unwrap();
        assert!(broken[0].contains("-RECORD"), "{broken:?}");
        assert_same(&whole, &state());
        let record = tables.lines().find(|line| line.contains("hapilot:")).unwrap();
        assert!(run("nft list ruleset").contains(record));
        assert_eq!(host.put_back(soon()).await.unwrap(), Vec::<String>::new());
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

#[test]
fn nftables_nobody_but_us_can_change_our_table() {
    in_netns(|| async {
        let (_lease, mut host) = set_up(&facts_for(NFTABLES)).await;
        let table = run("nft list tables | grep -v RECORD").trim().to_owned();
        for line in [
            format!("nft delete {table}"),
            format!("nft flush {table}"),
            format!("nft {} prerouting accept", table.replace("table", "add rule")),
        ] {
            let status = std::process::Command::new("sh").args(["-c", &line]).output().unwrap();
            assert!(!status.status.success(), "{line}");
        }
        host.tear_down(soon()).await.unwrap();
    });
}

fn look_with(firewall: Firewall) -> preflight::Findings {
    preflight::look(&Wanted { firewall, ..wanted() })
}

#[test]
fn nftables_is_taken_when_it_is_asked_for_and_preflight_leaves_no_trace_of_its_trial() {
    in_netns(|| async {
        let before = state();
        let findings = look_with(Firewall::Nftables);
        assert_eq!((findings.transparent, findings.warnings), (vec![], vec![]));
        assert_eq!(findings.facts.backend, Some(NFTABLES));
        assert_eq!(look_with(Firewall::Iptables).facts.backend, Some(NFT));
        assert_same(&before, &state());
    });
}

#[test]
fn nftables_for_ipv4_alone_touches_nothing_of_ipv6() {
    in_netns(|| async {
        run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
        let before = state();
        let findings = look_with(Firewall::Nftables);
        assert_eq!(findings.facts.families, [Family::V4]);
        assert_eq!(findings.warnings.len(), 1, "{:?}", findings.warnings);
        let (_lease, mut host) = set_up(&findings.facts).await;
        let rules = run("nft list ruleset");
        assert_eq!(rules.matches("meta nfproto ipv4").count(), 3, "{rules}");
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}

#[test]
fn the_one_capability_is_enough() {
    in_netns(|| async {
        use rustix::thread::{CapabilitySet, CapabilitySets};
        let before = state();
        for number in (0..=40).filter(|number| *number != 12) {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::remove_capability_from_bounding_set(capability).unwrap();
        }
        let only = CapabilitySet::NET_ADMIN;
        let sets = CapabilitySets { effective: only, permitted: only, inheritable: only };
        rustix::thread::set_capabilities(None, sets).unwrap();
        let granted = run("grep CapEff: /proc/self/status");
        assert_eq!(granted.split_whitespace().last(), Some("0000000000001000"));
        let facts = facts_for(NFT);
        let (_lease, mut host) = set_up(&facts).await;
        host.intercept_on(soon()).await.unwrap();
        assert_eq!(host.owned().len(), 14, "{:#?}", host.owned());
        host.tear_down(soon()).await.unwrap();
        assert_same(&before, &state());
    });
}
