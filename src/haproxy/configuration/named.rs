//! Decides: which files a line of a configuration names, beside the configuration itself:
//! certificates, maps, patterns, pages, scripts. Not those that HAProxy or we write ourselves, such
//! as a server state file.

use std::path::{Path, PathBuf};

use super::environment::is_known;

/// The next word is the name of a file.
const BEFORE_A_NAME: [&str; 16] = [
    "51degrees-data-file",
    "ca-file",
    "ca-sign-file",
    "ca-verify-file",
    "crl-file",
    "crt",
    "crt-list",
    "deviceatlas-json-file",
    "h1-case-adjust-file",
    "issuers-chain-path",
    "lua-load",
    "lua-load-per-thread",
    "ssl-dh-param-file",
    "tls-ticket-keys",
    "wurfl-data-file",
    "-f",
];
/// What HAProxy loads with a certificate, by its name.
const BESIDE_A_CERTIFICATE: [&str; 7] =
    [".key", ".ocsp", ".issuer", ".sctl", ".rsa", ".ecdsa", ".dsa"];

/// All that a configuration names, as it is written there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub files: Vec<PathBuf>,
    /// Files in whose lines certificates come first (`crt-list`).
    pub lists: Vec<PathBuf>,
    /// Where names that are not absolute may begin.
    pub bases: Vec<PathBuf>,
}

impl Named {
    pub(super) fn line(&mut self, words: &[String]) {
        let [keyword, arguments @ ..] = words else { return };
        match (keyword.as_str(), arguments) {
            ("crt-base" | "ca-base" | "key-base", [base, ..]) => self.bases.push(base.into()),
            ("default-path", [mode, base, ..]) if mode == "origin" => self.bases.push(base.into()),
            ("errorfile", [_, name, ..]) => self.file(name),
            ("filter", _) => self.options(words, &["config"]),
            // A header may have the name of an option.
            ("http-request" | "http-response" | "http-after-response" | "http-error", _) => {
                self.options(words, &["file", "lf-file", "errorfile", "-f"]);
            }
            ("load", _) => self.options(words, &["crt", "key", "issuer", "ocsp", "sctl"]),
            _ => self.options(words, &BEFORE_A_NAME),
        }
        for word in words {
            self.maps(word);
        }
    }

    /// A line of a `crt-list`.
    pub fn of_list(&mut self, line: &str) {
        if let Some(name) = super::line::words(line).first() {
            self.certificate(name);
        }
    }

    /// Every place where a file may be: names that are not absolute begin at one of the bases, or
    /// at one of these directories.
    pub fn places<'a>(
        &'a self,
        name: &'a Path,
        directories: &'a [PathBuf],
    ) -> impl Iterator<Item = PathBuf> + 'a {
        let bases = self.bases.iter().flat_map(move |base| {
            directories.iter().map(move |directory| directory.join(base).join(name))
        });
        bases.chain(directories.iter().map(move |directory| directory.join(name)))
    }

    fn options(&mut self, words: &[String], options: &[&str]) {
        for pair in words.windows(2) {
            let [option, name] = pair else { continue };
            if !options.contains(&&**option) {
                continue;
            }
            match &**option {
                "crt" => self.certificate(name),
                "crt-list" => {
                    self.file(name);
                    self.lists.push(name.into());
                }
                _ => self.file(name),
            }
        }
    }

    fn certificate(&mut self, name: &str) {
        self.file(name);
        for end in BESIDE_A_CERTIFICATE {
            self.file(&format!("{name}{end}"));
        }
        self.files.push(Path::new(name).with_extension("key"));
    }

    /// `map(FILE)` and its kin, `set-map(FILE)`, `add-acl(FILE)`, within any word.
    fn maps(&mut self, word: &str) {
        for (at, _) in word.match_indices('(') {
            let other = |c: char| !(c.is_ascii_lowercase() || "_-".contains(c));
            let function = word[..at].rsplit(other).next().unwrap_or_default();
            let is_map = function == "map"
                || function.starts_with("map_")
                || ["-map", "-acl"].iter().any(|end| function.ends_with(end));
            let name = word[at + 1..].split([',', ')']).next().unwrap_or_default();
            if is_map && !name.is_empty() {
                self.file(name);
            }
        }
    }

    fn file(&mut self, name: &str) {
        let name =
            ["opt@", "file@"].iter().find_map(|kind| name.strip_prefix(kind)).unwrap_or(name);
        // Of HAProxy's own: `@system-ca`, `@store/name`; `virt@name` is no file at all.
        if is_known(name) && !name.starts_with('@') && !name.starts_with("virt@") {
            self.files.push(name.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Named {
        let mut named = Named::default();
        text.lines().for_each(|line| named.line(&super::super::line::words(line)));
        named
    }

    fn files(text: &str) -> Vec<String> {
        let beside = |path: &PathBuf| {
            let text = path.to_string_lossy().into_owned();
            Some(text).filter(|text| !BESIDE_A_CERTIFICATE.iter().any(|end| text.ends_with(end)))
        };
        named(text).files.iter().filter_map(beside).collect()
    }

    #[test]
    fn every_kind_of_file_is_found() {
        for (line, expected) in [
            ("bind :443 ssl crt /c/a.pem crt b.pem alpn h2", "/c/a.pem b.pem"),
            (
                "bind :443 ssl crt-list /c/list ca-file /c/ca.pem verify required",
                "/c/list /c/ca.pem",
            ),
            ("server s 10.0.0.1:443 ssl ca-file @system-ca crl-file /c/crl", "/c/crl"),
            ("errorfile 503 /e/503.http", "/e/503.http"),
            ("acl bad src -f /l/bad -f /l/worse", "/l/bad /l/worse"),
            ("use_backend b if { path_beg -i -f /l/p }", "/l/p"),
            ("use_backend %[path,map_beg(/m/paths.map,web)]", "/m/paths.map"),
            ("http-request set-map(/m/a) %[src] %[path,lower,map(opt@/m/b)]", "/m/a /m/b"),
            ("http-request return status 200 content-type x/y lf-file /p.html", "/p.html"),
            ("http-request set-var(txn.key) str(x)", ""),
            ("http-request set-header key value", ""),
            ("lua-load-per-thread /x.lua argument", "/x.lua"),
            ("filter spoe engine e config /spoe.cfg", "/spoe.cfg"),
            ("load crt a.pem key a.pem alias x", "a.pem a.pem"),
            ("ssl-dh-param-file /dh.pem", "/dh.pem"),
            ("server-state-file /var/lib/state", ""),
            ("acl x path_beg /api (/etc)", ""),
            ("é(x) émap(/m/c)", "/m/c"),
            ("http-request deny if { src,map_ip(virt@x) -m found }", ""),
        ] {
            assert_eq!(files(line).join(" "), expected, "{line}");
        }
    }

    #[test]
    fn what_belongs_to_a_certificate_is_found_by_its_name() {
        let files = named("bind :1 ssl crt /c/a.pem").files;
        for beside in ["/c/a.pem", "/c/a.pem.key", "/c/a.pem.ocsp", "/c/a.key"] {
            assert!(files.contains(&beside.into()), "{beside}");
        }
        let mut named = named("bind :1 ssl crt-list /l");
        named.of_list("/c/b.pem [alpn h2] example.org # why");
        named.of_list("# nothing");
        assert_eq!(named.lists, [Path::new("/l")]);
        assert!(named.files.contains(&"/c/b.pem".into()));
    }

    #[test]
    fn a_name_may_begin_at_each_base() {
        let named = named("crt-base /c\nca-base sub\ndefault-path origin /o");
        let at = ["/etc".into()];
        let places = |name: &str| {
            named.places(Path::new(name), &at).collect::<std::collections::BTreeSet<_>>()
        };
        let expected = ["/c/a", "/etc/a", "/etc/sub/a", "/o/a"].map(PathBuf::from);
        assert_eq!(places("a"), expected.into());
        assert_eq!(places("/x"), [PathBuf::from("/x")].into());
    }
}
