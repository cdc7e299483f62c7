"""What busy keep-alive clients see of reloads: requests that meet a connection which was closed meanwhile."""

import time
from pathlib import Path

import line
from promise import Promise
from report import Report, table
from trial import EDGE, ROUND_TRIP_MS, disturb, share_descriptors
from ways import Hapilot, MasterWorker, Undisturbed

CLIENTS = 100
SECONDS = 10
LEAST_RELOADS = 8
OPTION = "option idle-close-on-response"
WAYS = {"no reload": (Undisturbed, False), "master-worker, USR2": (MasterWorker, False), "hapilot": (Hapilot, False),
        f"master-worker, USR2, `{OPTION}`": (MasterWorker, True), f"hapilot, `{OPTION}`": (Hapilot, True)}


def measure(*subject):
    share_descriptors()
    rows, found = [], {}
    for name, (way, tells_idle) in WAYS.items():
        done, answered, closed, refused = found[name] = turn(way, tells_idle, *map(Path, subject))
        print(f"bench: keepalive: {name}: {done} reloads, {answered} answered, {closed} closed, {refused} refused", flush=True)
        rows.append([name, done or "", answered, closed, refused])
    done, answered, closed, refused = found[f"hapilot, `{OPTION}`"]
    kept = [Promise(f"hapilot with `{OPTION}`: no request of a busy keep-alive client meets a closed connection",
                    closed + refused == 0 and done >= LEAST_RELOADS and answered > 0,
                    f"{closed} closed, {refused} refused of {answered + closed}, {done} reloads")]
    text = "\n".join([
        f"{CLIENTS} clients ask again as soon as they have an answer, over the same connection; round trip {ROUND_TRIP_MS} ms, "
        f"a reload each second for {SECONDS} s.", "",
        table(["", "reloads", "answered", "met a closed connection", "refused"], rows), "", *map(str, kept)])
    return Report(text, kept, {"ways": {name: list(values) for name, values in found.items()}})


def turn(way, tells_idle, haproxy, hapilot):
    """Reloads, answered requests, those that met a closed connection, refused connections."""
    line.remove_all()
    with line.workspace() as directory:
        wire = line.Line(directory)
        try:
            running = way(wire, haproxy, hapilot, tells_idle=tells_idle)
            wire.until_served()
            clients = wire.keep(CLIENTS, SECONDS)
            disturb(running, time.monotonic(), SECONDS - EDGE)
            counts = [int(word) for word in clients.stdout.read().split()]
            if clients.wait() != 0 or len(counts) != 3:
                raise SystemExit(f"bench: keepalive: {way.__name__}: the clients failed")
            return running.done(), *counts
        finally:
            wire.close()
