//! Decides: what of the servers' state is written into the file that HAProxy reads where its
//! configuration says `load-server-state-from-file`. Values only.
//!
//! HAProxy takes the port of a server from that file without asking whether the configuration still
//! has the same (`srv_state_srv_update`), and the address of one that DNS resolves. So a server is in
//! the file only if the configuration on disk has it at the same place, or if its SRV record says
//! where it is. The columns behind `srvrecord`, TLS and the places of checks, need not be there and
//! are not. What was set by hand is told over the runtime API, where it can be weighed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::server_state::{Server, Servers};

const HEAD: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state \
    srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result \
    srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn \
    srv_port srvrecord\n";
/// `HCHK_STATUS_INI`. With 0 (`HCHK_STATUS_UNKNOWN`) HAProxy takes a server for one that is never checked,
/// drops the results of its checks, and waits for the first of them for ever.
const NOT_CHECKED_YET: u8 = 1;
/// Conditions may leave out a line, and repeat it with another address.
const AMBIGUOUS: &str = "";

/// Where the servers are, as the configuration says in so many words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    backend: Option<String>,
    places: HashMap<(String, String), String>,
}

impl Written {
    /// Adds what one file says. Only what is written without quotes and variables is understood.
    pub fn add(&mut self, text: &str) {
        self.backend = None;
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["backend" | "listen", name, ..] => self.backend = Some((*name).to_owned()),
                [
                    "global" | "defaults" | "frontend" | "peers" | "resolvers" | "userlist"
                    | "mailers" | "cache" | "program" | "ring" | "http-errors" | "fcgi-app"
                    | "log-forward" | "log-profile" | "crt-store" | "traces" | "acme",
                    ..,
                ] => self.backend = None,
                ["server", name, place, ..] => self.place((*name).to_owned(), place),
                ["server-template", prefix, count, place, ..] => {
                    self.template(prefix, count, place);
                }
                _ => {}
            }
        }
    }

    fn place(&mut self, name: String, place: &str) {
        let Some(backend) = &self.backend else { return };
        let known = self.places.entry((backend.clone(), name)).or_insert_with(|| place.to_owned());
        if known != place {
            AMBIGUOUS.clone_into(known);
        }
    }

    /// `N` or `FROM-TO`.
    fn template(&mut self, prefix: &str, count: &str, place: &str) {
        const MOST: u32 = 10_000;
        let (from, to) = count.split_once('-').unwrap_or(("1", count));
        let (Ok(from), Ok(to)) = (from.parse::<u32>(), to.parse::<u32>()) else { return };
        for number in from..=to.min(from.saturating_add(MOST)) {
            self.place(format!("{prefix}{number}"), place);
        }
    }

    /// The configuration has the server where the process has it.
    fn has(&self, server: &Server) -> bool {
        let key = (server.backend.clone(), server.name.clone());
        let Some(place) = self.places.get(&key) else { return false };
        let place = ["ipv4@", "ipv6@"].iter().find_map(|p| place.strip_prefix(p)).unwrap_or(place);
        let (host, port) = place.rsplit_once(':').unwrap_or((place, "0"));
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if port.bytes().any(|byte| !byte.is_ascii_digit()) || port.parse() != Ok(server.port) {
            return false;
        }
        match host.parse::<IpAddr>() {
            Ok(address) => server.address.parse() == Ok(address),
            Err(_) => !host.is_empty() && host == server.host,
        }
    }
}

/// The file for a configuration in which the servers are where it is `written`.
#[must_use]
pub fn state_file(servers: &Servers, written: &Written) -> String {
    let mut text = HEAD.to_owned();
    for server in &servers.all {
        if server.record == "-" && !written.has(server) {
            continue;
        }
        let Server { backend, name, address, host, port, record, .. } = server;
        let (number, weight) = (server.number(), server.configured_weight());
        let (operation, health, check, agent) = server.checks();
        // Into a `String` it cannot fail.
        let _ = writeln!(
            text,
            "1 {backend} {number} {name} {address} {operation} 0 {weight} {weight} 0 \
             {NOT_CHECKED_YET} 0 {health} {check} {agent} 0 0 {host} {port} {record}"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::server_state::servers;
    use super::*;

    fn of(name: &str, address: &str, port: u32, host: &str, record: &str) -> String {
        format!(
            "3 web 7 {name} {address} 0 0 5 5 9 15 2 0 6 0 0 0 {host} {port} {record} 1 9 - - 0\n"
        )
    }

    #[test]
    fn a_server_is_in_the_file_only_where_the_configuration_has_it_at_the_same_place() {
        let mut written = Written::default();
        written.add(
            "backend web\n server a 192.0.2.1:80 check\n server b 192.0.2.2:81\n \
             server c app.internal:82 resolvers r\n server d other.internal:83\n \
             server e [2001:db8::1]:84\n server f \"${F}\"\n server h 192.0.2.8:1\n \
             server h 192.0.2.8:2\n server-template t 2 app.internal:85\n \
             server i 192.0.2.9:+1\nfrontend x\n server g 192.0.2.3:80\n",
        );
        let all = [
            of("a", "192.0.2.1", 80, "-", "-"),
            of("b", "192.0.2.2", 80, "-", "-"),
            of("c", "192.0.2.3", 82, "app.internal", "-"),
            of("d", "192.0.2.4", 83, "app.internal", "-"),
            of("e", "2001:db8::1", 84, "-", "-"),
            of("f", "192.0.2.6", 80, "-", "-"),
            of("g", "192.0.2.3", 80, "-", "-"),
            of("h", "192.0.2.8", 1, "-", "-"),
            of("t2", "192.0.2.3", 85, "app.internal", "-"),
            of("i", "192.0.2.9", 1, "-", "-"),
            of("srv", "192.0.2.3", 4711, "x.internal", "_web._tcp.internal"),
        ];
        let columns = HEAD.strip_prefix("1\n").unwrap();
        let file = state_file(&servers(&(columns.to_owned() + &all.concat())), &written);
        let names: Vec<_> = file.lines().skip(2).filter_map(|l| l.split(' ').nth(3)).collect();
        assert_eq!(names, ["a", "c", "e", "t2", "srv"], "{file}");
        assert!(file.contains("1 web 7 a 192.0.2.1 0 0 5 5 0 1 0 0 6 0 0 0 - 80 -\n"), "{file}");
    }
}
