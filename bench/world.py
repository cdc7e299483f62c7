"""The containers that are measured: one network for all of them, so that only the program differs.

A container that does nothing holds the network and the firewall rules of a host that runs Docker. HAProxy alone and
hapilot are then run in that network by turns. This machine's own network is only spoken through.
"""

import json
import os
import select
import socket
import subprocess
import time
from datetime import datetime
from pathlib import Path

CONFIGURATION = Path(__file__).with_name("haproxy.cfg").resolve()
PORT = 8080
LABEL = "hapilot.bench"
PATIENCE = 30.0

# What Docker itself puts on a host: reading and changing rules costs more where there are some.
RULES = """*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
*filter
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-USER -j RETURN
COMMIT
"""


def docker(*arguments, text=""):
    done = subprocess.run(["docker", *arguments], input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"bench: docker {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def remove_all():
    """Also those of a bench that was killed."""
    left = docker("ps", "-aq", "--filter", f"label={LABEL}").split()
    if left:
        docker("rm", "-f", *left)


def until(what, try_it, pause=0.0005):
    """For what gives no event to wait for: another process's listener."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = try_it()
        if found is not None:
            return found
        time.sleep(pause)
    raise SystemExit(f"bench: {what}: not within {PATIENCE:.0f} s")


class World:
    """A network with rules in it that `firewall` (nft, legacy) wrote; `name` where there are two such."""

    def __init__(self, image, firewall, name=None):
        self.image, self.name = image, f"hapilot-bench-net-{name or firewall}"
        # Docker switches IPv6 off in its own networks; the hosts that hapilot is for have it
        ipv6 = [f"--sysctl=net.ipv6.conf.{where}.disable_ipv6=0" for where in ("all", "default", "lo")]
        docker("run", "-d", "--name", self.name, "--label", LABEL, "--cap-add=NET_ADMIN", *ipv6,
               "--no-healthcheck", "--entrypoint", "sleep", image, "infinity")
        docker("exec", "-i", self.name, f"iptables-{firewall}-restore", text=RULES)
        self.address = docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", self.name)

    def run(self, name, program, options=("--no-healthcheck",), environment=(), configuration=CONFIGURATION):
        """Starts `program`; its first line says when, just before it took the shell's place as PID 1."""
        variables = [f"--env={variable}" for variable in environment]
        asked_at = time.time()
        docker("run", "-d", "--name", f"hapilot-bench-{name}", "--label", LABEL, f"--net=container:{self.name}",
               "--cap-add=NET_ADMIN", *options, *variables,
               "-v", f"{configuration}:/usr/local/etc/haproxy/haproxy.cfg:ro",
               "--entrypoint", "sh", self.image, "-c", 'date +%s%N; exec "$@"', "sh", *program)
        return Container(f"hapilot-bench-{name}", self.address, asked_at)


HAPROXY_ALONE = ("haproxy", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg")
HAPILOT = ("hapilot",)
# for hapilot's own words with their times
JSON = ("HAPROXY_LOG_FORMAT=json",)


class Container:
    def __init__(self, name, address, asked_at):
        self.name, self.address, self.asked_at = name, address, asked_at

    def pid(self):
        return int(docker("inspect", "--format", "{{.State.Pid}}", self.name))

    def started_at(self):
        return int(self._logs().stdout.split()[0]) / 1e9

    def log(self):
        """hapilot's own lines: (time, message, all of it)."""
        lines = (json.loads(line) for line in self._logs().stderr.splitlines() if line.startswith("{"))
        return [(timestamp(line["timestamp"]), line["message"], line) for line in lines]

    def said(self):
        logs = self._logs()
        return f"{logs.stdout}{logs.stderr}"

    def _logs(self):
        return subprocess.run(["docker", "logs", self.name], capture_output=True, text=True, check=True)

    def connect(self):
        """None while it refuses."""
        try:
            return socket.create_connection((self.address, PORT), timeout=PATIENCE)
        except ConnectionRefusedError:
            return None

    def remove(self):
        docker("rm", "-f", self.name)


def timestamp(text):
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def first_byte(address):
    """When the first byte of an answer came, by trying until there is one."""
    def once():
        try:
            with socket.create_connection((address, PORT), timeout=PATIENCE) as client:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return time.time() if client.recv(1) else None
        except (ConnectionRefusedError, ConnectionResetError):
            return None
    return until("the first byte", once)


def children(pid):
    """As this machine numbers them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the name in brackets may hold blanks
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found.append(int(stat.parent.name))
    return sorted(found)


class Ends:
    """When each of some processes ended, to the moment, by the kernel's own word."""

    def __init__(self, **pids):
        self.open = {os.pidfd_open(pid): who for who, pid in pids.items()}

    def wait(self):
        ended = {}
        while self.open:
            ready, _, _ = select.select(list(self.open), [], [], PATIENCE)
            now = time.time()
            if not ready:
                raise SystemExit(f"bench: still running: {', '.join(self.open.values())}")
            for descriptor in ready:
                ended[self.open.pop(descriptor)] = now
                os.close(descriptor)
        return ended
