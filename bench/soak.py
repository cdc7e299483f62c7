"""For long: reloads twice a second under load, with everything in between that breaks balancers.

Every seventh reload changes its `bind`, every 23rd is followed at once by a `kill -9` of the HAProxy that it brought, every
31st by a flush of the mangle tables, and every 41st finds a broken configuration.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import line
from configuration import OTHER
from line import PORT, inside
from promise import Promise
from report import Report, table
from thousand import call, look
from trial import ROUND_TRIP_MS, at, share_descriptors
from ways import Hapilot, stopped
from world import until

MINUTES = float(os.environ.get("BENCH_MINUTES", "40"))
RATE = 200
ROUND = 20
EVERY = 0.5
BIND, KILL, FLUSH, BREAK = 7, 23, 31, 41
# what a run does in between is done once before anything is compared: what is allocated once is there
WARM = max(BIND, KILL, FLUSH, BREAK)
MORE_MEMORY_KIB = 1024
BROKEN = "defaults\n    mode http\n    no-such-keyword\n"


class Soaked(Hapilot):
    """`turn` counts reloads; `inside` are the clients of killed processes, by address."""

    def start(self):
        super().start()
        self.turn, self.option = 0, ""
        self.inside, self.counts, self.wrong = set(), dict.fromkeys(("taken", "refused", "killed", "flushed"), 0), []

    def step(self):
        self.turn += 1
        broken = self.turn % BREAK == 0
        if self.turn % BIND == 0:
            self.option = "" if self.option else OTHER
        self.configure(option=self.option)
        if broken:
            self.configuration.write_text(BROKEN)
        receipt = self.reload()
        if receipt.get("verdict") != ("refused" if broken else "taken"):
            self.wrong.append(f"reload {self.turn}: {receipt}")
        self.counts["refused" if broken else "taken"] += 1
        if broken:
            self.configure(option=self.option)
        elif self.turn % KILL == 0:
            self.kill(receipt["to_pid"])
        if self.turn % FLUSH == 0:
            self.flush()

    def reload(self):
        done = subprocess.run(self.command("reload", "--json"), capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.stdout.startswith("{") else {"verdict": done.stderr.strip()}

    def kill(self, pid):
        # whoever is inside now is inside when it dies
        os.kill(pid, signal.SIGSTOP)
        until("HAProxy stands still", lambda: stopped(pid), 0)
        self.inside |= clients_of(pid)
        os.kill(pid, signal.SIGKILL)
        self.counts["killed"] += 1

    def flush(self):
        for tables in ("iptables", "ip6tables"):
            call(*inside("balancer", tables, "-w", "-t", "mangle", "-F"))
        self.counts["flushed"] += 1


def clients_of(pid):
    rows = call(*inside("balancer", "ss", "-Htanp", "exclude", "listening", "sport", "=", f":{PORT}")).splitlines()
    its = (row.split() for row in rows if f"pid={pid}," in row)
    return {row[4].replace("[::ffff:", "").replace("]", "") for row in its}


def measure(*subject):
    share_descriptors()
    line.remove_all()
    with line.workspace() as directory:
        wire = line.Line(directory)
        try:
            running = Soaked(wire, *map(Path, subject))
            wire.until_served()
            pid = running.process.pid
            for _ in range(WARM):
                running.step()
            warm = running.turn
            before = look(running)
            lost, took, begun = storm(wire, running)
            there = running.process.poll() is None and running.process.pid == pid
            after = look(running) if there else {}
            status = running.status()
            # what it said last is the reason, where it is not there any more
            last = [] if there else [entry["message"] for entry in running.log()[-3:]]
        finally:
            wire.close()
    reloads = running.turn - warm
    return report(running, reloads, before, after, (lost, took, time.monotonic() - begun), status, last)


def storm(wire, running):
    """The connections that had no answer (outcome, client), how long the others took, in ms, and when it began."""
    lost, took, begun = [], [], time.monotonic()
    while time.monotonic() < begun + MINUTES * 60 and running.process.poll() is None:
        load = wire.load(RATE, ROUND)
        end = int(load.stdout.readline()) / 1e9 + ROUND
        due = time.monotonic()
        while time.monotonic() < end and running.process.poll() is None:
            running.step()
            due = max(due + EVERY, time.monotonic())
            time.sleep(max(0, min(due, end) - time.monotonic()))
        for row in load.stdout.read().decode().splitlines():
            _, _, micros, outcome, client = row.split()
            if outcome == "ok":
                took.append(int(micros) / 1e3)
            else:
                lost.append((outcome, client))
        if load.wait() != 0:
            raise SystemExit("bench: soak: the load failed")
        minutes = (time.monotonic() - begun) / 60
        outside = [(outcome, client) for outcome, client in lost if client not in running.inside]
        print(f"bench: soak: {minutes:.1f} min, {running.turn} reloads, {running.counts}, {len(lost)} lost, of them not "
              f"inside a killed process: {outside[:5]}", flush=True)
    return lost, sorted(took), begun


def report(running, reloads, before, after, told, status, last):
    lost, took, seconds = told
    outside = [(outcome, client) for outcome, client in lost if client not in running.inside]
    crashes, killed = status.get("crashes"), running.counts["killed"]
    kept = [
        Promise("it is still there, and serves", bool(after) and status.get("state") == "serving", "; ".join(last) or "serving"),
        Promise("only sessions inside killed processes are lost", not outside and len(took) > 0,
                f"{len(took) + len(lost):,} connections, {len(lost)} lost, {len(outside)} of them outside; {killed} × kill -9"),
        Promise("every reload is taken, every broken configuration refused", not running.wrong,
                "; ".join(running.wrong[:3]) or f"{running.counts['taken']} taken, {running.counts['refused']} refused"),
        Promise("nothing but the killed ones crashed", crashes == killed, f"{crashes} crashes"),
    ]
    rows = []
    for what, was in before.items():
        now = after.get(what)
        counts = [count(what, value) for value in (was, now)]
        rows.append([what, *counts])
        if what == "memory, KiB":
            more = (now or 0) - was
            kept.append(Promise(f"{what}: at most {MORE_MEMORY_KIB} more", bool(after) and more <= MORE_MEMORY_KIB, f"{more:+}"))
        else:
            kept.append(Promise(f"{what}: as before", now == was, "{}, then {}".format(*counts)))
    done = ", ".join(f"{number} {name}" for name, number in running.counts.items())
    text = "\n".join([
        f"{seconds / 60:.0f} minutes, {RATE} new connections per second, round trip {ROUND_TRIP_MS} ms, {reloads:,} reloads "
        f"(with the {WARM} before anything was compared: {done}). An answer took {at(took, 0.5):.1f} ms (median), 99.9 % within "
        f"{at(took, 0.999):.1f} ms, at most {took[-1]:.1f} ms." if took else "No connection was answered.", "",
        table(["", "before", "after"], rows), "", *map(str, kept)])
    return Report(text, kept, {"before": before, "after": after, "lost": lost, "counts": running.counts,
                               "wrong": running.wrong, "seconds": seconds})


def count(what, value):
    if not isinstance(value, list):
        return value
    return sum(map(len, value)) if what == "rules and routes" else len(value)
