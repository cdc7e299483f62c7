//! Everything that hapilot may change in a network namespace, as a person's own tools show it, to be compared.
//!
//! Left out: counters, comment lines with the time of day, and built-in tables without a rule, which the iptables program
//! creates when it is asked anything.

use crate::container::{output, succeed};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HostState {
    parts: Vec<(String, String)>,
}

impl HostState {
    /// In the network namespace of this process.
    pub(crate) fn of(pid: &str) -> Self {
        let run = |command: &str| {
            let arguments: Vec<&str> =
                ["-t", pid, "-n", "--"].into_iter().chain(command.split(' ')).collect();
            succeed("nsenter", &arguments)
        };
        let mut parts = Vec::new();
        for save in
            ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"]
        {
            parts.push((save.to_owned(), iptables(&run(save))));
        }
        parts.push(("nft".to_owned(), nft(&run("nft -s list ruleset"))));
        for family in ["-4", "-6"] {
            for what in ["rule", "route show table all"] {
                let command = format!("ip {family} {what}");
                let shown = run(&command);
                parts.push((command, without_ages(&shown)));
            }
        }
        parts.push(("sysctl".to_owned(), sysctls(pid)));
        Self { parts }
    }

    /// Fails with the two texts of the first part that differs.
    pub(crate) fn assert_same(&self, later: &Self) {
        for ((name, before), (_, after)) in self.parts.iter().zip(&later.parts) {
            assert_eq!(before, after, "{name} is not what it was");
        }
    }

    /// Whether packets pass a rule of hapilot's: an nftables table that only keeps a record is none.
    pub(crate) fn has_rules(&self) -> bool {
        let hooked = |text: &str| text.contains("-j HAPILOT-") || text.contains("type filter hook");
        self.parts.iter().any(|(_, text)| hooked(text))
    }

    /// Whether any of the firewall's listings names hapilot.
    pub(crate) fn names_hapilot(&self) -> bool {
        self.parts.iter().any(|(_, text)| text.to_lowercase().contains("hapilot"))
    }
}

/// `iptables-save` by table: those with a rule, a chain of somebody's, or a policy that is not ACCEPT.
fn iptables(saved: &str) -> String {
    let mut kept = String::new();
    for table in saved.split_inclusive("COMMIT\n") {
        let lines: Vec<&str> =
            table.lines().filter(|line| !line.starts_with('#')).map(without_counters).collect();
        let meant = lines.iter().any(|line| {
            line.starts_with("-A") || (line.starts_with(':') && !line.ends_with(" ACCEPT"))
        });
        if meant {
            kept += &(lines.join("\n") + "\n");
        }
    }
    kept
}

/// `:INPUT ACCEPT [12:345]` without the brackets.
fn without_counters(line: &str) -> &str {
    if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line }
}

/// `nft list ruleset` by table: those that are more than empty base chains.
fn nft(ruleset: &str) -> String {
    let mut kept = String::new();
    for table in ruleset.split_inclusive("\n}") {
        let empty = table.lines().map(str::trim).all(|line| {
            line.is_empty()
                || line == "}"
                || line.starts_with('#')
                || line.starts_with("table ")
                || line.starts_with("chain ")
                || (line.starts_with("type ") && line.ends_with("policy accept;"))
        });
        if !empty {
            kept += table.trim_start();
            kept.push('\n');
        }
    }
    kept
}

/// Routes that a router announced carry the seconds that they have left.
fn without_ages(routes: &str) -> String {
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let aged = words.iter().position(|word| *word == "expires");
        let kept = |(at, word): (usize, &&str)| {
            (aged.is_none_or(|aged| at != aged && at != aged + 1)).then(|| (*word).to_owned())
        };
        words.iter().enumerate().filter_map(kept).collect::<Vec<_>>().join(" ")
    };
    routes.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// All of `net.` but what counts by itself.
fn sysctls(pid: &str) -> String {
    let counting = |line: &&str| !line.contains("nf_conntrack_count");
    let shown = output("nsenter", &["-t", pid, "-n", "--", "sysctl", "-a", "-r", "^net\\."]);
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(text.contains("ip_nonlocal_bind"), "sysctl shows nothing: {shown:?}");
    text.lines().filter(counting).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_table_that_iptables_made_by_being_asked_counts_as_none() {
    let asked = "# Generated\n*mangle\n:PREROUTING ACCEPT [7:420]\nCOMMIT\n# Completed\n";
    assert_eq!(iptables(asked), "");
}

#[test]
fn a_chain_of_somebodys_counts_even_when_it_is_empty() {
    let saved = "*mangle\n:PREROUTING ACCEPT [0:0]\n:OURS - [0:0]\nCOMMIT\n";
    assert_eq!(iptables(saved), "*mangle\n:PREROUTING ACCEPT\n:OURS -\nCOMMIT\n");
}

#[test]
fn a_rule_shows_in_the_ruleset_of_nft_and_an_empty_base_chain_does_not() {
    let empty = "table ip mangle {\n\tchain PREROUTING {\n\t\ttype filter hook prerouting priority mangle; policy accept;\n\t}\n}\n";
    assert_eq!(nft(empty), "");
    let ruled = empty.replace("accept;\n", "accept;\n\t\ttcp dport 80 drop\n");
    assert!(nft(&ruled).contains("tcp dport 80 drop"));
}
