"""What new connections see of reloads: an open-loop load over a round trip, each way to reload by turns."""

import os
import resource
import time
from pathlib import Path

import line
import picture
from report import DOCUMENT, table
from ways import WAYS

PICTURE = DOCUMENT.with_name("reload.svg")
RATE = 1000
ROUND_TRIP_MS = 2 * line.DELAY_MS
ALLOWED = 1.05
# a retransmitted SYN comes after one second
RETRANSMISSION_MS = 1000
# what guard hold may cost besides a round trip
WINDOW_MS = 20
# the first and the last disturbance, so that what they do is still seen
EDGE = 0.5


class Run:
    """What one way did to a load. `connections`: (due in s, took in ms, outcome)."""

    def __init__(self, name, way, started, marks, lines):
        rows = [line.split() for line in lines]
        self.name, self.what = name, way.what
        self.marks = [mark - started for mark in marks]
        self.done, self.windows = way.done(), way.windows()
        self.connections = [(int(due) / 1e6, int(took) / 1e3, outcome) for due, _, took, outcome in rows]
        self.late = sorted(int(late) / 1e3 for _, late, _, _ in rows)
        self.took = sorted(took for _, took, outcome in self.connections if outcome == "ok")
        self.refused, self.reset, self.timeout = map(self.count, ("refused", "reset", "timeout"))
        self.lost = len(rows) - self.count("ok")
        self.p50, self.p99, self.p999 = (at(self.took, share) for share in (0.5, 0.99, 0.999))
        self.max = self.took[-1]

    def count(self, outcome):
        return sum(outcome == which for _, _, which in self.connections)


def at(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(haproxy, hapilot):
    seconds = int(os.environ.get("BENCH_SECONDS", "20"))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    runs = []
    for name, way in WAYS.items():
        run = one(name, way, Path(haproxy), Path(hapilot), seconds)
        print(f"bench: {name}: {run.done} x, {run.lost} lost, p50 {run.p50:.1f}, p99.9 {run.p999:.1f}, max {run.max:.1f} ms; "
              f"sent late by at most {run.late[-1]:.1f} ms", flush=True)
        runs.append(run)
    title = f"{RATE:,} new connections per second over a round trip of {ROUND_TRIP_MS} ms"
    about = ("Each dot: when a connection was due, and how long until it had its answer. "
             "Upright: reload or kill -9. Red: refused, reset or timed out.")
    PICTURE.write_text(picture.draw(title, about, runs, seconds))
    return report(runs, seconds)


def one(name, way, haproxy, hapilot, seconds):
    line.remove_all()
    with line.workspace() as directory:
        wire = line.Line(directory)
        try:
            running = way(wire, haproxy, hapilot)
            wire.until_served()
            load = wire.load(RATE, seconds)
            started = int(load.stdout.readline()) / 1e9
            marks = disturb(running, started, seconds)
            lines = load.stdout.read().decode().splitlines()
            if load.wait() != 0 or len(lines) != RATE * seconds:
                raise SystemExit(f"bench: {name}: the load failed")
            return Run(name, running, started, marks, lines)
        finally:
            wire.close()


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


def report(runs, seconds):
    by_name = {run.name: run for run in runs}
    quiet = [run for name, run in by_name.items() if name.startswith("no reload")]
    base = at(sorted(took for run in quiet for took in run.took), 0.999)
    rows = [[run.name, f"{run.done} × {run.what}" if run.marks else "", run.count("ok"), run.refused, run.reset, run.timeout,
             *(f"{value:.1f}" for value in (run.p50, run.p99, run.p999, run.max)), f"{run.p999 / base:.2f}"]
            for run in runs]
    head = ["", "done", "ok", "refused", "reset", "timed out", "p50, ms", "p99, ms", "p99.9, ms", "max, ms",
            "p99.9, ratio"]
    late = sorted(late for run in runs for late in run.late)
    return "\n".join([
        f"{RATE:,} new connections per second, {seconds} s for each, round trip {ROUND_TRIP_MS} ms; the ratio is to both "
        f"runs of no reload together ({base:.1f} ms).",
        "", table(head, rows), "",
        *(f"- {line}" for line in promises(by_name, base)),
        f"- the bench itself: a connection was sent {at(late, 0.5):.2f} ms after it was due (median), 99.9 % within "
        f"{at(late, 0.999):.1f} ms, at most {late[-1]:.1f} ms", "",
        f"![Latency over time, for each way]({PICTURE.name})",
    ])


def promises(runs, base):
    master = runs["master-worker, USR2"]
    for name, run in runs.items():
        if name in ("hapilot", "hapilot, guard hold", "hapilot, guard drop"):
            yield judged(f"{name}: no connection is lost", run.lost == 0,
                         f"{run.refused} refused, {run.reset} reset, {run.timeout} timed out")
    run = runs["hapilot"]
    yield judged(f"hapilot: p99.9 is at most {ALLOWED} × no reload", run.p999 <= ALLOWED * base, f"{run.p999 / base:.3f}")
    yield judged("hapilot: p99.9 is not above master-worker's", run.p999 <= master.p999,
                 f"{run.p999:.1f} ms, master-worker {master.p999:.1f} ms")
    run = runs["hapilot, guard hold"]
    if run.windows:
        yield judged(f"hapilot, guard hold: its window is under {WINDOW_MS} ms and a round trip",
                     run.windows[-1] < WINDOW_MS + ROUND_TRIP_MS,
                     f"{at(run.windows, 0.5):.1f} ms (median), {run.windows[-1]:.1f} ms at most, by hapilot's receipts")
    run = runs["hapilot, guard drop"]
    most = base + RETRANSMISSION_MS
    yield judged("hapilot, guard drop: nobody waits for more than one retransmission", run.max <= ALLOWED * most,
                 f"{run.max:.0f} ms at most; a SYN that is sent again after a second may meet the next reload")
    run = runs["hapilot, HAProxy killed"]
    yield judged("hapilot, HAProxy killed: nobody is refused and nobody times out", run.refused + run.timeout == 0,
                 f"{run.refused} refused, {run.timeout} timed out; {run.reset} reset, sessions that died with their HAProxy")


def judged(promise, is_met, found):
    return f"{promise}: {'met' if is_met else '**missed**'} ({found})"
