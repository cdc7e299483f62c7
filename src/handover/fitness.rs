//! Decides: whether a HAProxy that runs is one that may serve. Values only.
//!
//! HAProxy itself refuses a configuration without a listener; with our runtime socket in it there
//! always is one, so we have to.

use crate::host::mark::Intercept;
use crate::listeners::compare::Seen;

/// Why it may not; `None` when it may.
#[must_use]
pub fn unfit(listens: &[Seen], intercept: &[Intercept]) -> Option<String> {
    if listens.is_empty() {
        return Some(
            "the configuration makes HAProxy listen on nothing: no bind in it, an empty file, or \
             a directory without *.cfg (Docker makes an empty one where a mounted file is missing)"
                .to_owned(),
        );
    }
    let missing: Vec<String> = intercept
        .iter()
        .filter(|pair| !listens.iter().any(|seen| seen.port() == Some(pair.to.number())))
        .map(|pair| format!("HAPROXY_INTERCEPT={pair}: HAProxy listens on no port {}", pair.to))
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "{}; every client of it would be dropped: add \"bind :PORT transparent\" with that \
             port to a frontend",
            missing.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mark::Port;

    fn seen(addresses: &[&str]) -> Vec<Seen> {
        let seen = |address: &&str| Seen { address: (*address).to_owned(), inode: 1 };
        addresses.iter().map(seen).collect()
    }

    #[test]
    fn who_listens_on_nothing_may_not_serve() {
        assert!(unfit(&[], &[]).is_some());
        assert_eq!(unfit(&seen(&["/run/x.sock"]), &[]), None);
    }

    #[test]
    fn every_port_that_traffic_is_diverted_to_has_a_listener() {
        let port = |number| Port::new(number).unwrap();
        let pairs = [Intercept { from: port(80), to: port(8080) }];
        assert_eq!(unfit(&seen(&["[::]:8080 interface eth0"]), &pairs), None);
        let reason = unfit(&seen(&["0.0.0.0:80", "/run/8080"]), &pairs).unwrap();
        assert!(reason.contains("HAPROXY_INTERCEPT=80:8080"), "{reason}");
    }
}
