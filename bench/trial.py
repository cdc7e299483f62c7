"""One way under one load: what new connections saw of it."""

import os
import resource
import time
from pathlib import Path

import line

RATE = 1000
ROUND_TRIP_MS = 2 * line.DELAY_MS
# the first and the last disturbance, so that what they do is still seen
EDGE = 0.5


class Trial:
    """What one way did to a load. `connections`: (due in s, took in ms, outcome, from)."""

    def __init__(self, name, way, marks, rows, seconds):
        self.name, self.what, self.seconds, self.marks = name, way.what, seconds, marks
        self.done, self.windows, self.guards = way.done(), way.windows(), way.guards()
        self.connections = [(due, int(took) / 1e3, outcome, client) for due, _, took, outcome, client in rows]
        self.late = sorted(int(late) / 1e3 for _, late, *_ in rows)
        self.took = sorted(took for _, took, outcome, _ in self.connections if outcome == "ok")
        self.ok, self.refused, self.reset, self.timeout = map(self.count, ("ok", "refused", "reset", "timeout"))
        self.lost = len(rows) - self.ok
        self.p50, self.p99, self.p999 = (at(self.took, share) for share in (0.5, 0.99, 0.999))
        self.max = self.took[-1]

    def count(self, outcome):
        return sum(outcome == which for _, _, which, _ in self.connections)

    def values(self):
        names = ("seconds", "done", "ok", "refused", "reset", "timeout", "lost", "p50", "p99", "p999", "max", "windows")
        return {"name": self.name, **{name: getattr(self, name) for name in names}, "late_p999": at(self.late, 0.999)}


def at(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def share_descriptors():
    """The load needs one for each connection."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def seconds(share=1.0):
    return max(2, round(int(os.environ["BENCH_SECONDS"]) * share))


def trial(name, way, subject, seconds, family=4, after=None, times=1, **given):
    """`given`: to the way. What `after` makes of the way when the load is over is in `.after`.

    `times`: as many loads of `seconds`, one after the other; in between the way makes a new beginning, with `again`.
    """
    haproxy, hapilot = map(Path, subject)
    line.remove_all()
    with line.workspace() as directory:
        wire = line.Line(directory, family)
        try:
            running = way(wire, haproxy, hapilot, **given)
            wire.until_served()
            marks, rows = [], []
            for number in range(times):
                if number > 0:
                    running.again()
                begun = number * seconds
                load = wire.load(RATE, seconds)
                started = int(load.stdout.readline()) / 1e9
                marks += [begun + mark - started for mark in disturb(running, started, seconds)]
                rows += [(begun + int(due) / 1e6, *rest) for due, *rest in results(name, load, seconds)]
            found = Trial(name, running, marks, rows, seconds * times)
            found.after = after(running) if after else None
        finally:
            wire.close()
    print(f"bench: {name}: {found.done} x, {found.lost} lost, p50 {found.p50:.1f}, p99.9 {found.p999:.1f}, "
          f"max {found.max:.1f} ms; sent late by at most {found.late[-1]:.1f} ms", flush=True)
    return found


def results(name, load, seconds):
    rows = [row.split() for row in load.stdout.read().decode().splitlines()]
    if load.wait() != 0 or len(rows) != RATE * seconds:
        raise SystemExit(f"bench: {name}: the load failed")
    return rows


def disturb(way, started, seconds):
    """On time, or as soon after as the last one is over."""
    marks, due = [], started + EDGE
    while way.every and due <= started + seconds - EDGE:
        time.sleep(max(0, due - time.monotonic()))
        marks.append(time.monotonic())
        way.disturb()
        while due <= time.monotonic():
            due += way.every
    return marks
