//! Decides: what an operator set by hand that a new generation has to be told. Values only.
//!
//! Drains, maintenance and weights given over the runtime API live in the process alone, and a
//! configuration need not say `load-server-state-from-file`, so the difference is put into
//! commands for the new process. Format: HAProxy management guide, "show servers state" (version
//! 1), whose second line names the columns.

use std::collections::HashMap;

/// Bits of `srv_admin_state` that come from the runtime API (`SRV_ADMF_FMAINT`, `SRV_ADMF_FDRAIN`).
const FORCED_MAINTENANCE: u32 = 0x01;
const FORCED_DRAIN: u32 = 0x08;
/// Set beside `FORCED_MAINTENANCE` for `disabled` in the configuration (`SRV_ADMF_CMAINT`).
const CONFIGURED_MAINTENANCE: u32 = 0x04;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    backend: String,
    name: String,
    admin: u32,
    /// The weight in force and the one of the configuration.
    weight: u32,
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

fn servers(state: &str) -> Vec<Server> {
    let columns: Vec<&str> = state
        .lines()
        .find_map(|line| line.strip_prefix("# "))
        .map(|names| names.split_whitespace().collect())
        .unwrap_or_default();
    state
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| server(&columns, line))
        .collect()
}

fn server(columns: &[&str], line: &str) -> Option<Server> {
    let values: HashMap<&str, &str> =
        columns.iter().copied().zip(line.split_whitespace()).collect();
    let number = |name| values.get(name)?.parse().ok();
    Some(Server {
        backend: (*values.get("be_name")?).to_owned(),
        name: (*values.get("srv_name")?).to_owned(),
        admin: number("srv_admin_state")?,
        weight: number("srv_uweight")?,
        configured_weight: number("srv_iweight")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
