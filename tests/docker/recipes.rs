//! Every recipe of `docker/examples/`, as it is in the folder, by the lines of its README: what `tests/examples/` shows in
//! namespaces holds with an engine's networks, published ports, mounts and names too.

use std::path::PathBuf;

use crate::container::{Container, succeed};
use crate::engine::{Containers, Daemon, Networks};
use crate::folder::{Folder, tree};
use crate::world::{BALANCER, inside, link};

/// By the names in the recipes; this engine is ours, nobody's image of that name is hidden.
const STAND_INS: [(&str, &str); 4] = [
    ("traefik/whoami", "whoami"),
    ("coredns/coredns", "whoami"),
    ("nginx:alpine", "nginx"),
    ("axllent/mailpit", "mailpit"),
];

const UP: &str = "docker compose up -d";

struct Recipe {
    name: &'static str,
    /// To be typed before it comes up.
    first: &'static [&'static str],
    /// A line of its README, and what it then shows.
    lines: &'static [(&'static str, &'static [&'static str])],
}

const RECIPES: [Recipe; 15] = [
    Recipe {
        name: "round-robin",
        first: &[],
        lines: &[
            (
                "for i in 1 2 3 4; do curl -s localhost | grep Name; done",
                &["Name: web1", "Name: web2"],
            ),
            ("docker compose stop web2", &[]),
            ("docker compose logs lb", &["web/web2 is DOWN"]),
            ("curl -i localhost/alive", &["200 OK"]),
        ],
    },
    Recipe {
        name: "cookies",
        first: &[],
        lines: &[
            ("curl -si localhost | grep -i -e set-cookie -e ^Name", &["SERVERID=w1", "Name: web1"]),
            ("curl -si localhost/app/ | grep -i set-cookie", &["JSESSIONID=a1~s0"]),
            ("curl -s -H 'Cookie: JSESSIONID=a2~s0' localhost/app/", &["app2 has session s0"]),
        ],
    },
    Recipe {
        name: "mail",
        first: &[],
        lines: &[
            ("docker compose stop mail1", &[]),
            (
                "curl -sv --max-time 2 telnet://localhost:25 </dev/null",
                &["220 mail2 Mailpit ESMTP Service ready"],
            ),
        ],
    },
    Recipe {
        name: "tls",
        first: &["../make-certificates certs www.example.com"],
        lines: &[
            ("curl -si localhost", &["301", "location: https://localhost/"]),
            (
                "curl -s --cacert certs/ca.crt https://localhost",
                &["Name: web1", "X-Forwarded-Proto: https"],
            ),
            (
                "curl -s --cacert certs/ca.crt --http2 -o /dev/null -w '%{http_version}\\n' https://localhost",
                &["2"],
            ),
        ],
    },
    Recipe {
        name: "reencryption",
        first: &["../make-certificates certs www.example.com web1 web2"],
        lines: &[("curl -s --cacert certs/ca.crt https://localhost | grep Name", &["Name: web"])],
    },
    Recipe {
        name: "routing",
        first: &[],
        lines: &[
            ("curl -s localhost | grep Name", &["Name: www"]),
            ("curl -s -H 'Host: shop.example.com:8080' localhost | grep Name", &["Name: shop"]),
            ("curl -s localhost/api/users/1 | grep -e Name -e GET", &["Name: api", "GET /users/1"]),
            ("curl -s localhost/apiary | grep Name", &["Name: www"]),
        ],
    },
    Recipe {
        name: "canary",
        first: &[],
        lines: &[
            (
                "for i in $(seq 20); do curl -s localhost | grep Name; done | sort | uniq -c",
                &["18 Name: stable", "2 Name: canary"],
            ),
            ("curl -s -H 'Cookie: BUILD=canary' localhost | grep Name", &["Name: canary"]),
        ],
    },
    Recipe {
        name: "statistics",
        first: &[],
        lines: &[
            ("curl -s -u admin:change-me 'localhost:8404/;csv'", &["web,web1"]),
            ("curl -s -u admin:change-me localhost:8404/metrics", &["haproxy_process_"]),
        ],
    },
    Recipe {
        name: "peers",
        first: &[],
        lines: &[
            (
                "for i in 1 2 3; do curl -s localhost:8081 | grep Name; curl -s localhost:8082 | grep Name; done",
                &["Name: web"],
            ),
            ("docker compose kill lb1; curl -s localhost:8082 | grep Name", &["Name: web"]),
            ("docker compose up -d lb1; curl -s localhost:8081 | grep Name", &["Name: web"]),
        ],
    },
    Recipe {
        name: "transparent",
        first: &[],
        lines: &[(
            "curl -s http://ADDRESS-OF-THIS-HOST/ | grep RemoteAddr",
            &["RemoteAddr: 10.77.1.2"],
        )],
    },
    Recipe {
        name: "interception",
        first: &[],
        lines: &[
            ("curl -si http://10.2.0.31/", &["x-via: lb", "RemoteAddr: 10.77.1.2"]),
            ("docker compose logs lb", &["GET / HTTP/1.1"]),
        ],
    },
    Recipe {
        name: "environment",
        first: &[],
        lines: &[
            (
                "curl -si localhost | grep -i -e Name -e X-Application",
                &["x-application: shop, build 7", "Name: web1"],
            ),
            ("docker compose run --rm -e SERVER= lb check", &["configuration: refused by HAProxy"]),
        ],
    },
    Recipe {
        name: "dns",
        first: &[],
        lines: &[
            (
                "for i in $(seq 8); do curl -s localhost | grep Hostname; done | sort | uniq -c",
                &["4 Hostname: "],
            ),
            ("docker compose up -d --scale web=4", &[]),
            (
                "for i in $(seq 8); do curl -s localhost | grep Hostname; done | sort | uniq -c",
                &["2 Hostname: "],
            ),
        ],
    },
    Recipe {
        name: "threads",
        first: &["../make-certificates certs www.example.com"],
        lines: &[(
            "curl -s --cacert certs/ca.crt https://localhost | grep X-Forwarded-For",
            &["X-Forwarded-For: 172."],
        )],
    },
    Recipe {
        name: "ipv6",
        first: &[],
        lines: &[
            (
                "for i in 1 2; do curl -s 'http://[::1]/' | grep -e Name -e RemoteAddr; done",
                &["Name: web1", "Name: web2", "RemoteAddr: fd00:2::"],
            ),
            ("docker compose kill -s HUP lb", &[]),
        ],
    },
];

/// An engine of our own that has the image under test, and stand-ins for the public ones.
fn engine() -> Daemon {
    let mut daemon = Daemon::new(Networks::Bridges);
    daemon.start(Containers::AreEnded);
    // Docker does so with the first network of IPv6, and leaves it
    let forwarding = "sysctl -qw net.ipv6.conf.default.forwarding=1 net.ipv6.conf.all.forwarding=1";
    inside(daemon.host(), forwarding);
    daemon.load_image("hapilot");
    let context = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/docker/stand-in");
    for (name, target) in STAND_INS {
        let build = ["build", "--quiet", "--target", target, "-t", name, context];
        daemon.engine().succeed(&build);
    }
    daemon
}

/// Another machine, for which the engine's host is the gateway.
fn neighbour(daemon: &Daemon) -> Container {
    let neighbour = Container::start(&["--net=none", "--entrypoint=sleep"], &["infinity"]);
    link(&neighbour.pid(), daemon.host(), 1, ["2", "1"]);
    inside(&neighbour.pid(), &format!("ip -4 route add default via {}", BALANCER[0]));
    neighbour
}

/// The folders beside each other, with what they share.
fn copy(daemon: &Daemon) -> PathBuf {
    let examples = daemon.files().join("examples");
    let [from, to] = [&tree().join("examples"), &examples].map(|path| path.display().to_string());
    succeed("cp", &["-r", &from, &to]);
    examples
}

#[test]
#[ignore = "needs the image: scripts/test builds it and runs this (issue 6)"]
fn every_recipe_comes_up_does_what_its_readme_says_and_leaves_the_host_as_it_was() {
    let daemon = engine();
    let neighbour = neighbour(&daemon);
    let examples = copy(&daemon);
    let before = daemon.state();
    for recipe in RECIPES {
        let folder = Folder::new(&daemon, &examples.join(recipe.name), "README.md");
        for line in recipe.first {
            folder.done(line);
        }
        folder.done(UP);
        for (line, words) in recipe.lines {
            let from_outside = ["transparent", "interception"].contains(&recipe.name);
            if from_outside && line.starts_with("curl") {
                folder.shows_to(&neighbour.pid(), line, words);
            } else {
                folder.shows(line, words);
            }
        }
        folder.down();
        before.assert_same(&daemon.state());
    }
}

#[test]
fn every_recipe_is_here() {
    for entry in std::fs::read_dir(tree().join("examples")).expect("list the recipes") {
        let path = entry.expect("list the recipes").path();
        let here = RECIPES.iter().any(|recipe| path.ends_with(recipe.name));
        assert!(here || !path.is_dir(), "{} is not among the recipes", path.display());
    }
}
