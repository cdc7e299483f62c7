"""From the wish to reload until the new generation serves: hapilot beside HAProxy's own master-worker, by turns."""

import statistics
import subprocess
import time
from pathlib import Path

import line
from promise import Promise
from reload import MANY_BACKENDS
from report import Report, spread, table
from ways import Hapilot, MasterWorker

TURNS = 2
RELOADS = 8
ALLOWED = 1.1
# between two, so that whoever goes is gone
PAUSE = 0.7


class Asked(Hapilot):
    """As an operator asks: the command's own start is in it."""

    def disturb(self):
        with (self.line.directory / "asked.log").open("ab") as log:
            subprocess.run(self.command("reload"), check=True, stdout=log)


WAYS = {"master-worker, USR2": MasterWorker, "hapilot, HUP": Hapilot, "hapilot, `hapilot reload`": Asked}


def measure(*subject):
    rows, kept, values = [], [], []
    for backends in (0, MANY_BACKENDS):
        times = {name: [] for name in WAYS}
        for _ in range(TURNS):
            for name, way in WAYS.items():
                times[name] += turn(way, *map(Path, subject), backends)
        what = f"{backends:,} more backends" if backends else "small configuration"
        medians = {name: statistics.median(first for first, _ in found) for name, found in times.items()}
        base = medians["master-worker, USR2"]
        for name, found in times.items():
            first, last = zip(*found)
            print(f"bench: serving: {what}: {name}: {spread(first)} ms, the old one until {spread(last)} ms", flush=True)
            rows.append([what, name, len(found), spread(first), spread(last), f"{medians[name] / base:.2f}"])
            values.append({"backends": backends, "name": name, "first": first, "last": last})
        asked = medians["hapilot, `hapilot reload`"]
        kept.append(Promise(f"{what}: from `hapilot reload` to serving at most {ALLOWED} × master-worker's",
                            asked <= ALLOWED * base, f"{asked * 1000:.1f} ms, {base * 1000:.1f} ms: {asked / base:.2f}"))
    head = ["", "", "reloads", "first answer of the new one, ms", "last answer of the old one, ms", "ratio"]
    text = "\n".join(["Median (middle half). The ratio is to master-worker.", "", table(head, rows), "", *map(str, kept)])
    return Report(text, kept, {"times": values})


def turn(way, haproxy, hapilot, backends):
    """For each reload: when the new one first answered, and the old one last, in s after the wish."""
    line.remove_all()
    with line.workspace() as directory:
        wire = line.Line(directory)
        try:
            running = way(wire, haproxy, hapilot, backends=backends, says_who=True)
            wire.until_served()
            watch = wire.watch()
            wishes = []
            for _ in range(RELOADS):
                time.sleep(PAUSE + 0.5 * bool(backends))
                wishes.append(time.monotonic_ns())
                running.disturb()
            time.sleep(PAUSE + 0.5 * bool(backends))
            watch.stdin.close()
            seen = [row.split() for row in watch.stdout.read().decode().splitlines()]
            if watch.wait() != 0:
                raise SystemExit("bench: the watch failed")
            return [between(seen, wish, until) for wish, until in zip(wishes, [*wishes[1:], time.monotonic_ns()])]
        finally:
            wire.close()


def between(seen, wish, until):
    """`seen`: who answered from when on, until the next one."""
    old = [who for at, who in seen if int(at) <= wish][-1]
    changes = [(int(at), who) for at, who in seen if wish < int(at) <= until]
    new = [at for at, who in changes if who != old]
    if not new:
        raise SystemExit("bench: a reload took too long, or never came")
    # the last change is from the old one to the new one
    return (new[0] - wish) / 1e9, (changes[-1][0] - wish) / 1e9
