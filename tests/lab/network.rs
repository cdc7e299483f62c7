//! The three hosts and the wires between them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use tempfile::TempDir;

use super::spec::Spec;
use super::{HostState, Instance, Namespace, Origin, SHORT, until};

pub const CLIENT4: &str = "10.1.0.2";
pub const CLIENT6: &str = "fd00:1::2";
/// The balancer as the client sees it; the second address is there for half-open connections.
pub const BALANCER4: &str = "10.1.0.1";
pub const BALANCER4_OTHER: &str = "10.1.0.11";
pub const BALANCER6: &str = "[fd00:1::1]";
pub const BALANCER6_OTHER: &str = "fd00:1::11";
pub const SERVER4: &str = "10.2.0.2";
pub const SERVER6: &str = "[fd00:2::2]";
/// Where the origin listens; nothing listens on port 80 there.
pub const ORIGIN_PORT: u16 = 8000;

/// A host on which hapilot runs: a namespace and a place for its files.
#[derive(Debug)]
pub struct Host {
    pub namespace: Namespace,
    dir: TempDir,
}

impl Host {
    /// A host with loopback only.
    pub fn alone() -> Self {
        say_version_once();
        Self { namespace: Namespace::create(), dir: TempDir::with_prefix("hapilot-lab-").unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, as an editor would: the name never stands for half a file.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, fresh) = (self.path(name), self.path(&format!("{name}.new")));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
        path
    }

    pub fn state(&self) -> HostState {
        HostState::of(&self.namespace)
    }

    /// A container to be: its name decides which `/run` it sees, as a container's name does.
    pub fn container(&self, name: &str) -> Spec<'_> {
        Spec::new(self, name)
    }

    /// The usual container: this configuration, and away it goes.
    pub fn serve(&self, config: &str) -> Instance {
        let config = self.write("haproxy.cfg", config);
        self.container("hapilot").config(&config).start().serving()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Client, balancer and server, wired up, and an origin that answers on the server.
#[derive(Debug)]
pub struct Lab {
    // dropped first: its threads hold the server's namespace
    pub origin: Origin,
    pub client: Namespace,
    pub balancer: Host,
    pub server: Namespace,
}

impl Lab {
    pub fn new() -> Self {
        let (client, balancer, server) = (Namespace::create(), Host::alone(), Namespace::create());
        wire(&balancer.namespace, ("b0", "1"), ("c0", &client));
        wire(&balancer.namespace, ("b1", "2"), ("s0", &server));
        let host = &balancer.namespace;
        host.run(&format!("ip addr add {BALANCER4_OTHER}/24 dev b0"));
        host.run(&format!("ip addr add {BALANCER6_OTHER}/64 dev b0 nodad"));
        host.set_sysctl("net.ipv4.ip_forward", "1");
        host.set_sysctl("net.ipv6.conf.all.forwarding", "1");
        // strict, as on many hosts: the transparent set-up has to live with it
        host.set_sysctl("net.ipv4.conf.all.rp_filter", "1");
        await_links(host, &["b0", "b1"]);
        until(SHORT, "the second address is in force", || {
            let local = host.run("ip -6 route show table local");
            local.contains(&format!("local {BALANCER6_OTHER} ")).then_some(())
        });
        let origin = Origin::start(&server);
        Self { origin, client, balancer, server }
    }

    /// Another host beside the balancer, 10.3.0.2, to which that is 10.3.0.1 and the way to the rest.
    pub fn second_host(&self) -> Host {
        let second = Host::alone();
        wire(&self.balancer.namespace, ("b2", "3"), ("d0", &second.namespace));
        await_links(&self.balancer.namespace, &["b0", "b1", "b2"]);
        await_links(&second.namespace, &["d0"]);
        second
    }

    /// A lab in which an instance serves that configuration, and the balancer's state before.
    pub fn serving(config: &str, settings: &[(&str, &str)]) -> (Self, Instance, HostState) {
        let lab = Self::new();
        let before = lab.balancer.state();
        let config = lab.balancer.write("haproxy.cfg", config);
        let spec = lab.balancer.container("hapilot").config(&config).envs(settings);
        let hapilot = spec.start().serving();
        (lab, hapilot, before)
    }
}

fn wire(host: &Namespace, near: (&str, &str), far: (&str, &Namespace)) {
    let ((inner, net), (outer, peer)) = (near, far);
    host.run(&format!("ip link add {inner} type veth peer name {outer} netns {}", peer.path()));
    for (namespace, link, number) in [(host, inner, 1), (peer, outer, 2)] {
        // by hand, so that no address or route appears later by itself; a router needs fe80::
        namespace.run(&format!("ip link set {link} addrgenmode none"));
        namespace.run(&format!("ip addr add fe80::{number}/64 dev {link} nodad"));
        namespace.run(&format!("ip addr add 10.{net}.0.{number}/24 dev {link}"));
        namespace.run(&format!("ip addr add fd00:{net}::{number}/64 dev {link} nodad"));
        namespace.run(&format!("ip link set {link} up"));
    }
    peer.run(&format!("ip route add default via 10.{net}.0.1"));
    peer.run(&format!("ip -6 route add default via fd00:{net}::1"));
}

/// The kernel notices a little later that a link is up, and changes the routes.
fn await_links(host: &Namespace, links: &[&str]) {
    until(SHORT, "the links are up", || {
        let routes =
            ["-4", "-6"].map(|family| host.run(&format!("ip {family} route show table all")));
        let up = |link: &&str| routes[1].contains(&format!("multicast ff00::/8 dev {link} "));
        let settled = links.iter().all(up) && !routes.concat().contains("linkdown");
        settled.then_some(())
    });
}

fn say_version_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| eprintln!("tested with {}", version()));
}

/// What the HAProxy that is first in `PATH` says of itself.
pub fn version() -> String {
    let output = Command::new("haproxy").arg("-v").output().expect("haproxy must be in PATH");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().unwrap_or("an unknown HAProxy").to_owned()
}
