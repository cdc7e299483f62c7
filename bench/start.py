"""From the container's start to the first byte served: HAProxy alone and hapilot by turns."""

import statistics
import threading

from report import milliseconds, spread, table, verdict
from world import HAPILOT, HAPROXY_ALONE, JSON, World, docker, first_byte

TURNS = 15
AIM = 50
# what ends each phase of hapilot's start: its log lines, and then the client's moment
PHASES = {
    "hapilot": "settings and preflight",
    "transparent proxying is set up": "sweep and host set-up",
    "started HAProxy": "launch",
    "first byte": "HAProxy's own start",
}


def one(world, program, environment):
    """(`docker run` to first byte, exec to first byte, the phases of the latter)."""
    seen = []
    watch = threading.Thread(target=lambda: seen.append(first_byte(world.address)))
    watch.start()
    container = world.run("start", program, environment=environment)
    watch.join()
    if not seen:
        raise SystemExit(f"bench: {container.name} did not serve; it says:\n{container.said()}")
    begun, at = container.started_at(), seen[0]
    marks = [(when, what) for when, what, _ in container.log() if what in PHASES]
    phases, before = {}, begun
    for when, what in [*marks, (at, "first byte")]:
        phases[what], before = when - before, when
    if program is HAPILOT:
        # the next one shall find the network as this one did; HAProxy alone left nothing in it
        docker("stop", "--time=10", container.name)
    container.remove()
    return at - container.asked_at, at - begun, phases


def measure(image):
    nft, legacy = World(image, "nft"), World(image, "legacy")
    kinds = {
        "HAProxy alone": (nft, HAPROXY_ALONE, ()),
        "hapilot, iptables-nft": (nft, HAPILOT, JSON),
        "hapilot, iptables-legacy": (legacy, HAPILOT, JSON),
    }
    results = {kind: [] for kind in kinds}
    for turn in range(TURNS + 1):
        for kind, how in kinds.items():
            result = one(*how)
            # the first of each warms the caches up
            if turn > 0:
                results[kind].append(result)
    return report(results)


def report(results):
    median = {kind: statistics.median(r[1] for r in rs) for kind, rs in results.items()}
    alone = median["HAProxy alone"]
    kinds = [kind for kind in results if kind != "HAProxy alone"]
    rows = []
    for kind, rs in results.items():
        more = f"+{milliseconds(median[kind] - alone)}" if kind in kinds else ""
        rows.append([kind, spread([r[1] for r in rs]), more, f"{median[kind] / alone:.2f}", spread([r[0] for r in rs])])
    whole = table(["", "exec to first byte, ms", "more, ms", "ratio", "`docker run` to first byte, ms"], rows)
    rows = [[phase, *(spread([r[2][mark] for r in results[kind]]) for kind in kinds)] for mark, phase in PHASES.items()]
    phases = table(["ms", *kinds], rows)
    verdicts = "\n".join(f"- {kind}, more than HAProxy alone: {verdict((median[kind] - alone) * 1000, AIM, 'ms')}"
                         for kind in kinds)
    return f"Median (middle half) of {TURNS} runs each, by turns.\n\n{whole}\n\n{verdicts}\n\nWhere the time goes:\n\n{phases}"
