"""What hapilot promises, and whether what was measured keeps it."""

from dataclasses import asdict, dataclass

from trial import ROUND_TRIP_MS, at

ALLOWED = 1.05
# a SYN is sent again after one second
RETRANSMISSION_MS = 1000
# what guard hold may cost besides a round trip
WINDOW_MS = 20


@dataclass
class Promise:
    what: str
    is_kept: bool
    found: str

    def __str__(self):
        return f"- {'PASS' if self.is_kept else '**MISS**'} {self.what} ({self.found})"

    def values(self):
        return asdict(self)


class Quiet:
    """The runs without a reload, together."""

    def __init__(self, trials):
        self.took = sorted(took for trial in trials for took in trial.took)
        self.p50, self.p999, self.max = at(self.took, 0.5), at(self.took, 0.999), self.took[-1]


def nobody_is_lost(trial):
    return Promise(f"{trial.name}: no connection is lost", trial.lost == 0 and trial.done > 0,
                   f"{trial.refused} refused, {trial.reset} reset, {trial.timeout} timed out of {trial.ok + trial.lost}, "
                   f"{trial.done} × {trial.what}")


def nobody_notices(trial, quiet, master):
    """As quick as without a reload, and as HAProxy's own way."""
    yield nobody_is_lost(trial)
    yield Promise(f"{trial.name}: p99.9 is at most {ALLOWED} × no reload", trial.p999 <= ALLOWED * quiet.p999,
                  f"{trial.p999:.1f} ms, no reload {quiet.p999:.1f} ms: {trial.p999 / quiet.p999:.3f}")
    yield Promise(f"{trial.name}: p99.9 is not above master-worker's", trial.p999 <= master.p999,
                  f"{trial.p999:.1f} ms, master-worker {master.p999:.1f} ms")


def is_guarded(trial, kind, quiet):
    """Each time, by that kind, and nobody waits longer than it may make them."""
    yield nobody_is_lost(trial)
    yield Promise(f"{trial.name}: it is up on each {trial.what}",
                  trial.guards == {kind} and len(trial.windows) == trial.done,
                  f"{', '.join(sorted(trial.guards)) or 'none'}, {len(trial.windows)} times for {trial.done} {trial.what}s")
    if not trial.windows:
        return
    median, longest = at(trial.windows, 0.5), trial.windows[-1]
    if kind == "hold":
        yield Promise(f"{trial.name}: its window is under {WINDOW_MS} ms and a round trip",
                      longest < WINDOW_MS + ROUND_TRIP_MS,
                      f"{median:.1f} ms (median), {longest:.1f} ms at most, by hapilot's receipts")
        yield Promise(f"{trial.name}: nobody waits longer than its window", trial.max <= longest + ALLOWED * quiet.max,
                      f"{trial.max:.1f} ms at most, without a reload {quiet.max:.1f} ms at most")
    elif kind == "drop":
        yield Promise(f"{trial.name}: nobody waits for more than one retransmission",
                      trial.max <= ALLOWED * (RETRANSMISSION_MS + quiet.max),
                      f"{trial.max:.0f} ms at most; its window: {median:.1f} ms (median), {longest:.1f} ms at most")
    else:
        yield Promise(f"{trial.name}: p99.9 is at most {ALLOWED} × no reload", trial.p999 <= ALLOWED * quiet.p999,
                      f"{trial.p999:.1f} ms, no reload {quiet.p999:.1f} ms: {trial.p999 / quiet.p999:.3f}; its window: "
                      f"{median:.1f} ms (median), {longest:.1f} ms at most")


def waits_for_a_start(trial, quiet, start_ms):
    """When HAProxy is killed."""
    yield nobody_is_turned_away(trial)
    limit = start_ms + 100 + quiet.p50
    yield Promise(f"{trial.name}: the slowest waits no longer than HAProxy takes to start, 100 ms and its round trips",
                  trial.max <= limit,
                  f"{trial.max:.1f} ms, allowed {limit:.1f}: {start_ms:.1f} to start under this load, 100, {quiet.p50:.1f} "
                  "of round trips")


def dies_alone(trial, inside):
    """A HAProxy that is killed takes nobody with it but those inside."""
    yield nobody_is_turned_away(trial)
    strangers = [client for *_, outcome, client in trial.connections if outcome != "ok" and client not in inside]
    yield Promise(f"{trial.name}: only sessions inside the killed process are lost", not strangers,
                  f"{trial.reset} lost, {len(strangers)} of them not inside; inside were {len(inside)} in all")


def nobody_is_turned_away(trial):
    return Promise(f"{trial.name}: nobody is refused and nobody times out", trial.refused + trial.timeout == 0 < trial.done,
                   f"{trial.refused} refused, {trial.timeout} timed out of {trial.ok + trial.lost}, {trial.done} × {trial.what}")
