"""What logging through /dev/log costs HAProxy's clients, also while nobody keeps up with reading what hapilot prints.

As a program it is the load, inside the balancer's network: requests at a steady pace over connections that stay.
"""

import json
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import threading
import time

RATE = 5000
SECONDS = 10
TURNS = 3
CONNECTIONS = 4
BATCH = 5
PORT = 8080
# what a log driver in trouble takes in a second, where some 1,000 KiB come
SLOW = 64 * 1024
REQUEST = b"GET /log HTTP/1.1\r\nHost: bench\r\n\r\n"
ALLOWED = 0.99


def load():
    connections = [socket.create_connection(("127.0.0.1", PORT)) for _ in range(CONNECTIONS)]
    size = answer_size(connections[0])
    took, due_of, missing = [], {c: [] for c in connections}, {c: 0 for c in connections}
    begin, sent, answered = time.monotonic(), 0, 0
    end = begin + SECONDS
    while time.monotonic() < end or any(due_of.values()):
        due = begin + sent * BATCH / RATE
        now = time.monotonic()
        if sent < RATE * SECONDS // BATCH and now >= due:
            connection = connections[sent % CONNECTIONS]
            connection.sendall(REQUEST * BATCH)
            due_of[connection].append(due)
            sent += 1
            continue
        if now > end + 5:
            break
        for connection in select.select(connections, [], [], max(0, min(due - now, 0.01)))[0]:
            missing[connection] += len(connection.recv(1 << 20))
            while missing[connection] >= size * BATCH:
                missing[connection] -= size * BATCH
                answered += BATCH
                took.append(time.monotonic() - due_of[connection].pop(0))
    cuts = statistics.quantiles(took, n=100)
    print(json.dumps({"asked": sent * BATCH, "answered": answered, "p50": cuts[49], "p99": cuts[98]}))


def answer_size(connection):
    """All answers are the same."""
    connection.sendall(REQUEST)
    answer = b""
    while not answer.endswith(b"served\n"):
        answer += connection.recv(4096)
    return len(answer)


class Reader(threading.Thread):
    """Reads what hapilot prints, at a pace or as fast as it comes."""

    def __init__(self, pipe, pace):
        super().__init__()
        self.pipe, self.pace, self.pieces = pipe, pace, []
        self.start()

    def run(self):
        while piece := os.read(self.pipe.fileno(), 4096):
            self.pieces.append(piece)
            if self.pace:
                time.sleep(len(piece) / self.pace)

    def text(self):
        return b"".join(self.pieces).decode(errors="replace")


def measure(*subject):
    # the load itself needs nothing but Python
    from pathlib import Path
    from promise import Promise
    from report import Report, table

    kinds = {"no log": (False, 0), "/dev/log": (True, 0), f"/dev/log, read at {SLOW // 1024} KiB/s": (True, SLOW)}
    found = {name: [] for name in kinds}
    for _ in range(TURNS):
        for name, (logs, pace) in kinds.items():
            found[name].append(trial(*map(Path, subject), logs, pace))
            print(f"bench: logs: {name}: {found[name][-1]}", flush=True)
    median = {name: {key: statistics.median(trial[key] for trial in trials) for key in trials[0]}
              for name, trials in found.items()}
    base = median["no log"]
    rows = [[name, f"{m['answered'] / SECONDS:,.0f}", f"{m['answered'] / base['answered']:.3f}", f"{m['p50'] * 1000:.1f}",
             f"{m['p99'] * 1000:.1f}", *(f"{m[key]:,.0f}" if kinds[name][0] else "" for key in ("printed", "dropped", "unsent"))]
            for name, m in median.items()]
    head = ["", "answers/s", "ratio", "p50, ms", "p99, ms", "lines printed", "dropped by hapilot", "not sent by HAProxy"]
    # what hapilot says itself is dropped like the rest, and counted: so much it says where nothing is dropped
    own = median["/dev/log"]["own"]
    promises = []
    for name in list(kinds)[1:]:
        worst = min(trial["answered"] for trial in found[name]) / base["answered"]
        promises.append(Promise(f"{name}: HAProxy's throughput is unaffected", worst >= ALLOWED, f"ratio {worst:.3f} at worst"))
        lost = sum(trial["lines"] - trial["printed"] - trial["unsent"] - trial["dropped"] + own - trial["own"]
                   for trial in found[name])
        lines = sum(trial["lines"] for trial in found[name])
        promises.append(Promise(f"{name}: every line is printed or counted", lost == 0, f"{lost:.0f} of {lines:,.0f} are not"))
    text = "\n".join([f"{RATE:,} requests a second for {SECONDS} s, a line each, in batches of {BATCH} on {CONNECTIONS} "
                      f"connections; median of {TURNS} turns.", "", table(head, rows), "", *map(str, promises)])
    return Report(text, promises, {"trials": found})


def trial(haproxy, hapilot, logs, pace):
    import configuration
    import line

    line.remove_all()
    with line.workspace() as directory:
        wire = line.Line(directory)
        reader = None
        try:
            text = configuration.text()
            if logs:
                text = text.replace("global\n", "global\n    log /dev/log local0\n", 1)
                text = text.replace("defaults\n", "defaults\n    log global\n    option httplog\n", 1)
            (wire.directory / "haproxy.cfg").write_text(text)
            process = start(wire, haproxy, hapilot)
            reader = Reader(process.stderr, pace)
            served = wire.run("balancer", sys.executable, "-B", __file__, stdout=subprocess.PIPE)
            result = json.loads(served.communicate()[0])
            result["unsent"] = dropped_logs(process, hapilot)
            reader.pace = 0
            process.terminate()
            reader.join()
            # the request that found out how long an answer is
            result["lines"] = result["asked"] + 1 if logs else 0
            result["printed"] = len(re.findall(r'"GET /log HTTP/1.1"', reader.text()))
            counts = re.findall(r"^hapilot: (\d+) log lines dropped", reader.text(), re.M)
            result["dropped"] = sum(map(int, counts))
            result["own"] = len(reader.text().splitlines()) - result["printed"] - len(counts)
            return result
        finally:
            wire.close()
            if reader:
                reader.join()


def start(wire, haproxy, hapilot):
    """With a /dev of its own, as a container has."""
    dev = "mkdir /run/dev && cp -af /dev/null /dev/zero /dev/random /dev/urandom /run/dev && mount --bind /run/dev /dev"
    settings = [f"HAPROXY_CONFIG={wire.directory / 'haproxy.cfg'}", f"PATH={haproxy.parent}:{os.environ['PATH']}",
                "HAPROXY_TRANSPARENT=off"]
    process = wire.run("balancer", "unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs /run && {dev} && exec "$@"', "sh",
                       "env", *settings, str(hapilot), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while command(process, hapilot, "health").returncode != 0:
        if time.monotonic() > deadline:
            raise SystemExit("bench: logs: hapilot does not serve")
        time.sleep(0.05)
    return process


def command(process, hapilot, *words):
    return subprocess.run(("nsenter", f"--mount=/proc/{process.pid}/ns/mnt", str(hapilot), *words),
                          capture_output=True, text=True, check=False)


def dropped_logs(process, hapilot):
    return int(re.search(r"^DroppedLogs: (\d+)", command(process, hapilot, "runtime", "show", "info").stdout, re.M)[1])


if __name__ == "__main__":
    load()
