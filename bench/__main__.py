"""scripts/bench calls this: IMAGE PART..., after all set-up."""

import signal
import socket
import sys

import idle
import report
import start
import stop
import world

PARTS = {"start": start.measure, "idle": idle.measure, "stop": stop.measure}


def only_one():
    """Two at once would measure each other. The kernel gives the name back when we end, however we do."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind("\0hapilot-bench")
    except OSError as error:
        raise SystemExit(f"bench: another one is running ({error})") from error
    return lock


def main():
    image, *parts = sys.argv[1:]
    _lock = only_one()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for part in parts:
        print(f"bench: measuring {part}", file=sys.stderr, flush=True)
        world.remove_all()
        try:
            text = PARTS[part](image)
        finally:
            world.remove_all()
        report.write(part, image, text)


main()
