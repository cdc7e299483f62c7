"""From the end of the last session to the container's exit, with transparent proxying taken down in between."""

import statistics
import time

from report import milliseconds, spread, table, verdict
from world import HAPILOT, HAPROXY_ALONE, JSON, Ends, World, children, docker, first_byte, until

TURNS = 15
AIM = 100


def one(world, program):
    """(session's end to container's exit, HAProxy's exit to the container's, of it the host by hapilot's log in ms)."""
    container = world.run("stop", program, environment=JSON)
    first_byte(world.address)
    pid = container.pid()
    supervised = program is HAPILOT
    processes = {"haproxy": children(pid)[0]} if supervised else {}
    ends = Ends(container=pid, **processes)
    session = open_session(container)
    docker("kill", "--signal", "TERM" if supervised else "USR1", container.name)
    until("the listeners to close", lambda: refuses(container))
    session.sendall(b"ET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    while session.recv(4096):
        pass
    session_ended = time.time()
    session.close()
    ended = ends.wait()
    said = [line["ms"] for _, what, line in container.log() if what == "the host is as it was"]
    container.remove()
    exited = ended["container"]
    return exited - session_ended, exited - ended.get("haproxy", exited), said


def open_session(container):
    """One that HAProxy has taken for sure: it has answered on it."""
    session = container.connect()
    session.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    answer = b""
    while not answer.endswith(b"served\n"):
        answer += session.recv(4096)
    # begun, so that the drain waits for it
    session.sendall(b"G")
    return session


def refuses(container):
    client = container.connect()
    if client is None:
        return True
    client.close()
    return None


def measure(image):
    nft, legacy = World(image, "nft"), World(image, "legacy")
    kinds = {
        "HAProxy alone": (nft, HAPROXY_ALONE),
        "hapilot, iptables-nft": (nft, HAPILOT),
        "hapilot, iptables-legacy": (legacy, HAPILOT),
    }
    results = {kind: [] for kind in kinds}
    for _ in range(TURNS):
        for kind, how in kinds.items():
            results[kind].append(one(*how))
    return report(results)


def report(results):
    alone = statistics.median(r[0] for r in results["HAProxy alone"])
    rows, verdicts = [], []
    for kind, rs in results.items():
        from_session = [r[0] for r in rs]
        row = [kind, spread(from_session), f"{statistics.median(from_session) / alone:.1f}"]
        if kind == "HAProxy alone":
            rows.append([*row, "", "", ""])
            continue
        torn_down = [r[1] for r in rs]
        said = statistics.median(ms for r in rs for ms in r[2])
        rows.append([*row, spread(torn_down), milliseconds(max(torn_down)), f"{said:g}"])
        verdicts.append(f"- {kind}, from HAProxy's exit to the container's: "
                        f"{verdict(statistics.median(torn_down) * 1000, AIM, 'ms')}")
    head = ["", "last session's end to exit, ms", "ratio", "HAProxy's exit to hapilot's, ms", "longest, ms",
            "of it the host, by the log, ms"]
    verdicts = "\n".join(verdicts)
    return f"Median (middle half) of {TURNS} runs each, by turns.\n\n{table(head, rows)}\n\n{verdicts}"
