"""A thousand reloads in a row, under load: what is there afterwards that was not there before?"""

import os
import re
import subprocess
import time
from pathlib import Path

import line
from line import PORT, inside
from promise import Promise
from report import Report, table
from trial import RATE, share_descriptors
from ways import Hapilot

RELOADS = int(os.environ.get("BENCH_RELOADS", "1000"))
# before anything is compared: what is allocated once is there
WARM = 5
ROUND = 20
MORE_MEMORY_KIB = 1024


def measure(*subject):
    share_descriptors()
    line.remove_all()
    with line.workspace() as directory:
        wire = line.Line(directory)
        try:
            running = Hapilot(wire, *map(Path, subject))
            wire.until_served()
            for _ in range(WARM):
                reload(running)
            before = look(running)
            outcomes, most, took = storm(wire, running)
            after = look(running)
        finally:
            wire.close()
    return report(before, after, outcomes, most, took)


def storm(wire, running):
    outcomes, most, done, begun = {}, 0, 0, time.monotonic()
    while done < RELOADS:
        load = wire.load(RATE, ROUND)
        end = int(load.stdout.readline()) / 1e9 + ROUND
        while done < RELOADS and time.monotonic() < end:
            reload(running)
            done += 1
            if done % 50 == 0:
                most = max(most, len(running.status()["generations"]))
        for row in load.stdout.read().decode().splitlines():
            outcome = row.split()[3]
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if load.wait() != 0:
            raise SystemExit("bench: thousand: the load failed")
        print(f"bench: thousand: {done} reloads, {outcomes}, at most {most} generations seen", flush=True)
    return outcomes, most, time.monotonic() - begun


def reload(running):
    with (running.line.directory / "asked.log").open("ab") as log:
        subprocess.run(running.command("reload"), check=True, stdout=log)


def look(running):
    """When all old generations are gone."""
    status = running.until_it_is_quiet()
    process = Path(f"/proc/{running.process.pid}")
    memory = dict(re.findall(r"(\w+):\s+(\d+)", (process / "status").read_text()))
    names = [os.readlink(entry) for entry in (process / "fd").iterdir()]
    kinds = sorted(re.sub(r"\[\d+\]|/[^ ]*generation-\d+[^ ]*", "", name) for name in names)
    pids = call("ip", "netns", "pids", line.NAMES["balancer"]).split()
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]
    run = process / "root" / "run" / "hapilot"
    return {
        "descriptors": kinds,
        "listening sockets": sorted(call(*inside("balancer", "ss", "-Htuln")).split("\n")),
        "unix sockets": sorted(row.split()[0] for row in call(*inside("balancer", "ss", "-Hxa")).splitlines()),
        "connections": call(*inside("balancer", "ss", "-Htn", "state", "connected", "exclude", "time-wait")).splitlines(),
        "rules and routes": [stable(call(*inside("balancer", *words))) for words in (
            ("iptables-save",), ("ip6tables-save",), ("ip", "rule"), ("ip", "-6", "rule"),
            ("ip", "route", "show", "table", "all"), ("ip", "-6", "route", "show", "table", "all"))],
        "generations": len(status["generations"]),
        "processes": len(pids),
        "zombies": states.count("Z"),
        "files in /run/hapilot": sorted(re.sub(r"\d+", "N", path.name) for path in run.iterdir()),
        "threads": int(memory["Threads"]),
        "memory, KiB": int(memory["VmRSS"]),
    }


def call(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def stable(text):
    """Without counters, comments of the program, and the link's own address, which the kernel adds when it likes."""
    rows = (row for row in text.splitlines() if not row.startswith("#") and " fe80::" not in row)
    return [re.sub(r"\[\d+:\d+\]", "", row) for row in rows]


def report(before, after, outcomes, most, took):
    lost = sum(count for outcome, count in outcomes.items() if outcome != "ok")
    kept = [Promise(f"{RELOADS:,} reloads in a row: no connection is lost", lost == 0,
                    f"{sum(outcomes.values()):,} connections, {lost} lost; {took / RELOADS * 1000:.0f} ms for each reload")]
    rows = []
    for what, there in after.items():
        was, now = (len(value) if isinstance(value, list) else value for value in (before[what], there))
        if what == "rules and routes":
            was, now = (sum(map(len, value)) for value in (before[what], there))
        rows.append([what, was, now])
        if what == "memory, KiB":
            kept.append(Promise(f"{what}: at most {MORE_MEMORY_KIB} more", now - was <= MORE_MEMORY_KIB, f"{now - was:+}"))
        else:
            kept.append(Promise(f"{what}: as before", there == before[what], f"{was}, then {now}"))
    text = "\n".join([f"{RELOADS:,} × `hapilot reload`, one after the other, under {RATE:,} new connections per second; "
                      f"{WARM} before anything is compared. At most {most} generations were seen at once.", "",
                      table(["", "before", "after"], rows), "", *map(str, kept)])
    return Report(text, kept, {"before": before, "after": after, "outcomes": outcomes, "seconds": took,
                               "most_generations": most})
