"""A client, a line with a delay and a balancer: three network namespaces, made anew for each run.

This kernel may have no netem: what the line forwards waits in an NFQUEUE, `bench/line` lets it go on when it is time.
"""

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

TOOL = Path(__file__).with_name("line") / "target" / "release" / "hapilot-bench-line"
NAMES = {"client": "hapilot-bench-client", "line": "hapilot-bench-line", "balancer": "hapilot-bench-balancer"}
PORT = 8080
BALANCER = {4: "10.77.2.2", 6: "fd77:2::2"}
# several, so that no pair of ports comes back within a minute
CLIENTS = {4: [f"10.77.1.{number}" for number in range(2, 10)], 6: [f"fd77:1::{number}" for number in range(2, 10)]}
DELAY_MS = 40
PATIENCE = 10


def call(*words):
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def remove_all():
    """Also those of a bench that was killed, with whatever runs in them."""
    there = {line.split()[0] for line in call("ip", "netns", "list").splitlines() if line}
    for name in there & set(NAMES.values()):
        for pid in call("ip", "netns", "pids", name).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        call("ip", "netns", "delete", name)


def inside(place, *words):
    return ("ip", "netns", "exec", NAMES[place], *words)


class Line:
    """`family`: 4 or 6, what clients come by."""

    def __init__(self, directory, family=4):
        self.directory, self.family, self.children = Path(directory), family, []
        for name in NAMES.values():
            call("ip", "netns", "add", name)
            call("ip", "-n", name, "link", "set", "lo", "up")
        for place, addresses, net in (("client", CLIENTS, 1), ("balancer", {4: [BALANCER[4]], 6: [BALANCER[6]]}, 2)):
            self._link(place, addresses, {4: f"10.77.{net}.1", 6: f"fd77:{net}::1"})
        call(*inside("client", "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65000"))
        call(*inside("line", "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"))
        for tables in ("iptables", "ip6tables"):
            call(*inside("line", tables, "-A", "FORWARD", "-j", "NFQUEUE", "--queue-num", "0"))
        delay = self.run("line", str(TOOL), "delay", "0", str(DELAY_MS), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if delay.stdout.readline() != b"ready\n":
            raise SystemExit("bench: the line could not be made")
        first(delay.pid)

    def _link(self, place, addresses, gateways):
        name = NAMES[place]
        call("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", place, "netns", NAMES["line"])
        call("ip", "-n", name, "link", "set", "eth0", "up")
        call("ip", "-n", NAMES["line"], "link", "set", place, "up")
        for family, bits, nodad in ((4, 24, ()), (6, 64, ("nodad",))):
            for address in addresses[family]:
                call("ip", "-n", name, "address", "add", f"{address}/{bits}", "dev", "eth0", *nodad)
            call("ip", "-n", NAMES["line"], "address", "add", f"{gateways[family]}/{bits}", "dev", place, *nodad)
            call("ip", "-n", name, f"-{family}", "route", "add", "default", "via", gateways[family])

    def run(self, place, *words, **options):
        child = subprocess.Popen(inside(place, *words), **options)
        self.children.append(child)
        return child

    def log(self, name):
        return (self.directory / name).open("ab")

    def load(self, rate, seconds):
        load = self.run("client", str(TOOL), "load", self.balancer(), ",".join(CLIENTS[self.family]), str(rate),
                        str(seconds), str(PATIENCE), stdout=subprocess.PIPE)
        first(load.pid)
        return load

    def keep(self, clients, seconds):
        """Busy clients that keep their connections."""
        return self.run("client", str(TOOL), "keep", self.balancer(), str(clients), str(seconds), stdout=subprocess.PIPE)

    def watch(self):
        """Who answers, asked from the balancer itself: the wire's delay is not in it."""
        return self.run("balancer", str(TOOL), "watch", self.balancer(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def balancer(self):
        address = BALANCER[self.family]
        return f"{address}:{PORT}" if self.family == 4 else f"[{address}]:{PORT}"

    def until_served(self):
        """By a client, over the line; so that every address is known when it counts, too."""
        deadline = time.monotonic() + 30
        while True:
            load = self.load(len(CLIENTS[self.family]), 1)
            outcomes = [line.split()[3] for line in load.communicate()[0].decode().splitlines()[1:]]
            if load.returncode == 0 and set(outcomes) == {"ok"}:
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"bench: not served within 30 s: {outcomes}")

    def close(self):
        for child in self.children:
            if child.poll() is None:
                child.kill()
        for child in self.children:
            child.wait()
        remove_all()


def first(pid):
    """What measures comes before what is measured, else it measures itself: it needs little."""
    os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(1))


def workspace():
    return tempfile.TemporaryDirectory(prefix="hapilot-bench-")
