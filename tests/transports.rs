//! Promise: whatever a frontend listens on and speaks, reloads under load cost it nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says so by panicking")]

use crate::lab;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use lab::haproxy_cfg::{DEFAULTS, backend, frontend};
use lab::network::{BALANCER4, SERVER4};
use lab::origin::HALF;
use lab::versions::{end, via, web};
use lab::{
    HalfOpen, Http3, Instance, Lab, Load, Namespace, Outcome, SHORT, certificate, get, until,
};

const RELOADS: usize = 4;

fn origin() -> String {
    backend("origin", "", SERVER4)
}

/// All listeners shared. What became of connections that were half open meanwhile.
fn reload_again_and_again(lab: &Lab, hapilot: &mut Instance, port: u16) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for _ in 0..RELOADS {
        let half_open = HalfOpen::connect(&lab.client, port, 5);
        reload(hapilot);
        outcomes.extend(half_open.finish());
    }
    outcomes
}

fn reload(hapilot: &mut Instance) {
    let old = hapilot.current();
    hapilot.reload();
    hapilot.await_successor(&old);
    let receipt = hapilot.status()["last_reload"].clone();
    for list in ["not_shared", "closed", "opened"] {
        assert_eq!(receipt["listeners"][list], serde_json::json!([]), "{receipt}");
    }
    assert_eq!(receipt["warnings"], serde_json::json!([]), "{receipt}");
}

/// Asks again and again until told to stop; how often, and what went wrong.
struct Asking {
    over: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Asking {
    fn start(client: &Namespace, ask: impl Fn() -> Result<(), String> + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = client.spawn(move || {
            let (mut count, mut failed) = (0, Vec::new());
            while !told.load(Ordering::SeqCst) {
                count += 1;
                failed.extend(ask().err());
            }
            (count, failed)
        });
        Self { over, thread }
    }

    fn finish(self) {
        self.over.store(true, Ordering::SeqCst);
        let (count, failed) = self.thread.join().unwrap();
        assert!(failed.is_empty(), "{} of {count}: {:?}", failed.len(), failed[0]);
        assert!(count > RELOADS, "too few to prove anything: {count}");
    }
}

/// A request on a connection of its own, over the HTTP that the options say.
fn curl(
    options: &str,
    version: &'static str,
    url: &str,
) -> impl Fn() -> Result<(), String> + use<> {
    let words = format!("--silent --show-error --insecure --max-time 15 {options} {url}");
    move || {
        let mut curl = Command::new("curl");
        curl.args(words.split_whitespace());
        let output = curl.args(["--write-out", "\n%{http_version} %{http_code}"]).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() && text.ends_with(&format!("\n{version} 200")) {
            Ok(())
        } else {
            Err(format!("{}: {text}", output.status))
        }
    }
}

#[test]
fn abstract_and_unix_sockets_between_frontends_survive_reloads_under_load() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let path = lab.balancer.path("inner.sock").to_str().unwrap().to_owned();
    let config = [
        DEFAULTS.to_owned(),
        frontend("outer", &[":80"], "outer", "middle"),
        "backend middle\n  server s1 abns@hapilot-lab-middle send-proxy-v2\n".to_owned(),
        frontend("middle", &["abns@hapilot-lab-middle accept-proxy"], "middle", "inner"),
        format!("backend inner\n  server s1 unix@{path} send-proxy-v2\n"),
        frontend("inner", &[&format!("{path} accept-proxy")], "inner", "origin"),
        origin(),
    ]
    .concat();
    let mut hapilot = lab.balancer.serve(&config);
    let load = Load::start(&lab.client, &web());
    let half_open = reload_again_and_again(&lab, &mut hapilot, 80);
    assert!(half_open.iter().all(Outcome::is_answered), "{half_open:?}");
    let tally = load.finish();
    assert_eq!(tally.failed, [], "{} were answered", tally.answered);
    assert!(tally.answered > 100, "too few to prove anything: {}", tally.answered);
    let listeners = hapilot.status()["listeners"].to_string();
    assert!(listeners.contains("abns@hapilot-lab-middle") && listeners.contains(&path));
    assert_eq!(via(&lab), "outer");
    end(&lab, hapilot, &before);
}

#[test]
fn tls_and_http2_in_it_survive_reloads_under_load() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let bind =
        format!(":443 ssl crt {} alpn h2,http/1.1", certificate(lab.balancer.dir()).display());
    let config = [DEFAULTS.to_owned(), frontend("web", &[&bind], "tls", "origin"), origin()];
    let mut hapilot = lab.balancer.serve(&config.concat());
    let url = format!("https://{BALANCER4}/");
    let clients = [
        Asking::start(&lab.client, curl("--http1.1", "1.1", &url)),
        Asking::start(&lab.client, curl("--http2", "2", &url)),
    ];
    reload_again_and_again(&lab, &mut hapilot, 443);
    clients.into_iter().for_each(Asking::finish);
    end(&lab, hapilot, &before);
}

#[test]
fn an_http2_session_in_use_goes_on_over_reloads_and_new_ones_begin() {
    let config =
        [DEFAULTS.to_owned(), frontend("web", &[":80 proto h2"], "h2c", "origin"), origin()];
    let (lab, mut hapilot, before) = Lab::serving(&config.concat(), &[]);
    let options = "--http2-prior-knowledge";
    let (url, slow) = (format!("http://{BALANCER4}/"), format!("http://{BALANCER4}/slow"));
    let file = lab.balancer.path("download");
    let download = curl(options, "2", &format!("{slow} --output {}", file.display()));
    let session = lab.client.spawn(download);
    let clients = Asking::start(&lab.client, curl(options, "2", &url));
    let has_begun = || std::fs::metadata(&file).is_ok_and(|file| file.len() > 0).then_some(());
    lab::until(SHORT, "the download has begun", has_begun);
    reload_again_and_again(&lab, &mut hapilot, 80);
    clients.finish();
    lab.origin.open_gate();
    session.join().unwrap().unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 2 * u64::try_from(HALF).unwrap());
    end(&lab, hapilot, &before);
}

/// Debian's 2.6 has none.
fn has_quic() -> bool {
    let output = Command::new("haproxy").arg("-vv").output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(" +QUIC ")
}

/// The sockets of UDP listeners.
fn udp_listeners(lab: &Lab) -> Vec<String> {
    let text = lab.balancer.namespace.run("ss -Huane");
    // QUIC sessions have connected ones
    let listens = |line: &&str| line.starts_with("UNCONN");
    let inode = |word: &&str| word.starts_with("ino:");
    let words = text.lines().filter(listens).flat_map(str::split_whitespace);
    let mut inodes: Vec<_> = words.filter(inode).map(str::to_owned).collect();
    inodes.sort();
    inodes
}

/// HTTP/3 where this HAProxy has it, and datagrams for a log in any case.
#[test]
fn udp_listeners_and_http3_sessions_survive_reloads() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let crt = certificate(lab.balancer.dir());
    let crt = crt.display();
    let quic = has_quic();
    let (global, binds) = if quic {
        let bind = format!("quic4@:443 ssl crt {crt} alpn h3");
        ("global\n  limited-quic\n", vec![":80".to_owned(), bind])
    } else {
        ("", vec![":80".to_owned()])
    };
    let config = [
        global.to_owned(),
        DEFAULTS.to_owned(),
        frontend("web", &binds.iter().map(String::as_str).collect::<Vec<_>>(), "v1", "origin"),
        origin(),
        "log-forward logs\n  dgram-bind 127.0.0.1:5514\n  log 127.0.0.1:5515 local0\n".to_owned(),
    ];
    let mut hapilot = lab.balancer.serve(&config.concat());
    let udp = udp_listeners(&lab);
    assert!(udp.len() >= binds.len(), "{udp:?}");
    let trusted = lab.balancer.path("cert.pem");
    let http3 = Http3::new(&lab.client, &format!("{BALANCER4}:443"), "lab", &trusted);
    let download = quic.then(|| http3.begin("/slow"));
    for turn in 1..=RELOADS {
        reload(&mut hapilot);
        // Until then a session may begin with the old one, which HAProxy 3.0 cuts off half-way.
        lab::until(SHORT, "the old one listens no more", || {
            hapilot
                .log
                .text()
                .lines()
                .any(|line| {
                    line.contains("Proxy web stopped")
                        && line.contains(&format!("generation={turn} "))
                })
                .then_some(())
        });
        for _ in 0..if quic { 8 } else { 0 } {
            assert_eq!(http3.get("/").map(|answer| answer.0), Ok(200), "after reload {turn}");
        }
    }
    lab.origin.open_gate();
    if let Some(download) = download {
        let (status, body) = download.join().unwrap().unwrap();
        assert_eq!((status, body.len()), (200, 2 * HALF), "a session in use goes on");
    }
    assert_eq!(udp_listeners(&lab), udp, "the same sockets");
    end(&lab, hapilot, &before);
}

#[test]
fn an_abstract_socket_is_shown_by_its_name_alone() {
    let config = [
        DEFAULTS.to_owned(),
        frontend("web", &[":80", "abns@hapilot-lab-shown"], "v1", "origin"),
        origin(),
    ];
    let (lab, mut hapilot, before) = Lab::serving(&config.concat(), &[]);
    reload(&mut hapilot);
    let status = hapilot.status();
    let listeners = status["listeners"].as_array().unwrap();
    let shown = listeners.iter().filter(|one| one["address"] == "abns@hapilot-lab-shown");
    assert_eq!(shown.count(), 1, "{status}");
    let text = String::from_utf8(hapilot.command(&["status"]).stdout).unwrap();
    assert!(text.contains("abns@hapilot-lab-shown"), "{text}");
    let is_raw = |c: char| c.is_control() && c != '\n';
    assert!(!text.contains(is_raw), "{text:?}");
    assert!(!hapilot.log.text().contains(is_raw));
    end(&lab, hapilot, &before);
}

/// Beside the standard ones, as a shell or an engine leaves them open.
#[test]
fn a_descriptor_that_the_configuration_names_is_kept_through_reloads_and_no_other() {
    let lab = Lab::new();
    let before = lab.balancer.state();
    let (log, accident) = (lab.balancer.write("log", ""), lab.balancer.write("accident", ""));
    let script = format!("exec 7< {} 8>> {} && exec \"$@\"", accident.display(), log.display());
    let config = format!(
        "global\n  log fd@8 format raw local0\n{DEFAULTS}  log global\n  option httplog\n{}{}",
        frontend("web", &[":80"], "one", "origin"),
        origin()
    );
    let config = lab.balancer.write("haproxy.cfg", &config);
    let spec = lab.balancer.container("hapilot").config(&config);
    let hapilot = spec.wrapped(&["sh", "-c", &script, "sh"]).start().serving();
    for path in ["/first", "/second", "/third"] {
        get(&lab.client, &web(), path);
        until(SHORT, "HAProxy writes its log where it was told to", || {
            std::fs::read_to_string(&log).unwrap().contains(&format!("GET {path} ")).then_some(())
        });
        for pid in hapilot.processes() {
            let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
            let open: Vec<_> =
                all.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect();
            assert!(!open.contains(&accident), "{pid} has {open:?}");
            assert!(open.contains(&log), "{pid} has {open:?}");
        }
        let kept = serde_json::json!([format!("fd@8 {}", log.display())]);
        assert_eq!(hapilot.status()["inherited"], kept);
        hapilot.reload();
        assert_eq!(hapilot.status()["last_reload"]["inherited"], kept);
    }
    end(&lab, hapilot, &before);
}
