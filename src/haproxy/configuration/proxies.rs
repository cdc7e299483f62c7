//! Decides: what a frontend says and what it has from its `defaults` section, as far as keep-alive
//! clients at a reload are concerned.

use std::net::IpAddr;

use super::environment::is_known;
use super::reader::{Line, Section};
use super::{Certainty, Found, Place};

/// One `defaults`, `frontend`, `backend` or `listen` section.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Proxy {
    section: Section,
    name: String,
    place: Place,
    certainty: Certainty,
    /// The `defaults` section whose lines count where its own say nothing.
    base: Option<usize>,
    http: Option<bool>,
    /// `option idle-close-on-response`, or `httpclose`: no client is met unprepared.
    prepared: Option<bool>,
    binds: bool,
    /// Whether connections to servers come from the clients' addresses: its own `source`, and the
    /// one of `default-server`.
    usesrc: Option<bool>,
    default_usesrc: Option<bool>,
    servers: Vec<Server>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Server {
    address: Found<IpAddr>,
    usesrc: Option<bool>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<Proxy>);

impl Proxies {
    pub(super) fn line(&mut self, line: &Line) {
        if line.begins {
            return self.begin(line);
        }
        let is_proxy = matches!(
            line.section,
            Section::Defaults | Section::Frontend | Section::Backend | Section::Listen
        );
        if !is_proxy {
            return;
        }
        self.server(line);
        let Some(proxy) = self.0.last_mut() else { return };
        let certain = line.certainty == Certainty::Certain;
        match (line.words[0].as_str(), line.words.get(1).map(String::as_str)) {
            ("bind", _) => proxy.binds = true,
            ("mode", Some(mode)) if certain => proxy.http = Some(mode == "http"),
            ("option", Some("idle-close-on-response" | "httpclose")) => {
                let is_set = line.modifier.is_none();
                // What is perhaps not read is no reason to warn either.
                if is_set || certain {
                    proxy.prepared = Some(is_set);
                }
            }
            _ => {}
        }
    }

    fn begin(&mut self, line: &Line) {
        let words = &line.words;
        let after_from = words.iter().position(|word| word == "from").map(|at| at + 1);
        let named = after_from.and_then(|at| words.get(at));
        let defaults = |(_, proxy): &(usize, &Proxy)| proxy.section == Section::Defaults;
        let mut all = self.0.iter().enumerate().rev().filter(defaults);
        let base = match (named, line.section) {
            (Some(wanted), _) => all.find(|(_, proxy)| proxy.name == *wanted),
            (None, Section::Frontend | Section::Backend | Section::Listen) => all.next(),
            _ => None,
        };
        let base = base.map(|(index, _)| index);
        if matches!(
            line.section,
            Section::Defaults | Section::Frontend | Section::Backend | Section::Listen
        ) {
            self.0.push(Proxy {
                section: line.section,
                name: words.get(1).filter(|name| *name != "from").cloned().unwrap_or_default(),
                place: line.place.clone(),
                certainty: line.certainty,
                base,
                http: None,
                prepared: None,
                binds: false,
                usesrc: None,
                default_usesrc: None,
                servers: Vec::new(),
            });
        }
    }

    fn server(&mut self, line: &Line) {
        let words = &line.words;
        let after = |at: usize| words.get(at..).unwrap_or_default();
        let says = |word: &str, at: usize| after(at).iter().any(|other| other == word);
        let of_option = |at| says("source", at).then(|| says("usesrc", at));
        let inherited =
            self.0.last().and_then(|proxy| self.says(proxy, |proxy| proxy.default_usesrc));
        let Some(proxy) = self.0.last_mut() else { return };
        match words[0].as_str() {
            "source" => proxy.usesrc = Some(says("usesrc", 2)),
            "default-server" => proxy.default_usesrc = of_option(1).or(proxy.default_usesrc),
            "server" if line.certainty == Certainty::Certain => {
                if let Some(value) = words.get(2).and_then(|address| ip(address)) {
                    let address = Found { value, place: line.place.clone() };
                    proxy.servers.push(Server { address, usesrc: of_option(3).or(inherited) });
                }
            }
            _ => {}
        }
    }

    /// Servers that see the clients' addresses.
    #[must_use]
    pub fn transparent_servers(&self) -> Vec<Found<IpAddr>> {
        let mut found = Vec::new();
        for proxy in &self.0 {
            let default = self.says(proxy, |proxy| proxy.usesrc);
            let sees = |server: &&Server| server.usesrc.or(default) == Some(true);
            found.extend(proxy.servers.iter().filter(sees).map(|server| server.address.clone()));
        }
        found
    }

    /// Frontends whose keep-alive clients may meet a closed connection at a reload.
    #[must_use]
    pub fn unprepared(&self) -> Vec<Found<String>> {
        let mut found = Vec::new();
        for proxy in &self.0 {
            let serves = matches!(proxy.section, Section::Frontend | Section::Listen)
                && proxy.binds
                && proxy.certainty == Certainty::Certain
                && is_known(&proxy.name);
            if serves
                && self.says(proxy, |proxy| proxy.http) == Some(true)
                && self.says(proxy, |proxy| proxy.prepared) != Some(true)
            {
                found.push(Found { value: proxy.name.clone(), place: proxy.place.clone() });
            }
        }
        found
    }

    /// A base always stands before what it is the base of, so this ends.
    fn says(&self, proxy: &Proxy, what: impl Fn(&Proxy) -> Option<bool>) -> Option<bool> {
        let mut at = Some(proxy);
        while let Some(proxy) = at {
            if let Some(said) = what(proxy) {
                return Some(said);
            }
            at = proxy.base.and_then(|base| self.0.get(base));
        }
        None
    }
}

/// Of an address that needs no name to be resolved.
fn ip(address: &str) -> Option<IpAddr> {
    let families = ["ipv4@", "ipv6@", "ip@", "tcp4@", "tcp6@", "tcp@"];
    let rest = families.iter().find_map(|family| address.strip_prefix(family)).unwrap_or(address);
    let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
    let bare = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    bare(host).or_else(|| bare(rest))
}

#[cfg(test)]
mod tests {
    use super::super::reader::read_text;

    const CLOSES: &str = "option idle-close-on-response";

    fn unprepared(text: &str) -> String {
        let text = text.replace("CLOSES", CLOSES).replace(';', "\n");
        let found = read_text(&text).proxies.unprepared();
        found.into_iter().map(|found| found.value).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_frontend_in_mode_http_without_the_option_is_found_by_its_own_lines_or_its_defaults() {
        for (text, expected) in [
            ("defaults;mode http;frontend f;bind :80;", "f"),
            ("defaults;mode http;CLOSES;frontend f;bind :80;", ""),
            ("defaults;mode http;frontend f;bind :80;CLOSES;", ""),
            ("defaults;mode http;CLOSES;frontend f;bind :80;no CLOSES;", "f"),
            ("defaults;mode http;frontend f;bind :80;option httpclose;", ""),
            ("frontend f;bind :80;", ""),
            ("frontend f;bind :80;mode http;listen l;bind :81;mode http;", "f l"),
            ("defaults;mode http;frontend f;bind :80;mode tcp;", ""),
            ("defaults;mode http;backend b;listen no-bind;", ""),
            ("defaults;mode http;defaults;frontend f;bind :80;", ""),
            ("defaults a;mode http;defaults b;frontend f from a;bind :80;", "f"),
            ("defaults a;mode http;CLOSES;defaults b from a;frontend f;bind :80;", ""),
            ("defaults a;mode http;defaults b from a;CLOSES;frontend f from a;bind :80;", "f"),
            ("defaults from x;mode http;frontend from from none;bind :80;", ""),
            ("defaults;mode http;frontend f;bind :80;.if enabled(X);CLOSES;.endif;", ""),
            ("defaults;mode http;.if enabled(X);frontend f;bind :80;.endif;", ""),
            ("defaults;mode http;.if 0;CLOSES;.endif;frontend f;bind :80;", "f"),
        ] {
            assert_eq!(unprepared(text), expected, "{text}");
        }
    }

    #[test]
    fn servers_that_see_the_clients_are_found_by_their_own_source_or_an_inherited_one() {
        const SOURCE: &str = "source 0.0.0.0 usesrc clientip";
        for (text, expected) in [
            ("backend b;SOURCE;server s 10.0.0.1:80;", "10.0.0.1"),
            ("backend b;server s 10.0.0.1:80 SOURCE;server t 10.0.0.2;", "10.0.0.1"),
            ("backend b;SOURCE;server s 10.0.0.1:80 source 0.0.0.0;", ""),
            ("defaults;SOURCE;backend b;server s [::1]:80;", "::1"),
            ("defaults;SOURCE;backend b;source 10.0.0.9;server s [::1]:80;", ""),
            (
                "backend b;server s 10.0.0.1;default-server SOURCE;server t ipv4@10.0.0.2:1;",
                "10.0.0.2",
            ),
            (
                "defaults;default-server SOURCE;backend b;server s ::1:80;server t fd00::1;",
                "::1 fd00::1",
            ),
            ("backend b;SOURCE;server s name:80;server t unix@/x;server u \"$NO\";", ""),
            ("backend b;.if enabled(X);server s 10.0.0.1;.endif;SOURCE;", ""),
        ] {
            let text = text.replace("SOURCE", SOURCE).replace(';', "\n");
            let found = read_text(&text).proxies.transparent_servers();
            let found: Vec<_> = found.iter().map(|found| found.value.to_string()).collect();
            assert_eq!(found.join(" "), expected, "{text}");
        }
    }
}
