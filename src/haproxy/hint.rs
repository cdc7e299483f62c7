//! Decides: what to do about what HAProxy complains of, in one line. Values only.
//!
//! The words are those of HAProxy 2.6 and 3.0; `tests/hints.rs` has each from a real one.

/// What is in HAProxy's line, all of it, and what to do. The first that fits counts.
const HINTS: [(&[&str], &str); 42] = [
    (
        &["environment variable missing"],
        "set the variable (docker run -e NAME=…), or write \"${NAME-VALUE}\" for a value to stand in",
    ),
    (
        &["missing port specification in", "${"],
        "set the variable (docker run -e NAME=…), or write \"${NAME-VALUE}\" for a value to stand in",
    ),
    (
        &["could not resolve address"],
        "init-addr last,libc,none on that server, with a resolvers section, lets HAProxy start without \
         the name and learn it later; HAProxy's argument -dr does so once, for all servers",
    ),
    (
        &["cannot bind UNIX socket (No such file or directory)"],
        "the directory of that socket is missing: docker run --tmpfs DIRECTORY, or mount one there",
    ),
    (
        &["Cannot chroot("],
        "make that directory in the image, mount one there (docker run --tmpfs DIRECTORY), or remove \
         chroot",
    ),
    (
        &["cannot find user id for"],
        "this image has no such user: remove user, or give its number with uid",
    ),
    (
        &["cannot find group id for"],
        "this image has no such group: remove group, or give its number with gid",
    ),
    (
        &["error opening file"],
        "put the file there: mount its directory as well (docker run -v ./errors:DIRECTORY:ro)",
    ),
    (
        &["failed to open pattern file"],
        "put the file there: mount its directory as well (docker run -v ./maps:DIRECTORY:ro)",
    ),
    (
        &["cannot open", ".lua"],
        "put the script there: mount its directory as well (docker run -v ./lua:DIRECTORY:ro)",
    ),
    (
        &["unknown keyword '\u{feff}"],
        "the file begins with a byte order mark: save it as UTF-8 without BOM",
    ),
    (
        &["unable to stat SSL certificate"],
        "put the PEM there: mount its directory (docker run -v ./certificates:DIRECTORY:ro), or \
         correct crt or crt-base",
    ),
    (
        &["No Private Key found"],
        "put the key into the same file (cat certificate.pem key.pem > both.pem), or beside it \
         under the same name with .key at its end",
    ),
    (
        &["unable to load certificate"],
        "that file is no PEM with a certificate; of a directory HAProxy loads every file",
    ),
    (
        &["'ca-file'"],
        "put the CA's PEM there: mount its directory, or use ca-file @system-ca for those of the \
         system",
    ),
    (
        &["(Address already in use)"],
        "another process has that port: ss -ltnp shows which; end it, take another port, or have \
         hapilot relieve a HAProxy there with HAPROXY_PIDS=auto",
    ),
    (
        &["(Cannot assign requested address)"],
        "this host does not have that address: ip address shows which it has; for one that comes \
         later set the sysctl net.ipv4.ip_nonlocal_bind=1 (net.ipv6 likewise), or say transparent \
         on that bind line",
    ),
    (
        &["(Permission denied)", "cannot bind"],
        "ports below 1024 need docker run --cap-add=NET_BIND_SERVICE",
    ),
    (
        &["nbproc"],
        "remove nbproc: one process has a thread for each CPU (nbthread); docker/examples/threads \
         has what its processes were used for",
    ),
    (
        &["bind-process"],
        "remove bind-process: there is one process; thread on a bind line pins it to threads",
    ),
    (&["'process", "'bind' lines"], "remove process from that line, or write thread instead"),
    (
        &["appsession"],
        "use cookie NAME prefix, or stick on req.cook(NAME) with a stick-table; \
         docker/examples/cookies has the first",
    ),
    (&["'forceclose'"], "remove that line; option httpclose if each request needs a connection"),
    (&["'http-tunnel'"], "remove that line: mode tcp is what passes on everything"),
    (&["'http_proxy'"], "use http-request do-resolve and set-dst"),
    (
        &["'monitor-net'"],
        "http-request return status 200 if { src ADDRESS } with http-request set-log-level silent \
         before it",
    ),
    (&["'mode health'"], "mode http with http-request return status 200"),
    (
        &["'reqrep'"],
        "for a path http-request replace-path REGEX NEW, without method and version; \
         docker/examples/routing has it",
    ),
    (&["'reqirep'"], "for a header http-request replace-header NAME REGEX NEW"),
    (&["'reqadd'"], "http-request set-header NAME VALUE: two words, no colon, blanks in quotes"),
    (&["'rspadd'"], "http-response set-header NAME VALUE: two words, no colon, blanks in quotes"),
    (&["'reqdel'"], "http-request del-header NAME"),
    (&["'reqidel'"], "http-request del-header NAME"),
    (&["'rspdel'"], "http-response del-header NAME"),
    (&["'rspidel'"], "http-response del-header NAME"),
    (
        &["'rsp", "not supported anymore"],
        "an http-response rule does it: replace-header NAME REGEX NEW, or deny if { … }",
    ),
    (
        &["'req", "not supported anymore"],
        "an http-request rule does it: deny, tarpit or allow if { … }",
    ),
    (&["'block'"], "http-request deny if …"),
    (
        &["timeout' directive is not supported"],
        "timeout connect, timeout client, timeout server take the same value",
    ),
    (&["'redispatch'"], "option redispatch"),
    (&["please use the 'bind' keyword"], "move the address to a line bind ADDRESS:PORT below it"),
    (
        &["hiding headers or body"],
        "http-check send meth GET uri / ver HTTP/1.1 hdr Host NAME, beside option httpchk alone",
    ),
];

#[must_use]
pub fn hint(line: &str) -> Option<&'static str> {
    let mut hints = HINTS.iter();
    hints.find(|(words, _)| words.iter().all(|word| line.contains(word))).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_complaint_that_we_know_has_no_hint() {
        for line in [
            "[NOTICE]   (1) : haproxy version is 3.0.11",
            "[ALERT]    (1) : config : Fatal errors found in configuration.",
            "[ALERT]    (1) : config : parsing [c.cfg:2] : unknown keyword 'x' in 'global' section",
            "Server requests/s1 is DOWN, reason: Layer4 timeout",
        ] {
            assert_eq!(hint(line), None, "{line}");
        }
    }

    #[test]
    fn the_first_that_fits_counts() {
        let line = "The 'reqadd' directive is not supported anymore since HAProxy 2.1.";
        assert!(hint(line).unwrap().starts_with("http-request set-header"));
        let line = "The 'reqitarpit' directive is not supported anymore since HAProxy 2.1.";
        assert!(hint(line).unwrap().starts_with("an http-request rule"));
    }
}
