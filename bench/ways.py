"""The ways to reload a HAProxy that scripts/bench reload compares."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from line import PORT, inside
from world import children

CONFIGURATION = Path(__file__).with_name("reload.cfg").resolve()
SECOND = 1.0


class Way:
    every = SECOND
    what = "reload"

    def __init__(self, line, haproxy, hapilot):
        self.line, self.haproxy, self.hapilot = line, haproxy, hapilot
        self.start()

    def windows(self):
        """How long guards were up, in ms."""
        return []

    def launch(self, *arguments):
        return self.line.run("balancer", str(self.haproxy), *arguments, "-f", str(CONFIGURATION),
                             stdout=subprocess.DEVNULL, stderr=self.line.log("haproxy.log"))


class Undisturbed(Way):
    """No reload."""
    every = None

    def start(self):
        self.launch("-db")

    def done(self):
        return 0


class PlainSf(Way):
    """A new HAProxy binds beside the old one (SO_REUSEPORT), which then closes its own listeners."""

    def start(self):
        self.running = [self.launch("-db")]

    def disturb(self):
        self.running.append(self.launch("-db", "-sf", str(self.running[-1].pid)))

    def done(self):
        """The old ones have left, each for the next."""
        return sum(child.poll() is not None for child in self.running[:-1])


class SynDrop(PlainSf):
    """The recipe of the days before -x: nobody gets in while HAProxy is replaced, for as long as somebody guessed."""

    def disturb(self):
        rule = ("INPUT", "-p", "tcp", "--dport", str(PORT), "--syn", "-j", "DROP")
        subprocess.run(inside("balancer", "iptables", "-w", "-I", *rule), check=True)
        time.sleep(1)
        super().disturb()
        time.sleep(0.1)
        subprocess.run(inside("balancer", "iptables", "-w", "-D", *rule), check=True)


class MasterWorker(Way):
    """HAProxy's own master hands the listeners to each new worker."""

    def start(self):
        self.master = self.launch("-W", "-db")

    def disturb(self):
        self.master.send_signal(signal.SIGUSR2)

    def done(self):
        log = (self.line.directory / "haproxy.log").read_text()
        return len(re.findall(r"New worker .*forked", log)) - 1


class Hapilot(Way):
    guard = "auto"

    def start(self):
        path = f"{self.haproxy.parent}:{os.environ['PATH']}"
        settings = [f"HAPROXY_CONFIG={CONFIGURATION}", f"HAPROXY_PORTS={PORT}", f"HAPROXY_RELOAD_GUARD={self.guard}",
                    "HAPROXY_LOG_FORMAT=json", f"PATH={path}"]
        # its own /run, as a container has it
        self.process = self.line.run(
            "balancer", "unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec env "$@"', "sh",
            *settings, str(self.hapilot), stdout=subprocess.DEVNULL, stderr=self.line.log("hapilot.log"))

    def disturb(self):
        self.process.send_signal(signal.SIGHUP)

    def log(self):
        lines = (self.line.directory / "hapilot.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def done(self):
        return sum(line["message"].startswith("reload ") and line["level"] == "INFO" for line in self.log())


    def windows(self):
        texts = (re.search(r"guard \w+ for ([0-9.]+) ms", line["message"]) for line in self.log())
        return sorted(float(text[1]) for text in texts if text)


class Hold(Hapilot):
    guard = "hold"


class Drop(Hapilot):
    guard = "drop"


class Killed(Hapilot):
    every = 1.3
    what = "kill -9"

    def disturb(self):
        for pid in children(self.process.pid):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "haproxy":
                os.kill(pid, signal.SIGKILL)

    def done(self):
        return sum("HAProxy died" in line["message"] for line in self.log())


WAYS = {
    "no reload": Undisturbed,
    "plain -sf": PlainSf,
    "master-worker, USR2": MasterWorker,
    "SYN drop, fixed sleeps": SynDrop,
    "hapilot": Hapilot,
    "hapilot, guard hold": Hold,
    "hapilot, guard drop": Drop,
    "hapilot, HAProxy killed": Killed,
    "no reload, once more": Undisturbed,
}
