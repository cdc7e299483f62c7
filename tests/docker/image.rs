//! What is in the image, what it passes through, and how it ends when it cannot begin.

use crate::container::{docker, image, run, words};
use crate::world::write;

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn haproxy_and_other_commands_just_run() {
    let version = std::env::var("HAPILOT_TEST_HAPROXY")
        .expect("HAPILOT_TEST_HAPROXY is the version: scripts/test sets it");
    for arguments in [&["haproxy", "-v"], &["haproxy", "-vv"]] {
        let shown = run(&[], arguments);
        assert_eq!(shown.status.code(), Some(0), "{shown:?}");
        assert!(words(&shown).contains(&format!("HAProxy version {version}.")), "{shown:?}");
    }
    let shown = run(&[], &["sh", "-c", "echo hi; exit 7"]);
    assert_eq!((shown.status.code(), words(&shown).as_str()), (Some(7), "hi\n"));
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn an_unknown_command_is_127_and_one_that_cannot_be_executed_126() {
    let unknown = run(&[], &["no-such-command"]);
    assert_eq!(unknown.status.code(), Some(127), "{unknown:?}");
    assert!(words(&unknown).contains("no-such-command"), "{unknown:?}");
    let unfit = run(&[], &["/etc/passwd"]);
    assert_eq!(unfit.status.code(), Some(126), "{unfit:?}");
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn a_trial_of_a_configuration_ends_with_haproxys_own_words_and_status() {
    let files = tempfile::tempdir().expect("make a temporary directory");
    write(
        files.path(),
        "good.cfg",
        "defaults\n    timeout client 1s\nfrontend good\n    bind 127.0.0.1:80\n",
    );
    write(files.path(), "bad.cfg", "frontend bad\n    bnid 127.0.0.1:80\n");
    let mount = format!("{}:/cfg:ro", files.path().display());
    for (arguments, code) in [(["-c", "-f", "/cfg/good.cfg"], 0), (["-c", "-f", "/cfg/bad.cfg"], 1)]
    {
        for command in [&[][..], &["haproxy"]] {
            let trial = run(&["-v", &mount], &[command, &arguments].concat());
            assert_eq!(trial.status.code(), Some(code), "{trial:?}");
            assert_eq!(words(&trial).contains("unknown keyword 'bnid'"), code == 1, "{trial:?}");
        }
    }
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn a_start_with_a_broken_configuration_ends_with_haproxys_own_words_and_status() {
    let files = tempfile::tempdir().expect("make a temporary directory");
    let file = write(files.path(), "haproxy.cfg", "frontend bad\n    bnid 127.0.0.1:80\n");
    let mount = format!("{file}:/usr/local/etc/haproxy/haproxy.cfg:ro");
    let started = run(&["-v", &mount], &[]);
    assert_eq!(started.status.code(), Some(1), "{started:?}");
    assert!(words(&started).contains("unknown keyword 'bnid'"), "{started:?}");
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn every_mistake_in_the_settings_is_shown_at_once_and_ends_with_64() {
    let mistaken =
        run(&["-e", "HAPROXY_PORTS=80,,443", "-e", "HAPROXY_STOP_DEADLINE=5 parsecs"], &[]);
    assert_eq!(mistaken.status.code(), Some(64), "{mistaken:?}");
    let shown = words(&mistaken);
    for part in ["HAPROXY_PORTS", "80,,443", "HAPROXY_STOP_DEADLINE", "5 parsecs"] {
        assert!(shown.contains(part), "{part} is not in: {shown}");
    }
    assert!(!shown.contains("panicked"), "{shown}");
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn the_image_has_what_it_needs_and_nothing_to_build_with() {
    let look = |script: &str| words(&run(&["--entrypoint=sh"], &["-c", script])).trim().to_owned();
    assert_eq!(
        look("command -v gcc cc cargo rustc; ls /var/lib/apt/lists /tmp"),
        "/tmp:\n\n/var/lib/apt/lists:"
    );
    assert_eq!(
        look(
            "for p in iptables ip6tables iptables-legacy ip6tables-legacy haproxy; do command -v $p >/dev/null || echo $p; done"
        ),
        ""
    );
    assert_eq!(look("id -u; id -un haproxy"), "0\nhaproxy");

    let configured = |what: &str| {
        docker(&["image", "inspect", "--format", &format!("{{{{json .Config.{what}}}}}"), &image()])
    };
    assert_eq!(configured("Entrypoint"), r#"["hapilot"]"#);
    assert_eq!(configured("Cmd"), "null");
    assert_eq!(configured("StopSignal"), r#""SIGTERM""#);
    assert!(configured("Healthcheck").contains(r#"["CMD","hapilot","health"]"#));
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 2)"]
fn haproxy_is_the_one_that_its_base_brings() {
    let version = std::env::var("HAPILOT_TEST_HAPROXY")
        .expect("HAPILOT_TEST_HAPROXY is the version: scripts/test sets it");
    let shown = words(&run(&["--entrypoint=haproxy"], &["-v"]));
    assert!(shown.contains(&format!("HAProxy version {version}.")), "{shown}");
    let found = words(&run(
        &["--entrypoint=sh"],
        &["-c", "ls /usr/sbin/haproxy /usr/local/sbin/haproxy 2>/dev/null"],
    ));
    assert_eq!(found.lines().count(), 1, "a second HAProxy was put beside the base's own: {found}");
}
