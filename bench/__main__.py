"""scripts/bench calls this, after all set-up: container IMAGE PART..., or line HAPROXY HAPILOT PART..."""

import signal
import socket
import sys

import idle
import keepalive
import line
import logs
import reload
import report
import serving
import soak
import start
import stop
import takeover
import thousand
import world

PARTS = {
    "start": start.measure, "idle": idle.measure, "stop": stop.measure,
    "compare": reload.compare, "often": reload.often, "backends": reload.backends, "ipv6": reload.ipv6,
    "killed": reload.killed, "keepalive": keepalive.measure, "soak": soak.measure, "serving": serving.measure, "thousand": thousand.measure,
    "takeover": takeover.measure, "logs": logs.measure,
}
# where they are measured: what takes all of it away again, how many words name what is measured, what it is
PLACES = {"container": (world.remove_all, 1, report.image), "line": (line.remove_all, 2, report.programs)}


def only_one():
    """Two at once would measure each other. The kernel gives the name back when we end, however we do."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind("\0hapilot-bench")
    except OSError as error:
        raise SystemExit(f"bench: another one is running ({error})") from error
    return lock


def main():
    place, *words = sys.argv[1:]
    remove_all, count, describe = PLACES[place]
    subject, parts = words[:count], words[count:]
    _lock = only_one()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    promises = []
    for part in parts:
        print(f"bench: measuring {part}", file=sys.stderr, flush=True)
        remove_all()
        try:
            found = PARTS[part](*subject)
        finally:
            remove_all()
        if isinstance(found, str):
            found = report.Report(found)
        report.write(part, describe(*subject), found)
        promises += [f"{promise} [{part}]" for promise in found.promises]
    if promises:
        print("== in short", *promises, sep="\n", flush=True)


main()
