"""The ways to reload a HAProxy that scripts/bench compares."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import configuration
from line import PORT, inside
from world import children, until


class Way:
    """`every`: seconds between two disturbances. `given`: what the configuration is to have, see configuration.text."""

    every = 1.0
    what = "reload"

    def __init__(self, line, haproxy, hapilot, every=None, **given):
        self.line, self.haproxy, self.hapilot, self.given = line, haproxy, hapilot, given
        self.every = every if every and self.every else self.every
        self.configuration = line.directory / "haproxy.cfg"
        self.configure()
        self.start()

    def configure(self, **more):
        self.configuration.write_text(configuration.text(**self.given, **more))

    def windows(self):
        """How long guards were up, in ms."""
        return []

    def guards(self):
        """Which guards were up."""
        return set()

    def launch(self, *arguments):
        return self.line.run("balancer", str(self.haproxy), *arguments, "-f", str(self.configuration),
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
    """`rights`: a command that takes rights away, before hapilot is started."""
    guard = "auto"
    rights = ()

    def start(self):
        path = f"{self.haproxy.parent}:{os.environ['PATH']}"
        settings = [f"HAPROXY_CONFIG={self.configuration}", f"HAPROXY_PORTS={PORT}",
                    f"HAPROXY_RELOAD_GUARD={self.guard}", "HAPROXY_LOG_FORMAT=json", f"PATH={path}"]
        # its own /run, as a container has it
        self.process = self.line.run(
            "balancer", "unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh",
            *self.rights, "env", *settings, str(self.hapilot), stdout=subprocess.DEVNULL, stderr=self.line.log("hapilot.log"))

    def disturb(self):
        self.process.send_signal(signal.SIGHUP)

    def command(self, *words):
        """As `docker exec` would run it."""
        return ("nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", str(self.hapilot), *words)

    def status(self):
        done = subprocess.run(self.command("status", "--json"), capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else {}

    def until_it_is_quiet(self):
        """One generation, which serves."""
        def quiet():
            status = self.status()
            return status if status.get("state") == "serving" and len(status["generations"]) == 1 else None
        return until("one generation that serves", quiet, 0.02)

    def log(self):
        lines = (self.line.directory / "hapilot.log").read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def receipts(self):
        return [line["message"] for line in self.log() if line["message"].startswith("reload ") and line["level"] == "INFO"]

    def done(self):
        return len(self.receipts())

    def windows(self):
        texts = (re.search(r"guard \w+ for ([0-9.]+) ms", receipt) for receipt in self.receipts())
        return sorted(float(text[1]) for text in texts if text)

    def guards(self):
        return {line["guard"] for line in self.log() if line["message"] == "guard raised"}

    def ready_ms(self):
        """From each launch until HAProxy answered, by hapilot's log."""
        return sorted(line["ms"] for line in self.log() if line["message"] == "ready")


class Guarded(Hapilot):
    """Each reload changes the options of the ports: nothing is shared, so a guard is needed each time."""
    options = ("", configuration.OTHER)
    turn = 0

    def disturb(self):
        self.turn += 1
        self.configure(option=self.options[self.turn % 2])
        super().disturb()


class Migrate(Guarded):
    """What auto takes where the sysctl can be written."""


class Hold(Guarded):
    guard = "hold"


class Drop(Guarded):
    guard = "drop"
    # a SYN is sent again after a second: it shall not meet the next reload
    every = 1.5


class Killed(Hapilot):
    what = "kill -9"

    def disturb(self):
        for pid in children(self.process.pid):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "haproxy":
                self.kill(pid)

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)

    def done(self):
        return sum("HAProxy died" in line["message"] for line in self.log())


class KilledAsleep(Killed):
    """`inside`: who was in a HAProxy that was killed. To see them takes time, in which nobody is served."""

    def start(self):
        super().start()
        self.inside = set()

    def kill(self, pid):
        # whoever is inside now is inside when it dies
        os.kill(pid, signal.SIGSTOP)
        until("HAProxy stands still", lambda: stopped(pid), 0)
        self.inside |= accepted()
        super().kill(pid)


def stopped(pid):
    """None while one of its threads runs."""
    states = (stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat"))
    return True if all(state in "Tt" for state in states) else None


def accepted():
    """The clients' addresses of connections that a process has, not only the kernel."""
    done = subprocess.run(inside("balancer", "ss", "-Htane", "exclude", "listening", "sport", "=", f":{PORT}"),
                          capture_output=True, text=True, check=True)
    rows = [row.split() for row in done.stdout.splitlines()]
    return {row[4].replace("[::ffff:", "").replace("]", "") for row in rows
            if any(re.fullmatch("ino:[1-9][0-9]*", word) for word in row)}
