//! Decides: which ports HAProxy says it did not get. Values only.

use std::collections::BTreeSet;

/// `EADDRINUSE` in the words of the C library, and where HAProxy (2.6 to 3.x) names the address.
const TAKEN: &str = "(Address already in use) for [";

#[must_use]
pub fn taken_ports(words: &[String]) -> BTreeSet<u16> {
    words.iter().filter_map(|line| taken_port(line)).collect()
}

#[must_use]
pub fn taken_port(line: &str) -> Option<u16> {
    let (_, address) = line.split_once(TAKEN)?;
    let (address, _) = address.split_once(']')?;
    address.rsplit_once(':')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_in_the_words_of_old_and_new_versions() {
        let words = [
            "[ALERT]    (8) : Binding [/b.cfg:10] for frontend f: cannot bind socket (Address \
             already in use) for [::1:18082]",
            "[ALERT]    (27) : Binding [/b.cfg:8] for frontend f: protocol tcpv4: cannot bind \
             socket (Address already in use) for [0.0.0.0:18080].",
            "[ALERT]    (8) : Binding [/b.cfg:9] for frontend f: cannot bind socket (Permission \
             denied) for [0.0.0.0:80]",
            "[ALERT]    (8) : cannot bind UNIX socket (Address already in use) for [/run/x]",
        ];
        let words = words.map(str::to_owned);
        assert_eq!(taken_ports(&words), BTreeSet::from([18080, 18082]));
    }
}
