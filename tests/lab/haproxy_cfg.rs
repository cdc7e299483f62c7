//! Configurations for the tests, in HAProxy's own words.

use super::network::{ORIGIN_PORT, SERVER4, SERVER6};

/// What HAProxy says no to, and the word that it will name.
pub const BROKEN: &str = "defaults\n  mode http\n  bogus-keyword yes\n";
pub const BROKEN_WORD: &str = "bogus-keyword";

pub const DEFAULTS: &str = "\
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
";

/// A plain proxy on that `bind`; answers carry `x-via: <via>`, by which tests tell configurations apart.
pub fn proxy(bind: &str, via: &str) -> String {
    format!(
        "{DEFAULTS}{}{}",
        frontend("web", &[bind], via, "origin"),
        backend("origin", "", SERVER4)
    )
}

/// A proxy that shows the origin the clients' own addresses, IPv4 on the one bind, IPv6 on the other.
pub fn transparent(bind4: &str, bind6: &str) -> String {
    [
        DEFAULTS.to_owned(),
        frontend("web4", &[bind4], "hapilot", "origin4"),
        frontend("web6", &[bind6], "hapilot", "origin6"),
        backend("origin4", "source 0.0.0.0 usesrc clientip", SERVER4),
        backend("origin6", "source [::] usesrc clientip", SERVER6),
    ]
    .concat()
}

pub fn frontend(name: &str, binds: &[&str], via: &str, backend: &str) -> String {
    let binds = binds.join("\n  bind ");
    format!(
        "frontend {name}\n  bind {binds}\n  http-response set-header x-via {via}\n  default_backend {backend}\n"
    )
}

pub fn backend(name: &str, line: &str, server: &str) -> String {
    format!("backend {name}\n  {line}\n  server s1 {server}:{ORIGIN_PORT}\n")
}
