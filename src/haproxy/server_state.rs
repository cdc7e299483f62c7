//! Decides: what HAProxy says of its servers, and what of it an operator set by hand that a new
//! generation has to be told. Values only.
//!
//! Drains, maintenance and weights given over the runtime API live in the process alone, and a
//! configuration need not say `load-server-state-from-file`, so the difference is put into
//! commands for the new process. Format: HAProxy management guide, "show servers state" (version
//! 1), whose second line names the columns.

use std::collections::HashMap;
use std::fmt::Write as _;

/// Bits of `srv_admin_state` that come from the runtime API (`SRV_ADMF_FMAINT`, `SRV_ADMF_FDRAIN`).
pub const FORCED_MAINTENANCE: u32 = 0x01;
pub const FORCED_DRAIN: u32 = 0x08;
/// Set beside `FORCED_MAINTENANCE` for `disabled` in the configuration (`SRV_ADMF_CMAINT`).
pub const CONFIGURED_MAINTENANCE: u32 = 0x04;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub backend: String,
    pub name: String,
    number: u64,
    /// By its checks; a state that was kept does not say so.
    pub is_down: bool,
    pub admin: u32,
    /// The weight in force and the one of the configuration.
    pub weight: u32,
    configured_weight: u32,
}

/// The commands that give the servers of the new process what those of the old one had.
#[must_use]
pub fn carry_over(old: &str, new: &str) -> Vec<String> {
    let new: HashMap<(String, String), Server> =
        servers(new).into_iter().map(|s| ((s.backend.clone(), s.name.clone()), s)).collect();
    servers(old)
        .into_iter()
        .filter_map(|old| {
            let new = new.get(&(old.backend.clone(), old.name.clone()))?;
            Some(differences(&old, new))
        })
        .flatten()
        .collect()
}

fn differences(old: &Server, new: &Server) -> Vec<String> {
    let server = format!("{}/{}", old.backend, old.name);
    let mut commands = Vec::new();
    let gained = old.admin & !new.admin;
    // Drain first: maintenance is the stronger one and HAProxy keeps both bits.
    if gained & FORCED_DRAIN != 0 {
        commands.push(format!("set server {server} state drain"));
    }
    if gained & FORCED_MAINTENANCE != 0 && old.admin & CONFIGURED_MAINTENANCE == 0 {
        commands.push(format!("set server {server} state maint"));
    }
    // A weight that the configuration changed is the operator's newer word.
    if old.weight != old.configured_weight
        && old.configured_weight == new.configured_weight
        && old.weight != new.weight
    {
        commands.push(format!("set server {server} weight {}", old.weight));
    }
    commands
}

/// What has to be remembered of a state for `carry_over`: the servers that were set by hand, and of
/// those only what somebody set. The rest changes by itself, such as the time since the last change.
#[must_use]
pub fn by_hand(state: &str) -> String {
    let mut kept = "# be_name srv_id srv_name srv_admin_state srv_uweight srv_iweight\n".to_owned();
    for server in servers(state) {
        let Server { backend, name, number, admin, weight, configured_weight, .. } = server;
        if admin & (FORCED_DRAIN | FORCED_MAINTENANCE) != 0 || weight != configured_weight {
            // Into a `String` it cannot fail.
            let _ =
                writeln!(kept, "{backend} {number} {name} {admin} {weight} {configured_weight}");
        }
    }
    kept
}

/// How many servers there are.
#[must_use]
pub fn count(state: &str) -> usize {
    servers(state).len()
}

/// The numbers of the servers, by backend and name.
#[must_use]
pub fn numbers(state: &str) -> HashMap<String, HashMap<String, u64>> {
    let mut all: HashMap<String, HashMap<String, u64>> = HashMap::new();
    for server in servers(state) {
        all.entry(server.backend).or_default().insert(server.name, server.number);
    }
    all
}

/// Every server of a state that has the columns which we need.
#[must_use]
pub fn servers(state: &str) -> Vec<Server> {
    let names = state.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or_default();
    let at = COLUMNS.map(|wanted| names.split_whitespace().position(|name| name == wanted));
    state.lines().filter_map(|line| server(line, at)).collect()
}

const COLUMNS: [&str; 7] = [
    "be_name",
    "srv_name",
    "srv_id",
    "srv_op_state",
    "srv_admin_state",
    "srv_uweight",
    "srv_iweight",
];

fn server(line: &str, at: [Option<usize>; COLUMNS.len()]) -> Option<Server> {
    let values: Vec<&str> = line.split_whitespace().collect();
    let [backend, name, number, operation, admin, weight, configured_weight] =
        at.map(|column| values.get(column?).copied());
    Some(Server {
        backend: backend?.to_owned(),
        name: name?.to_owned(),
        number: number?.parse().ok()?,
        is_down: operation == Some("0"),
        admin: admin?.parse().ok()?,
        weight: weight?.parse().ok()?,
        configured_weight: configured_weight?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_goes_by_changes_nothing_that_was_set_by_hand() {
        let at = |seconds: u32| {
            by_hand(&format!(
                "1\n# be_id be_name srv_id srv_name srv_admin_state srv_uweight srv_iweight \
                 srv_time_since_last_change\n3 web 1 a 8 1 1 {seconds}\n3 web 2 b 0 1 1 9\n"
            ))
        };
        assert_eq!(at(1), at(60));
        assert_eq!(count(&at(1)), 1);
    }

    fn state(servers: &[(&str, u32, u32, u32)]) -> String {
        let mut text = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state \
                        srv_uweight srv_iweight\n"
            .to_owned();
        for (name, admin, weight, configured) in servers {
            let line = format!("3 web 1 {name} 192.0.2.1 2 {admin} {weight} {configured}\n");
            text.push_str(&line);
        }
        text + "\n"
    }

    #[test]
    fn what_an_operator_set_is_carried_over() {
        let old = state(&[("a", 8, 1, 1), ("b", 1, 1, 1), ("c", 0, 5, 10), ("d", 0, 1, 1)]);
        let new = state(&[("a", 0, 1, 1), ("b", 0, 1, 1), ("c", 0, 10, 10), ("d", 0, 1, 1)]);
        assert_eq!(
            carry_over(&old, &new),
            [
                "set server web/a state drain",
                "set server web/b state maint",
                "set server web/c weight 5",
            ]
        );
    }

    #[test]
    fn only_what_was_set_by_hand_is_remembered_and_it_is_enough() {
        let old = state(&[("a", 8, 1, 1), ("b", 0, 1, 1), ("c", 0, 5, 10), ("d", 4, 1, 1)]);
        let new = state(&[("a", 0, 1, 1), ("b", 0, 1, 1), ("c", 0, 10, 10), ("d", 0, 1, 1)]);
        let kept = by_hand(&old);
        assert_eq!((count(&old), count(&kept)), (4, 2));
        assert_eq!(carry_over(&kept, &new), carry_over(&old, &new));
        assert_eq!(carry_over(&kept, &new).len(), 2);
    }

    #[test]
    fn servers_are_numbered_within_their_backend() {
        let numbers = numbers(&state(&[("a", 0, 1, 1)]));
        assert_eq!(numbers["web"]["a"], 1);
    }

    #[test]
    fn what_the_configuration_says_is_not_overruled() {
        // "b" was disabled in the configuration itself, for which HAProxy sets 0x01 and 0x04; "c" got a new weight there.
        let old = state(&[("b", 5, 1, 1), ("c", 0, 5, 10), ("gone", 8, 1, 1)]);
        let new = state(&[("b", 0, 1, 1), ("c", 0, 20, 20)]);
        assert_eq!(carry_over(&old, &new), Vec::<String>::new());
    }

    #[test]
    fn what_is_so_already_needs_no_command() {
        let same = state(&[("a", 9, 3, 1)]);
        assert_eq!(carry_over(&same, &same), Vec::<String>::new());
    }
}
