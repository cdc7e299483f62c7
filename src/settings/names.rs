//! Decides: which names are ours, what belongs into each, and which are nearly ours.

pub(super) const PREFIX: &str = "HAPROXY_";

/// One variable as the operator knows it.
pub(super) struct Variable {
    pub(super) name: &'static str,
    pub(super) expected: &'static str,
    pub(super) example: &'static str,
}

const fn variable(name: &'static str, expected: &'static str, example: &'static str) -> Variable {
    Variable { name, expected, example }
}

pub(super) const PORTS: Variable =
    variable("HAPROXY_PORTS", "ports from 1 to 65535 separated by commas", "80,443");
pub(super) const PIDS: Variable =
    variable("HAPROXY_PIDS", "PIDs separated by commas or blanks, or auto", "\"4711 4712\"");
pub(super) const CONFIG: Variable = variable(
    "HAPROXY_CONFIG",
    "a readable configuration file, or a directory with *.cfg files",
    "/usr/local/etc/haproxy/haproxy.cfg",
);
pub(super) const TRANSPARENT: Variable = variable("HAPROXY_TRANSPARENT", "auto, on or off", "auto");
pub(super) const INTERCEPT: Variable = variable(
    "HAPROXY_INTERCEPT",
    "pairs FROM:TO of ports separated by commas, each FROM once",
    "80:8080,443:8443",
);
pub(super) const FIREWALL: Variable =
    variable("HAPROXY_FIREWALL", "auto, iptables or nftables", "auto");
pub(super) const MARK: Variable = variable(
    "HAPROXY_MARK",
    "VALUE or VALUE/MASK in hexadecimal or decimal, with at least one bit and none outside MASK",
    "0x100/0x100",
);
pub(super) const TABLE: Variable =
    variable("HAPROXY_TABLE", "a number from 1 to 4294967295 other than 253, 254 and 255", "7100");
pub(super) const RELOAD_GUARD: Variable =
    variable("HAPROXY_RELOAD_GUARD", "auto, hold, drop or none", "auto");
pub(super) const STOP_DEADLINE: Variable =
    variable("HAPROXY_STOP_DEADLINE", "a length of time from 1s to 7d", "295s");
pub(super) const DRAIN_DEADLINE: Variable =
    variable("HAPROXY_DRAIN_DEADLINE", "a length of time from 1s to 7d", "5m");
pub(super) const MAX_GENERATIONS: Variable =
    variable("HAPROXY_MAX_GENERATIONS", "a number from 2 to 64", "8");
pub(super) const ON_CRASH: Variable = variable("HAPROXY_ON_CRASH", "restart or exit", "restart");
pub(super) const LOG_FORMAT: Variable = variable("HAPROXY_LOG_FORMAT", "text or json", "json");
pub(super) const LOG_LEVEL: Variable =
    variable("HAPROXY_LOG_LEVEL", "error, warn, info, debug or trace", "info");
pub(super) const METRICS: Variable =
    variable("HAPROXY_METRICS", "an IP address and a port", "127.0.0.1:9101");

pub(super) const WATCH: Variable = variable("HAPROXY_WATCH", "on or off", "on");
pub(super) const SYSLOG: Variable =
    variable("HAPROXY_SYSLOG", "a loopback address and a port", "127.0.0.1:514");

pub(super) const TAKEOVER: Variable = variable("HAPROXY_TAKEOVER", "on or off", "off");
pub(super) const TAKEOVER_SECRET_FILE: Variable = variable(
    "HAPROXY_TAKEOVER_SECRET_FILE",
    "a file with at least 16 bytes that only its owner may read",
    "/run/secrets/takeover",
);

pub(super) const OURS: [&Variable; 20] = [
    &PORTS,
    &PIDS,
    &TAKEOVER,
    &TAKEOVER_SECRET_FILE,
    &CONFIG,
    &TRANSPARENT,
    &INTERCEPT,
    &FIREWALL,
    &MARK,
    &TABLE,
    &RELOAD_GUARD,
    &STOP_DEADLINE,
    &DRAIN_DEADLINE,
    &MAX_GENERATIONS,
    &ON_CRASH,
    &LOG_FORMAT,
    &LOG_LEVEL,
    &METRICS,
    &WATCH,
    &SYSLOG,
];

/// Announced, but not part of this version.
pub(super) const NOT_YET: [&str; 1] = ["HAPROXY_DISCOVERY"];

/// HAProxy's own: set by it for its children and checks, or by its official image.
const HAPROXYS: [&str; 31] = [
    "HAPROXY_BRANCH",
    "HAPROXY_CFGFILES",
    "HAPROXY_CLI",
    "HAPROXY_HTTPS_LOG_FMT",
    "HAPROXY_HTTP_CLF_LOG_FMT",
    "HAPROXY_HTTP_LOG_FMT",
    "HAPROXY_KEYLOG_BC_LOG_FMT",
    "HAPROXY_KEYLOG_FC_LOG_FMT",
    "HAPROXY_LOCALPEER",
    "HAPROXY_MASTER_CLI",
    "HAPROXY_MWORKER",
    "HAPROXY_MWORKER_REEXEC",
    "HAPROXY_PROCESSES",
    "HAPROXY_PROXY_ADDR",
    "HAPROXY_PROXY_ID",
    "HAPROXY_PROXY_NAME",
    "HAPROXY_PROXY_PORT",
    "HAPROXY_SERVER_ADDR",
    "HAPROXY_SERVER_CURCONN",
    "HAPROXY_SERVER_ID",
    "HAPROXY_SERVER_MAXCONN",
    "HAPROXY_SERVER_NAME",
    "HAPROXY_SERVER_PORT",
    "HAPROXY_SERVER_PROTO",
    "HAPROXY_SERVER_SSL",
    "HAPROXY_SHA256",
    "HAPROXY_STARTUP_VERSION",
    "HAPROXY_TCP_CLF_LOG_FMT",
    "HAPROXY_TCP_LOG_FMT",
    "HAPROXY_URL",
    "HAPROXY_VERSION",
];

/// The setting that was probably meant. Variables that users made up for their own configuration
/// are common, so only a slip of the fingers counts: one in a short name, two in a long one.
pub(super) fn nearly_ours(name: &str) -> Option<&'static str> {
    let upper = name.to_ascii_uppercase();
    let own = upper.strip_prefix(PREFIX)?;
    if HAPROXYS.contains(&name) {
        return None;
    }
    OURS.iter()
        .map(|ours| ours.name)
        .map(|ours| (strsim::damerau_levenshtein(own, &ours[PREFIX.len()..]), ours))
        .filter(|(distance, ours)| *distance <= if ours.len() - PREFIX.len() < 8 { 1 } else { 2 })
        .min()
        .map(|(_, ours)| ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_fingers_is_named_with_the_setting_that_was_meant() {
        for (slip, meant) in [
            ("HAPROXY_PORT", "HAPROXY_PORTS"),
            ("HAPROXY_PROTS", "HAPROXY_PORTS"),
            ("HAPROXY_Ports", "HAPROXY_PORTS"),
            ("haproxy_ports", "HAPROXY_PORTS"),
            ("HAPROXY_PID", "HAPROXY_PIDS"),
            ("HAPROXY_STOPDEADLINE", "HAPROXY_STOP_DEADLINE"),
            ("HAPROXY_LOG_LEVLE", "HAPROXY_LOG_LEVEL"),
            ("HAPROXY_INTERCEPTS", "HAPROXY_INTERCEPT"),
            ("HAPROXY_MAX_GENERATION", "HAPROXY_MAX_GENERATIONS"),
        ] {
            assert_eq!(nearly_ours(slip), Some(meant), "{slip}");
        }
    }

    #[test]
    fn the_users_own_variables_and_haproxys_are_left_in_peace() {
        for name in ["HAPROXY_BACKEND", "HAPROXY_CERTS", "HAPROXY_HOST", "HAPROXY_USER"]
            .into_iter()
            .chain(HAPROXYS)
        {
            assert_eq!(nearly_ours(name), None, "{name}");
        }
    }
}
