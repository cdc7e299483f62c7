"""What new connections see of take-overs: one container relieves another, under an open-loop load."""

import os
import signal
import subprocess
from unittest import mock

import configuration
import promise
from line import PORT, inside
from promise import Promise, Quiet
from reload import LESS, reported
from trial import seconds, share_descriptors, trial
from ways import Hapilot, PlainSf, Undisturbed
from world import until

EVERY = 2.0

# what a container does not have unless it is asked for
NO_SYS_ADMIN = ("setpriv", "--bounding-set", "-sys_admin")
NO_PTRACE = ("setpriv", "--bounding-set", "-sys_admin,-sys_ptrace")
# whoever changed its user is closed to those without SYS_PTRACE
CHANGED_USER = "uid 65534\n    gid 65534"


class OldWay(PlainSf):
    """A new container ends the old one's HAProxy: `-sf $(pidof haproxy)`, with --pid=host."""
    every = EVERY
    what = "take-over"


class Relieved(Hapilot):
    """A new hapilot beside the old one, which it finds by itself."""
    every = EVERY
    what = "take-over"

    def start(self):
        self.relieve("auto")

    def relieve(self, whom):
        with mock.patch.dict(os.environ, HAPROXY_PIDS=whom):
            super().start()

    def disturb(self):
        self.start()

    def receipts(self):
        return [line["message"] for line in self.log() if line["message"].startswith("take-over ")]


class FromPlain(Relieved):
    """A hapilot beside a HAProxy without one, with --pid=host. `rung`: how the listeners are to come over, by the receipt."""
    settings = CHANGED_USER
    rights = NO_PTRACE
    rung = "separate sockets"

    def start(self):
        plain = self.line.directory / "plain.cfg"
        more = self.settings.format(directory=self.line.directory)
        plain.write_text(configuration.replace(configuration.text(**self.given), "global\n", f"global\n    {more}\n"))
        self.old = self.line.run("balancer", *NO_PTRACE, str(self.haproxy), "-db", "-f", str(plain),
                                 stdout=subprocess.DEVNULL, stderr=self.line.log("haproxy.log"))
        until("the HAProxy that is to be relieved listens", lambda: listeners() or None, 0.02)

    def disturb(self):
        self.relieve(str(self.old.pid))

    def again(self):
        """As at the beginning."""
        self.until_it_is_quiet()
        until("the end of the relieved HAProxy", self.old.poll, 0.02)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.start()

    def rungs(self):
        return [self.rung in receipt for receipt in self.receipts()]


class StatsSocket(FromPlain):
    settings = "stats socket {directory}/admin.sock level admin expose-fd listeners"
    rung = "its stats socket"


class PidfdGetfd(FromPlain):
    rights = NO_SYS_ADMIN
    rung = "pidfd_getfd"


class HoldFromPlain(FromPlain):
    guard = "hold"


class DropFromPlain(FromPlain):
    guard = "drop"


def listeners():
    done = subprocess.run(inside("balancer", "ss", "-Htln", "sport", "=", f":{PORT}"), capture_output=True, text=True,
                          check=True)
    return done.stdout.splitlines()


# best first, and the guard that each needs
RUNGS = {
    "from HAProxy alone, its stats socket": (StatsSocket, None),
    "from HAProxy alone, pidfd_getfd": (PidfdGetfd, None),
    # what auto takes where the sysctl can be written
    "from HAProxy alone, guard migrate": (FromPlain, "migrate"),
    "from HAProxy alone, guard hold": (HoldFromPlain, "hold"),
    "from HAProxy alone, guard drop": (DropFromPlain, "drop"),
}


def measure(*subject):
    share_descriptors()
    time = seconds(LESS)
    quiet = trial("no take-over", Undisturbed, subject, time)
    old = trial("the old way, -sf $(pidof haproxy)", OldWay, subject, time)
    relieved = trial("hapilot to hapilot", Relieved, subject, time)
    trials, kept, base = [quiet, old, relieved], [promise.nobody_is_lost(relieved)], Quiet([quiet])
    for name, (way, guard) in RUNGS.items():
        # each is followed by a new beginning, when nobody is served
        found = trial(name, way, subject, round(EVERY), times=max(1, round(time / EVERY)), after=way.rungs)
        trials.append(found)
        kept.append(Promise(f"{name}: each time by that way", found.after == [True] * found.done and found.done > 0,
                            f"{sum(found.after)} of {len(found.marks)}"))
        kept += promise.is_guarded(found, guard, base) if guard else [promise.nobody_is_lost(found)]
    return reported(trials, base, kept)
