//! Promise: what distributions ship as HAProxy's configuration runs as it is, in a container that
//! has nothing of what their packages prepare.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use lab::{Finished, Host, get};

/// With Debian's keywords; `ROOT` is where its package has `/var/lib/haproxy`, `ETC` `/etc/haproxy`.
const DEBIAN: &str = "\
global
\tlog /dev/log\tlocal0
\tlog /dev/log\tlocal1 notice
\tchroot ROOT
\tstats socket /run/haproxy/admin.sock mode 660 level admin
\tstats timeout 30s
\tuser haproxy
\tgroup haproxy
\tdaemon

\t# Default SSL material locations
\tca-base /etc/ssl/certs
\tcrt-base /etc/ssl/private

\tssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets

defaults
\tlog\tglobal
\tmode\thttp
\toption\thttplog
\toption\tdontlognull
        timeout connect 5000
        timeout client  50000
        timeout server  50000
\terrorfile 400 ETC/errors/400.http

frontend web
\tbind 127.0.0.1:80
\thttp-request return status 200
";

fn debian(host: &Host) -> String {
    let etc = host.path("etc");
    std::fs::create_dir_all(etc.join("errors")).unwrap();
    std::fs::write(etc.join("errors/400.http"), "HTTP/1.0 400 No\r\n\r\n").unwrap();
    let root = host.path("root/haproxy").display().to_string();
    DEBIAN.replace("ROOT", &root).replace("ETC", &etc.display().to_string())
}

#[test]
fn debians_configuration_runs_without_what_its_package_prepares() {
    let host = Host::alone();
    let config = host.write("haproxy.cfg", &debian(&host));
    let container = || host.container("hapilot").config(&config).own_dev();
    let made = host.path("run-hapilot/haproxy");
    container().args(&["check"]).finish().assert_code(0);
    assert!(!made.exists(), "a check makes nothing");
    let mut hapilot = container().start().serving();
    assert!(get(&host.namespace, "127.0.0.1:80", "/").is_answered());
    hapilot.log.await_line("web/<NOSRV>");
    hapilot.log.await_line("made the directory /run/haproxy, for stats socket");
    assert_eq!(std::fs::metadata(&made).unwrap().permissions().mode() & 0o7777, 0o755);
    let mut admin = UnixStream::connect(made.join("admin.sock")).unwrap();
    writeln!(admin, "show info").unwrap();
    let mut answer = String::new();
    admin.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Pid:"), "{answer}");
    // HAProxy counts it as a session until then.
    drop(admin);
    hapilot.reload();
    hapilot.stop();
}

#[test]
fn a_directory_that_a_reload_asks_for_is_made_as_well() {
    let host = Host::alone();
    let text = debian(&host);
    let mut hapilot =
        host.serve(&text.replace("\tstats socket", "\t#").replace("\tlog /dev", "\t#"));
    host.write(
        "haproxy.cfg",
        &text.replace("\tlog /dev", "\t#").replace("run/haproxy/", "run/a/b/"),
    );
    hapilot.reload();
    assert!(host.path("run-hapilot/a/b/admin.sock").exists());
    hapilot.stop();
}

#[test]
fn where_a_directory_is_not_made_it_is_said_what_mends_it() {
    let host = Host::alone();
    let open = host.path("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let socket = open.join("none/admin.sock").display().to_string();
    let text = debian(&host).replace("/run/haproxy/admin.sock", &socket);
    let config = host.write("haproxy.cfg", &text.replace("\tlog /dev", "\t#"));
    let words = ["is missing, and hapilot does not make it: other users may write", "--tmpfs"];
    let container = || host.container("hapilot").config(&config);
    container().args(&["check"]).finish().assert_says(&words);
    let started: Finished = container().finish();
    started.assert_code(1).assert_says(&words).assert_says(&["the directory of that socket"]);
    assert!(!open.join("none").exists());
}
