//! Three network namespaces in a row, each that of a container: client, balancer, server. Nothing of the host's is touched.

use std::path::Path;

use tempfile::TempDir;

use crate::container::{Container, output, succeed, wait_for, words};

pub(crate) const CLIENT: [&str; 2] = ["10.77.1.2", "fd77:1::2"];
pub(crate) const BALANCER: [&str; 2] = ["10.77.1.1", "fd77:1::1"];
pub(crate) const SERVER: [&str; 2] = ["10.77.2.2", "fd77:2::2"];

/// Answers every request with the address that it saw it come from.
const ORIGIN: &str = "
defaults
    mode http
    timeout client 10s
frontend origin
    bind 0.0.0.0:80
    bind [::]:80 v6only
    http-request return status 200 content-type text/plain lf-string %[src]
";

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) client: Container,
    pub(crate) balancer: Container,
    pub(crate) server: Container,
    _files: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let files = tempfile::tempdir().expect("make a temporary directory");
        let origin = write(files.path(), "origin.cfg", ORIGIN);
        let idle = || Container::start(&["--net=none", "--entrypoint=sleep"], &["infinity"]);
        let mount = format!("{origin}:/origin.cfg:ro");
        let world = Self {
            client: idle(),
            balancer: idle(),
            server: Container::start(
                &["--net=none", "--entrypoint=haproxy", "-v", &mount],
                &["-db", "-f", "/origin.cfg"],
            ),
            _files: files,
        };
        let balancer = world.balancer.pid();
        link(&world.client.pid(), &balancer, 1, ["2", "1"]);
        link(&world.server.pid(), &balancer, 2, ["2", "1"]);
        for (pid, subnet) in [(world.client.pid(), 1), (world.server.pid(), 2)] {
            inside(&pid, &format!("ip -4 route add default via 10.77.{subnet}.1"));
            inside(&pid, &format!("ip -6 route add default via fd77:{subnet}::1"));
        }
        world
    }

    /// hapilot beside the balancer's namespace, by the README's command but for whose network it is.
    pub(crate) fn hapilot(&self, options: &[&str], configuration: &str) -> (Container, TempDir) {
        let files = tempfile::tempdir().expect("make a temporary directory");
        let file = write(files.path(), "haproxy.cfg", configuration);
        let network = format!("--net=container:{}", self.balancer.id());
        let mount = format!("{file}:/usr/local/etc/haproxy/haproxy.cfg:ro");
        let all = [&["--cap-add=NET_ADMIN", &network, "-v", &mount], options].concat();
        (Container::start(&all, &[]), files)
    }

    /// What the client gets, head and body, once it is not refused.
    pub(crate) fn fetch(&self, address: &str) -> String {
        let url = url(address, 80);
        let pid = self.client.pid();
        wait_for(&format!("an answer from {url}"), || {
            let arguments = [
                "-t",
                &pid,
                "-n",
                "--",
                "curl",
                "-sS",
                "-i",
                "-g",
                "--noproxy",
                "*",
                "--max-time",
                "5",
                &url,
            ];
            let answer = output("nsenter", &arguments);
            answer.status.success().then(|| words(&answer))
        })
    }
}

pub(crate) fn url(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("http://[{address}]:{port}/")
    } else {
        format!("http://{address}:{port}/")
    }
}

pub(crate) fn write(directory: &Path, name: &str, text: &str) -> String {
    let file = directory.join(name);
    std::fs::write(&file, text).expect("write a configuration");
    file.to_str().expect("a path in UTF-8").to_owned()
}

/// One command in the network namespace of a process.
pub(crate) fn inside(pid: &str, command: &str) -> String {
    let arguments: Vec<&str> =
        ["-t", pid, "-n", "--"].into_iter().chain(command.split(' ')).collect();
    succeed("nsenter", &arguments)
}

/// Docker switches it off in a namespace without a network.
fn enable_ipv6(pid: &str) {
    let switches = "net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0";
    inside(pid, &format!("sysctl -qw {switches}"));
}

/// A cable between two namespaces, with an address of both families at each end.
pub(crate) fn link(far: &str, balancer: &str, subnet: u8, hosts: [&str; 2]) {
    for pid in [far, balancer] {
        enable_ipv6(pid);
    }
    let near = format!("net{subnet}");
    inside(balancer, &format!("ip link add {near} type veth peer name net0 netns {far}"));
    for (pid, device, host) in [(far, "net0", hosts[0]), (balancer, &near, hosts[1])] {
        inside(pid, &format!("ip -4 address add 10.77.{subnet}.{host}/24 dev {device}"));
        inside(pid, &format!("ip -6 address add fd77:{subnet}::{host}/64 dev {device} nodad"));
        inside(pid, &format!("ip link set {device} up"));
    }
    // addresses of IPv6, and the routes to them, come a little later by themselves
    for (pid, device, host) in [(far, "net0", hosts[0]), (balancer, &near, hosts[1])] {
        await_local(pid, &format!("local fd77:{subnet}::{host} "), device);
        await_local(pid, "local fe80:", device);
        let shown = || inside(pid, &format!("ip -6 address show dev {device} scope link"));
        wait_for(&format!("the link-local address of {device}"), || {
            (!shown().contains("tentative")).then_some(())
        });
    }
}

/// IPv4 and IPv6.
pub(crate) fn bring_up_loopback(pid: &str) {
    enable_ipv6(pid);
    inside(pid, "ip link set lo up");
    await_local(pid, "local ::1 ", "lo");
}

fn await_local(pid: &str, address: &str, device: &str) {
    wait_for(&format!("{address} of {device}"), || {
        let routes = inside(pid, &format!("ip -6 route show table local dev {device}"));
        routes.lines().any(|route| route.starts_with(address)).then_some(())
    });
}
