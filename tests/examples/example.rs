//! One folder of `docker/examples/`, as it is, between a client and servers.
//!
//! What Compose would do is done by the lab: the folder is mounted where `compose.yaml` mounts it,
//! the services' names are in `/etc/hosts`, their environment is theirs, and in place of each
//! server's image a small server answers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::compose::{self, Service};
use crate::lab::network::{BALANCER4, BALANCER4_OTHER};
use crate::lab::spec::{CONFIGURATION, Spec};
use crate::lab::versions::await_gone;
use crate::lab::{
    HalfOpen, Host, HostState, Instance, LONG, Lab, Load, Namespace, Outcome, bounded, until,
};
use crate::secure;
use crate::standin::{self, Server, Whoami};

pub(crate) const BALANCER_IMAGE: &str = "hapilot";
/// Clients before a reload, and after it, besides those meanwhile.
const ENOUGH: usize = 20;

pub(crate) struct Example {
    pub(crate) services: Vec<Service>,
    pub(crate) whoami: BTreeMap<String, Whoami>,
    /// Whom the mail servers spoke to.
    pub(crate) mail: BTreeMap<String, Arc<Mutex<Vec<IpAddr>>>>,
    pub(crate) servers: BTreeMap<String, Server>,
    pub(crate) lab: Lab,
    folder: PathBuf,
    before: HostState,
}

impl Example {
    /// With every server running, and nothing else.
    pub(crate) fn open(name: &str) -> Self {
        Self::prepare(name, &[])
    }

    /// The same, after those lines of the README were typed.
    pub(crate) fn prepare(name: &str, lines: &[&str]) -> Self {
        let lab = Lab::new();
        let folder = copy(name, lab.balancer.dir());
        let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
        for line in lines {
            assert!(readme.contains(line), "the README does not say {line:?}");
            sh(&folder, line);
        }
        let mut services = compose::services(&folder.join("compose.yaml"));
        let others = services.iter_mut().filter(|service| service.image != BALANCER_IMAGE);
        for (number, service) in others.enumerate() {
            place(&lab, service, number);
        }
        let before = lab.balancer.state();
        let (whoami, mail, servers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut example = Self { services, whoami, mail, servers, lab, folder, before };
        let names: Vec<_> = example.services.iter().map(|service| service.name.clone()).collect();
        for name in &names {
            example.start_server(name);
        }
        example
    }

    pub(crate) fn service(&self, name: &str) -> &Service {
        let found = self.services.iter().find(|service| service.name == name);
        found.unwrap_or_else(|| panic!("compose.yaml has no service {name}"))
    }

    /// The stand-in for the image; one that has none is the test's own to start.
    pub(crate) fn start_server(&mut self, name: &str) {
        let service = self.service(name).clone();
        let (port, serve) = match service.image.split(':').next().unwrap() {
            "traefik/whoami" => {
                let given = service.command.iter().find_map(|word| word.strip_prefix("--name="));
                let whoami = Whoami::new(given.expect("whoami is given a name"));
                self.whoami.insert(name.to_owned(), whoami.clone());
                let option = |name| service.command.iter().find_map(|word| word.strip_prefix(name));
                match (option("--cert="), option("--key=")) {
                    (Some(certificate), Some(key)) => {
                        let files = [certificate, key].map(|path| self.mounted(&service, path));
                        (443, secure::serve(&whoami, &files[0], &files[1]))
                    }
                    _ => (80, whoami.serve()),
                }
            }
            "nginx" => (80, standin::application(name)),
            "axllent/mailpit" => {
                let seen = Arc::default();
                self.mail.insert(name.to_owned(), Arc::clone(&seen));
                (1025, standin::mail(name, seen))
            }
            _ => return,
        };
        let server = Server::start(&self.lab.server, &service.addresses, port, &serve);
        self.servers.insert(name.to_owned(), server);
    }

    /// The file of the folder that a container sees under that path.
    fn mounted(&self, service: &Service, path: &str) -> PathBuf {
        let inside = |volume: &String| {
            let mut parts = volume.split(':');
            let (ours, theirs) = (parts.next()?, parts.next()?);
            Some(self.folder.join(ours).join(path.strip_prefix(theirs)?.strip_prefix('/')?))
        };
        let found = service.volumes.iter().find_map(inside);
        found.unwrap_or_else(|| panic!("{path} is in no volume of {}", service.name))
    }

    /// A file of the folder, as Compose sees it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command line of the README, typed in the folder.
    pub(crate) fn sh(&self, line: &str) -> String {
        sh(&self.folder, line)
    }

    /// What `docker compose up` would start as that service, on that host.
    pub(crate) fn container<'h>(&self, host: &'h Host, name: &str) -> Spec<'h> {
        let service = self.service(name);
        assert_eq!(service.image, BALANCER_IMAGE);
        let hosts = self.lab.balancer.write("hosts", &self.hosts(service));
        let mut spec = host.container(name).bind(&hosts, "/etc/hosts");
        for volume in &service.volumes {
            let mount: Vec<_> = volume.split(':').collect();
            assert_eq!(mount[1..], [CONFIGURATION, "ro"], "{volume}: not known to the lab");
            spec = spec.bind(&self.folder.join(mount[0]), CONFIGURATION);
        }
        if let Some(name) = &service.hostname {
            spec = spec.hostname(name);
        }
        for (key, value) in &service.environment {
            spec = spec.env(key, value);
        }
        let arguments: Vec<_> = service.command.iter().map(String::as_str).collect();
        spec.args(&arguments)
    }

    pub(crate) fn serve(&self) -> Instance {
        self.container(&self.lab.balancer, "lb").start().serving()
    }

    fn hosts(&self, service: &Service) -> String {
        let mut text = "127.0.0.1 localhost\n".to_owned();
        for other in &self.services {
            for address in &other.addresses {
                let _ = writeln!(text, "{address} {}", other.name);
            }
        }
        for extra in &service.extra_hosts {
            let (name, address) = extra.split_once(':').unwrap();
            let _ = writeln!(text, "{address} {name}");
        }
        text
    }

    /// A reload while such clients come all the time, and while some are in mid-handshake.
    pub(crate) fn reload_under_load(
        &self,
        hapilot: &mut Instance,
        port: u16,
        talk: impl Fn(TcpStream) -> Outcome + Clone + Send + 'static,
    ) {
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), port);
        reload_between(hapilot, &self.lab.client, at(BALANCER4), at(BALANCER4_OTHER), talk);
    }

    /// A clean stop, and the host as it was before.
    pub(crate) fn end(self, mut hapilot: Instance) {
        hapilot.stop();
        self.ended();
    }

    /// After the stop of the last one.
    pub(crate) fn ended(self) {
        self.lab.balancer.state().assert_same_as(&self.before);
    }
}

/// A reload while such clients come all the time, and while some are in mid-handshake; the addresses
/// are for the ones and the others.
pub(crate) fn reload_between(
    hapilot: &mut Instance,
    client: &Namespace,
    address: SocketAddr,
    other: SocketAddr,
    talk: impl Fn(TcpStream) -> Outcome + Clone + Send + 'static,
) {
    let load = Load::of(client, &address.to_string(), talk.clone());
    let answered = |wanted| {
        until(LONG, "new clients are answered", || (load.answered() >= wanted).then_some(()));
    };
    answered(ENOUGH);
    let half_open = HalfOpen::connect_to(client, other, 20);
    let old = hapilot.current();
    hapilot.reload();
    hapilot.await_successor(&old);
    await_gone(hapilot, &old, LONG);
    for outcome in half_open.finish_with(talk) {
        assert!(outcome.is_answered(), "half open during the reload: {outcome:?}");
    }
    answered(load.answered() + ENOUGH);
    let tally = load.finish();
    assert_eq!(tally.failed, [], "{} were answered", tally.answered);
    let receipt = &hapilot.status()["last_reload"];
    assert_eq!(receipt["doubts"], serde_json::json!([]), "{receipt}");
}

pub(crate) fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/examples")
}

fn sh(folder: &Path, line: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder);
    let output = bounded::output(&mut command, LONG);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{line}: {}: {text}", output.status);
    text
}

/// The folder beside what lies beside it, so that what it makes stays out of the source.
fn copy(name: &str, into: &Path) -> PathBuf {
    let mut command = Command::new("cp");
    command.arg("-a").arg(examples()).arg(into);
    assert!(command.status().unwrap().success());
    into.join("examples").join(name)
}

/// An address on the server's side, unless the file gives it one.
fn place(lab: &Lab, service: &mut Service, number: usize) {
    if service.addresses.is_empty() {
        let texts = [format!("10.2.0.{}", 21 + number), format!("fd00:2::{}", 21 + number)];
        service.addresses = texts.map(|text| text.parse().unwrap()).to_vec();
    }
    for address in &service.addresses {
        let add = if address.is_ipv4() { "/24 dev s0" } else { "/64 dev s0 nodad" };
        lab.server.run(&format!("ip addr add {address}{add}"));
    }
}
