//! The configuration that is served where none was given: the template is pure, writing it is not.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::thread::{CapabilitySet, capabilities};

use crate::fault::{self, Point};
use crate::host::mark::Port;
use crate::process::file::{Readers, replace};

const TEMPLATE: &str = include_str!("../../docker/default.cfg");
const PAGE: &str = include_str!("../../docker/index.html");
/// Where HAProxy's statistics are served, as the template says.
pub const STATISTICS: &str = "http://127.0.0.1:8404/";

/// Writes configuration and page, and says where the configuration is.
pub fn write(directory: &Path, ports: &[Port]) -> Result<PathBuf> {
    let (page, configuration) = (directory.join("index.html"), directory.join("default.cfg"));
    let ipv6 = Path::new("/proc/net/if_inet6").exists();
    let text = fill_in(ports, ipv6, may_become_haproxy(), &page);
    for (path, text) in [(&page, PAGE), (&configuration, text.as_str())] {
        let written = fault::at(Point::EmbeddedPage)
            .and_then(|()| replace(path, text.as_bytes(), Readers::Owner));
        written.with_context(|| format!("write {}", path.display()))?;
    }
    Ok(configuration)
}

fn fill_in(ports: &[Port], ipv6: bool, drops_root: bool, page: &Path) -> String {
    let binds: Vec<String> = ports
        .iter()
        .flat_map(|port| {
            let v6 = ipv6.then(|| format!("bind [::]:{port} v6only"));
            [Some(format!("bind 0.0.0.0:{port}")), v6]
        })
        .flatten()
        .collect();
    let identity = if drops_root { "user haproxy\n    group haproxy" } else { "" };
    TEMPLATE
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            line.replace("@IDENTITY@", identity)
                .replace("@BINDS@", &binds.join("\n    "))
                .replace("@PAGE@", &page.display().to_string())
                + "\n"
        })
        .collect()
}

/// Root with the right to change its user, in an image that has the user.
fn may_become_haproxy() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    let allowed = capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
    let named = |file| {
        fs::read_to_string(file)
            .is_ok_and(|text| text.lines().any(|line| line.starts_with("haproxy:")))
    };
    rustix::process::geteuid().is_root() && allowed && named("/etc/passwd") && named("/etc/group")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_bound_and_no_token_is_left() {
        let ports = [80, 8443].map(|port| Port::new(port).unwrap());
        let text = fill_in(&ports, true, true, Path::new("/run/hapilot/index.html"));
        for line in ["bind 0.0.0.0:80", "bind [::]:80 v6only", "bind 0.0.0.0:8443", "user haproxy"]
        {
            assert!(text.lines().any(|l| l.trim() == line), "{line} in {text}");
        }
        assert!(text.contains("/run/hapilot/index.html"));
        let left = TEMPLATE
            .split('@')
            .skip(1)
            .step_by(2)
            .find(|token| text.contains(&format!("@{token}@")));
        assert_eq!(left, None);
    }

    #[test]
    fn without_ipv6_and_root_there_is_neither_in_it() {
        let text = fill_in(&[Port::new(80).unwrap()], false, false, Path::new("/p"));
        assert!(!text.contains("[::]") && !text.contains("user haproxy"));
    }

    #[test]
    fn the_statistics_are_where_we_say() {
        assert!(TEMPLATE.contains("bind 127.0.0.1:8404"));
        assert!(STATISTICS.contains("127.0.0.1:8404"));
    }
}
