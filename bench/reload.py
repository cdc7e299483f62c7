"""What new connections see of reloads and crashes: an open-loop load over a round trip, each way by turns."""

import picture
import promise
from promise import Quiet
from report import DOCUMENT, Report, is_dry, table
from starting import Starting
from trial import RATE, ROUND_TRIP_MS, at, seconds, share_descriptors, trial
from ways import Drop, Hapilot, Hold, Killed, KilledAsleep, MasterWorker, Migrate, PlainSf, SynDrop, Undisturbed

PICTURE = DOCUMENT.with_name("reload.svg")
MANY_BACKENDS = 5000
KILLS = 20
# of the time that is given to what must be as quick as no reload: what is judged by its slowest needs less
LESS = 1 / 3


def compare(*subject):
    """All ways beside one another, and the picture."""
    ways = {"no reload": Undisturbed, "plain -sf": PlainSf, "master-worker, USR2": MasterWorker,
            "SYN drop, fixed sleeps": SynDrop, "hapilot": Hapilot, "hapilot, guard migrate": Migrate,
            "hapilot, guard hold": Hold, "hapilot, guard drop": Drop, "hapilot, HAProxy killed": Killed,
            "no reload, once more": Undisturbed}
    whole = ("no reload", "master-worker, USR2", "hapilot", "no reload, once more")
    share_descriptors()
    trials = {name: trial(name, way, subject, seconds(1 if name in whole else LESS)) for name, way in ways.items()}
    title = f"{RATE:,} new connections per second over a round trip of {ROUND_TRIP_MS} ms"
    about = ("Each dot: when a connection was due, and how long until it had its answer. "
             "Upright: reload or kill -9. Red: refused, reset or timed out.")
    drawn = picture.draw(title, about, list(trials.values()), seconds(LESS))
    if not is_dry():
        PICTURE.write_text(drawn)
    quiet = Quiet([trials["no reload"], trials["no reload, once more"]])
    kept = [*promise.nobody_notices(trials["hapilot"], quiet, trials["master-worker, USR2"]),
            *promise.is_guarded(trials["hapilot, guard migrate"], "migrate", quiet),
            *promise.is_guarded(trials["hapilot, guard hold"], "hold", quiet),
            *promise.is_guarded(trials["hapilot, guard drop"], "drop", quiet)]
    return reported(trials.values(), quiet, kept, f"![Latency over time, for each way]({PICTURE.name})")


def often(*subject):
    """Five reloads a second."""
    return beside_master_worker(subject, seconds(), every=0.2)


def backends(*subject):
    """A configuration that takes its time."""
    return beside_master_worker(subject, seconds(), backends=MANY_BACKENDS)


def ipv6(*subject):
    """The same over IPv6, and with each guard."""
    guards = {"hapilot, guard migrate": Migrate, "hapilot, guard hold": Hold, "hapilot, guard drop": Drop}
    return beside_master_worker(subject, seconds(LESS), guards, family=6)


def beside_master_worker(subject, time, guards=None, **given):
    share_descriptors()
    ways = {"no reload": Undisturbed, "master-worker, USR2": MasterWorker, "hapilot": Hapilot, **(guards or {}),
            "no reload, once more": Undisturbed}
    trials = {name: trial(name, way, subject, time, **given) for name, way in ways.items()}
    quiet = Quiet([trials["no reload"], trials["no reload, once more"]])
    kept = [*promise.nobody_notices(trials["hapilot"], quiet, trials["master-worker, USR2"])]
    for name in guards or {}:
        kept += promise.is_guarded(trials[name], name.split()[-1], quiet)
    return reported(trials.values(), quiet, kept)


def killed(*subject):
    """HAProxy dies twenty times, beside how long it takes to start under the same load."""
    share_descriptors()
    alone = trial("no reload, HAProxy starts aside", Starting, subject, seconds(LESS), after=lambda way: way.took())
    time = round(KILLS * Killed.every) + 1
    run = trial("hapilot, HAProxy killed", Killed, subject, time, after=lambda way: way.ready_ms())
    asleep = trial("hapilot, HAProxy looked into, then killed", KilledAsleep, subject, time, after=lambda way: way.inside)
    quiet, start, ready = Quiet([alone]), alone.after, run.after
    words = (f"HAProxy started {len(start)} times aside, on another port: {at(start, 0.5):.1f} ms (median), "
             f"{start[-1]:.1f} ms at most. As hapilot's log has it, each of its own was ready after "
             f"{at(ready, 0.5)} ms (median), {ready[-1]} ms at most.")
    kept = [*promise.waits_for_a_start(run, quiet, at(start, 0.5)), *promise.dies_alone(asleep, asleep.after)]
    return reported([alone, run, asleep], quiet, kept, words)


def reported(trials, quiet, kept, more=""):
    trials = list(trials)
    rows = [[run.name, run.seconds, f"{run.done} × {run.what}" if run.marks else "", run.ok, run.refused, run.reset,
             run.timeout, *(f"{value:.1f}" for value in (run.p50, run.p99, run.p999, run.max)),
             f"{run.p999 / quiet.p999:.2f}"] for run in trials]
    head = ["", "s", "done", "ok", "refused", "reset", "timed out", "p50, ms", "p99, ms", "p99.9, ms", "max, ms",
            "p99.9, ratio"]
    late = sorted(late for run in trials for late in run.late)
    text = "\n".join([
        f"{RATE:,} new connections per second, round trip {ROUND_TRIP_MS} ms; the ratio is to no reload ({quiet.p999:.1f} ms).",
        "", table(head, rows), "", *map(str, kept), "",
        f"The bench itself: a connection was sent {at(late, 0.5):.2f} ms after it was due (median), 99.9 % within "
        f"{at(late, 0.999):.1f} ms, at most {late[-1]:.1f} ms.", *(["", more] if more else []),
    ])
    return Report(text, kept, {"trials": [run.values() for run in trials]})
