//! Promise: with `HAPROXY_WATCH=on` a change of the configuration, or of a file that it names, is
//! one reload, however it comes about; a refused one is said once; nothing is lost or repeated.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::haproxy_cfg::{BROKEN, BROKEN_WORD, DEFAULTS};
use lab::{Host, Instance, LONG, Outcome, SHORT, certificate, get, until};
use nix::sys::signal::Signal;

const TAKEN: &str = "reload taken";
const REFUSED: &str = "reload refused";

fn config(via: &str) -> String {
    format!(
        "{DEFAULTS}frontend web\n  bind 127.0.0.1:80\n  http-request return status 200 hdr x-via {via}\n"
    )
}

fn via(host: &Host) -> String {
    let outcome = get(&host.namespace, "127.0.0.1:80", "/");
    let Outcome::Answered(answer) = outcome else { panic!("no answer: {outcome:?}") };
    answer.head.lines().find_map(|line| line.strip_prefix("x-via: ")).unwrap().to_owned()
}

/// The old one lets go a moment after it was told to.
fn await_via(host: &Host, version: &str) {
    until(SHORT, version, || (via(host) == version).then_some(()));
}

fn watched(host: &Host, config: &Path) -> Instance {
    let spec = host.container("hapilot").config(config);
    spec.env("HAPROXY_WATCH", "on").start().serving()
}

fn directory(host: &Host, name: &str) -> PathBuf {
    let path = host.path(name);
    fs::create_dir(&path).unwrap();
    path
}

/// How often a reload was taken, once the log has as many.
fn taken(hapilot: &Instance, at_least: usize) -> usize {
    until(LONG, "a reload is in the log", || {
        Some(hapilot.log.count(TAKEN)).filter(|count| *count >= at_least)
    })
}

/// Each is done when the one before has been answered with a reload: a second one would be counted.
fn assert_one_reload_each(hapilot: &mut Instance, changes: &[(&str, &dyn Fn())]) {
    let before = hapilot.log.count(TAKEN);
    for (done, (what, change)) in changes.iter().enumerate() {
        let serving = hapilot.current();
        change();
        hapilot.await_successor(&serving);
        assert_eq!(taken(hapilot, before + done + 1), before + done + 1, "{what}");
    }
}

#[test]
fn each_kind_of_change_is_one_reload() {
    let host = Host::alone();
    let (etc, made) = (directory(&host, "etc"), directory(&host, "made"));
    let certificates = directory(&host, "etc/certificates");
    let at = |name: &str| etc.join(name);
    let write = |name: &str, text: &str| fs::write(at(name), text).unwrap();
    let rename = |name: &str, text: &str| drop(host.write(&format!("etc/{name}"), text));
    let pem = fs::read(certificate(&made)).unwrap();
    let put = |name: &str| fs::write(certificates.join(name), &pem).unwrap();
    put("a.pem");
    fs::copy(certificates.join("a.pem"), at("listed.pem")).unwrap();
    write("list", &format!("{}\n", at("listed.pem").display()));
    write("paths.map", "/a a\n");
    write("bad", "192.0.2.1\n");
    write("503.http", "HTTP/1.0 503 No\r\n\r\n");
    let config = |via: &str| {
        let etc = etc.display();
        format!(
            "{}  http-request deny if {{ src -f {etc}/bad }}\n  \
             http-request set-header x %[path,map({etc}/paths.map,none)]\n  \
             errorfile 503 {etc}/503.http\n  bind 127.0.0.1:443 ssl crt {etc}/certificates\n  \
             bind 127.0.0.1:444 ssl crt-list {etc}/list\n",
            config(via)
        )
    };
    write("haproxy.cfg", &config("v1"));
    let mut hapilot = watched(&host, &at("haproxy.cfg"));
    assert_one_reload_each(
        &mut hapilot,
        &[
            ("the configuration is written to", &|| write("haproxy.cfg", &config("v2"))),
            ("it is put in the other's place", &|| rename("haproxy.cfg", &config("v3"))),
            ("it is put there and written to", &|| write("haproxy.cfg", &config("v4"))),
            ("a map", &|| write("paths.map", "/a b\n")),
            ("a list", &|| rename("bad", "192.0.2.2\n")),
            ("a page", &|| write("503.http", "HTTP/1.0 503 Never\r\n\r\n")),
            ("a certificate is replaced", &|| put("a.pem")),
            ("there is one more", &|| put("b.pem")),
            ("there is one less", &|| fs::remove_file(certificates.join("b.pem")).unwrap()),
            ("one of a list", &|| fs::write(at("listed.pem"), &pem).unwrap()),
            ("the list", &|| rename("list", &format!("# a\n{}\n", at("listed.pem").display()))),
        ],
    );
    await_via(&host, "v4");
    assert_eq!(hapilot.log.count(REFUSED), 0);
    hapilot.stop();
}

#[test]
fn a_name_that_is_made_of_variables_is_watched() {
    let host = Host::alone();
    let (etc, made) = (directory(&host, "etc"), directory(&host, "made"));
    let pem = fs::read(certificate(&made)).unwrap();
    let put = |name: &str| fs::write(etc.join(name), &pem).unwrap();
    ["preset.pem", "set.pem", "outside.pem", "else.pem"].into_iter().for_each(put);
    let etc_is = etc.display();
    let global = format!(
        "global\n  presetenv ETC {etc_is}\n  setenv NAME set\n.if defined(NO_SUCH)\n  setenv LAST x\n\
         .else\n  setenv LAST else\n.endif\n"
    );
    let text = format!(
        "{global}{}  bind 127.0.0.1:443 ssl crt \"$ETC/preset.pem\"\n  \
         bind 127.0.0.1:444 ssl crt \"$ETC/$NAME.pem\"\n  \
         bind 127.0.0.1:445 ssl crt \"$ETC/$OUTSIDE\"\n  bind 127.0.0.1:446 ssl crt \"$ETC/$LAST.pem\"\n",
        config("v1")
    );
    fs::write(etc.join("haproxy.cfg"), text).unwrap();
    let spec = host.container("hapilot").config(&etc.join("haproxy.cfg"));
    let spec = spec.env("HAPROXY_WATCH", "on").env("OUTSIDE", "outside.pem");
    let mut hapilot = spec.start().serving();
    assert_one_reload_each(
        &mut hapilot,
        &[
            ("of presetenv", &|| put("preset.pem")),
            ("of setenv", &|| put("set.pem")),
            ("of the environment", &|| put("outside.pem")),
            ("of the branch that is read", &|| put("else.pem")),
        ],
    );
    hapilot.stop();
}

#[test]
fn a_link_that_is_swapped_is_one_reload_of_several_files_and_directories() {
    let host = Host::alone();
    let conf = directory(&host, "conf");
    let put = |number: u32| {
        let into = directory(&host, &format!("conf/..{number}"));
        fs::write(into.join("haproxy.cfg"), config(&format!("v{number}"))).unwrap();
        // As Kubernetes and Docker do.
        symlink(format!("..{number}"), conf.join("..data_tmp")).unwrap();
        fs::rename(conf.join("..data_tmp"), conf.join("..data")).unwrap();
        if let Some(old) = number.checked_sub(1) {
            fs::remove_dir_all(conf.join(format!("..{old}"))).unwrap();
        }
    };
    put(0);
    symlink("..data/haproxy.cfg", conf.join("haproxy.cfg")).unwrap();
    let release = |number: u32| {
        let name = format!("release-{number}");
        let text = format!("backend b{number}\n");
        fs::write(directory(&host, &name).join("more.cfg"), text).unwrap();
        symlink(&name, host.path("current_tmp")).unwrap();
        fs::rename(host.path("current_tmp"), host.path("current")).unwrap();
    };
    release(1);
    let more = host.path("current/more.cfg");
    let arguments = ["-f", conf.to_str().unwrap(), "-f", more.to_str().unwrap()];
    let spec = host.container("hapilot").args(&arguments).env("HAPROXY_WATCH", "on");
    let mut hapilot = spec.start().serving();
    assert_one_reload_each(
        &mut hapilot,
        &[
            ("swapped", &|| put(1)),
            ("the one that came with the swap is swapped", &|| put(2)),
            ("a directory on the way", &|| release(2)),
            ("a file more", &|| fs::write(conf.join("b.cfg"), "backend b\n").unwrap()),
            ("swapped again", &|| put(3)),
            ("a directory is put in the place of another", &|| {
                fs::rename(host.path("conf"), host.path("old")).unwrap();
                fs::write(directory(&host, "conf").join("a.cfg"), config("v9")).unwrap();
            }),
            ("what is there now", &|| fs::write(conf.join("a.cfg"), config("v10")).unwrap()),
        ],
    );
    await_via(&host, "v10");
    hapilot.stop();
}

/// `docker run -v ./haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg`
#[test]
fn a_file_that_is_mounted_alone_is_seen_to_be_written_to() {
    let host = Host::alone();
    let file = host.write("haproxy.cfg", &config("v1"));
    let mount = format!("touch /run/h.cfg && mount --bind {} /run/h.cfg", file.display());
    let script = format!("{mount} && exec \"$@\"");
    let spec = host.container("hapilot").config(Path::new("/run/h.cfg"));
    let spec = spec.wrapped(&["sh", "-c", &script, "sh"]).env("HAPROXY_WATCH", "on");
    let mut hapilot = spec.start().serving();
    assert_one_reload_each(
        &mut hapilot,
        &[
            ("once", &|| fs::write(&file, config("v2")).unwrap()),
            ("twice", &|| fs::write(&file, config("v3")).unwrap()),
        ],
    );
    await_via(&host, "v3");
    hapilot.stop();
}

#[test]
fn a_refused_change_is_said_once_and_the_mended_one_is_taken() {
    let host = Host::alone();
    let path = host.write("haproxy.cfg", &config("v1"));
    let mut hapilot = watched(&host, &path);
    let serving = hapilot.current();
    host.write("haproxy.cfg", BROKEN);
    hapilot.log.await_line(REFUSED);
    let words = hapilot.log.count(BROKEN_WORD);
    assert!(words > 0, "{}", hapilot.log.text());
    // Its neighbours are nobody's business.
    host.write("haproxy.cfg.bak", "x");
    // Nor is another reload that finds the same.
    assert_eq!(hapilot.command(&["reload"]).status.code(), Some(1));
    host.write("haproxy.cfg", &config("v2"));
    let now = hapilot.await_successor(&serving);
    await_via(&host, "v2");
    // What was asked for by hand meanwhile is the only other one.
    assert_eq!((taken(&hapilot, 1), hapilot.log.count(REFUSED)), (1, 2));
    // A file that is missing is waited for.
    let missing = host.path("late.map");
    let line = format!("  http-request set-header x %[path,map({})]\n", missing.display());
    host.write("haproxy.cfg", &format!("{}{line}", config("v3")));
    until(LONG, "it is refused", || (hapilot.log.count(REFUSED) == 3).then_some(()));
    host.write("late.map", "/a b\n");
    hapilot.await_successor(&now);
    await_via(&host, "v3");
    assert_eq!((taken(&hapilot, 2), hapilot.log.count(REFUSED)), (2, 3));
    hapilot.stop();
}

#[test]
fn a_storm_of_writes_makes_few_reloads_and_the_last_one_counts() {
    let host = Host::alone();
    let path = host.write("haproxy.cfg", &config("v0"));
    let mut hapilot = watched(&host, &path);
    let end = Instant::now() + Duration::from_secs(7);
    let mut writes = 0;
    while Instant::now() < end {
        writes += 1;
        host.write("haproxy.cfg", &config(&format!("v{writes}")));
        // The storm's own pace.
        sleep(Duration::from_millis(20));
    }
    until(LONG, "the last one is served", || (via(&host) == format!("v{writes}")).then_some(()));
    assert!(writes > 50, "{writes}");
    let reloads = taken(&hapilot, 1);
    assert!((1..=2).contains(&reloads), "{reloads} reloads, one within 5 s and the last one");
    assert_eq!(hapilot.log.count(REFUSED), 0);
    hapilot.stop();
}

#[test]
fn a_change_during_a_reload_is_not_lost() {
    let host = Host::alone();
    let path = host.write("haproxy.cfg", &config("v"));
    let mut hapilot = watched(&host, &path);
    for round in 0..8 {
        let version = format!("v{round}");
        std::thread::scope(|scope| {
            scope.spawn(|| hapilot.reload());
            sleep(Duration::from_millis(5 * round));
            host.write("haproxy.cfg", &config(&version));
        });
        await_via(&host, &version);
    }
    hapilot.stop();
}

#[test]
fn a_change_while_accepting_is_paused_waits_for_the_resume() {
    let host = Host::alone();
    let path = host.write("haproxy.cfg", &config("v1"));
    let mut hapilot = watched(&host, &path);
    let serving = hapilot.current();
    hapilot.signal(Signal::SIGTTOU);
    hapilot.await_status("it is paused", |status| status["paused"] == true);
    host.write("haproxy.cfg", &config("v2"));
    hapilot.log.await_line("accepting is paused");
    hapilot.signal(Signal::SIGTTIN);
    hapilot.await_successor(&serving);
    await_via(&host, "v2");
    assert_eq!((taken(&hapilot, 1), hapilot.log.count(REFUSED)), (1, 1));
    hapilot.stop();
}

#[test]
fn nothing_wakes_it_while_nothing_changes() {
    let host = Host::alone();
    let etc = directory(&host, "etc");
    fs::write(etc.join("haproxy.cfg"), config("v1")).unwrap();
    // In a directory of its own: others put files into this machine's /tmp.
    let spec = host.container("hapilot").bind(&etc, lab::spec::CONFIGURATION);
    let mut hapilot = spec.env("HAPROXY_WATCH", "on").start().serving();
    let serving = hapilot.current();
    fs::write(etc.join("haproxy.cfg"), config("v2")).unwrap();
    hapilot.await_successor(&serving);
    let wake_ups = || {
        let status = fs::read_to_string(format!("/proc/{}/status", hapilot.pid())).unwrap();
        let lines = status.lines().filter_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        lines.map(|count| count.trim().parse::<u64>().unwrap()).sum::<u64>()
    };
    // What is saved after a reload is saved later and later.
    sleep(Duration::from_secs(3));
    let before = wake_ups();
    sleep(Duration::from_secs(3));
    assert_eq!(wake_ups(), before);
    hapilot.stop();
}
