//! What is asked of the host after a fault.

use std::time::{Duration, SystemTime};

use super::life::{Scene, Way};
use crate::lab::{Host, HostState, SHORT, until};

/// Whoever was killed blocks and diverts nobody for longer than this.
const BLOCKED: Duration = Duration::from_secs(2);

/// Right after a kill. The one exception: interception by iptables, until a start or a sweep.
pub(super) fn assert_harmless(scene: &Scene<'_>, way: Way, what: &str) {
    let host = scene.host;
    if way.firewall == "nftables" {
        // The kernel takes the table away when the last descriptor is closed.
        return until(SHORT, &format!("{what}: no rule is left in nftables"), || {
            let list = host.namespace.run("nft list ruleset");
            let tables = list.split("\n}").filter(|table| table.contains("table inet HAPILOT-"));
            // Whoever lives beside the one that was killed has its own.
            let other = scene.other_instance();
            let tables = tables.filter(|t| !other.as_ref().is_some_and(|other| t.contains(other)));
            let bare = |table: &str| !table.contains("chain ") && !table.contains("set ");
            tables.clone().all(bare).then_some(())
        });
    }
    let program = way.firewall.trim_start_matches("iptables-");
    for family in ["ip", "ip6"] {
        let rules = host.namespace.run(&format!("{family}tables-{program}-save -t mangle"));
        for rule in rules.lines().filter(|rule| rule.starts_with("-A") && rule.contains("HAPILOT-"))
        {
            assert!(is_harmless(rule), "{what}: {rule}");
        }
    }
}

fn is_harmless(rule: &str) -> bool {
    let (chain, target) = (rule.split(' ').nth(1).unwrap(), rule.split(" -j ").last().unwrap());
    let target = target.split(' ').next().unwrap();
    if chain.ends_with("-GUARD") {
        return match target {
            "DROP" => expires_in_time(rule),
            "NFQUEUE" => rule.contains("--queue-bypass"),
            other => other == "RETURN",
        };
    }
    // Into one of our chains, whose rules are looked at as well; and what those do.
    let marks = ["MARK", "ACCEPT"].contains(&target) && !chain.ends_with("-TPROXY");
    target.starts_with("HAPILOT-") || marks || (chain.ends_with("-TPROXY") && target == "TPROXY")
}

fn expires_in_time(rule: &str) -> bool {
    let stop = rule.split("--datestop ").nth(1).unwrap().split(' ').next().unwrap();
    let stop = humantime::parse_rfc3339(&format!("{stop}Z")).unwrap();
    // It counts whole seconds, the last one included.
    stop + Duration::from_secs(1) <= SystemTime::now() + BLOCKED
}

pub(super) fn assert_same(host: &Host, before: &HostState, what: &str) {
    let difference = host.state().difference(before);
    assert!(difference.is_empty(), "{what}: the host is not as it was:\n{difference}");
}
