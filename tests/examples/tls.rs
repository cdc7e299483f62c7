//! TLS ends at the balancer, with HTTP/2 for those who want it.

use std::process::Command;

use crate::example::Example;
use crate::lab::network::BALANCER4;
use crate::lab::{Http3, Instance, Outcome};
use crate::secure;
use crate::visitor::{Request, field, header, name};

const CERTIFICATES: &str = "../make-certificates certs www.example.com";

#[test]
fn tls_ends_here_and_http2_is_spoken() {
    let example = Example::prepare("tls", &[CERTIFICATES]);
    let mut hapilot = example.serve();
    let answer = Request::get("/").ask(&example, 80);
    assert_eq!(
        (answer.status, header(&answer, "location")),
        (301, Some("https://www.example.com/"))
    );

    let config = secure::client(&example.path("certs/ca.crt"));
    let talk = secure::talk(config, &Request::get("/"));
    let Outcome::Answered(answer) = ask(&example, &talk) else { panic!("no answer") };
    assert_eq!(name(&answer), "web1");
    assert_eq!(field(&answer, "X-Forwarded-Proto"), Some("https"));
    assert_eq!(header(&answer, "strict-transport-security"), Some("max-age=15768000"));
    assert_eq!(curl(&example, "--http2"), "2");
    assert_eq!(curl(&example, "--http1.1"), "1.1");
    http3(&example);
    example.reload_under_load(&mut hapilot, 443, talk.clone());
    http3(&example);
    refused_without_its_key(&example, &hapilot);
    assert!(ask(&example, &talk).is_answered(), "the one before serves on");
    example.end(hapilot);
}

fn ask(example: &Example, talk: &impl Fn(std::net::TcpStream) -> Outcome) -> Outcome {
    let address = format!("{BALANCER4}:443");
    let connect = || crate::lab::client::connect(&address, crate::lab::SHORT).unwrap();
    talk(example.lab.client.enter(connect))
}

/// Where this HAProxy has it; Debian's 2.6 has not.
fn http3(example: &Example) {
    let output = Command::new("haproxy").arg("-vv").output().unwrap();
    if String::from_utf8_lossy(&output.stdout).contains(" +QUIC ") {
        let address = format!("{BALANCER4}:443");
        let authority = example.path("certs/ca.crt");
        let http3 = Http3::new(&example.lab.client, &address, "www.example.com", &authority);
        let (status, body) = http3.get("/").unwrap();
        assert!(status == 200 && body.contains("web1"), "{status}: {body}");
    }
}

/// The version that curl says it has spoken.
fn curl(example: &Example, option: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", option, "-o", "/dev/null", "-w", "%{http_version}", "--cacert"]);
    command.arg(example.path("certs/ca.crt"));
    command.args(["--resolve", &format!("www.example.com:443:{BALANCER4}")]);
    command.arg("https://www.example.com/");
    let output = example.lab.client.output(&mut command);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused_without_its_key(example: &Example, hapilot: &Instance) {
    let whole = example.path("certs/www.example.com.pem");
    std::fs::copy(example.path("certs/www.example.com.crt"), &whole).unwrap();
    let output = hapilot.command(&["reload"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("www.example.com.pem"), "{text}");
}
