"""Results as a table, on the terminal and between this part's markers in docs/performance.md."""

import json
import os
import platform
import statistics
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from world import docker

PROJECT = Path(__file__).resolve().parent.parent
DOCUMENT = PROJECT / "docs" / "performance.md"
# for machines: one file for each part
RESULTS = PROJECT / "target" / "bench"


@dataclass
class Report:
    """For people, and for machines."""
    text: str
    promises: list = field(default_factory=list)
    values: dict = field(default_factory=dict)


def is_dry():
    """Nothing is written into docs/."""
    return os.environ.get("BENCH_DRY") == "1"


def milliseconds(seconds):
    return f"{seconds * 1000:.1f}"


def spread(seconds):
    """Median, with the middle half in brackets, in milliseconds."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return f"{milliseconds(middle)} ({milliseconds(low)} to {milliseconds(high)})"


def verdict(value, aim, unit):
    return f"{'met' if value <= aim else '**missed**'}: {value:.1f} {unit}, aim {aim:g} {unit}"


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine():
    """What the numbers hold for."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    return f"{time.strftime('%Y-%m-%d', time.gmtime())}, {model}, {os.cpu_count()} CPUs, Linux {platform.release()}"


def image(name):
    haproxy, iptables = (
        docker("run", "--rm", "--no-healthcheck", "--entrypoint", program, name, option).split("\n")[0]
        for program, option in (("haproxy", "-v"), ("iptables", "-V")))
    engine = docker("version", "--format", "{{.Server.Version}}")
    return f"Docker {engine}, HAProxy {haproxy.split()[2]}, {iptables}"


def programs(haproxy, _hapilot):
    haproxy, iptables = (subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")[0]
                         for words in ((haproxy, "-v"), ("iptables", "-V")))
    return f"HAProxy {haproxy.split()[2]}, {iptables}"


def load():
    """What else the machine had to do."""
    return f"Load while measuring: {os.getloadavg()[0]:.1f}."


def write(part, subject, report):
    about = f"{machine()}, {subject}. {load()}"
    text = f"{about}\n\n{report.text}"
    print(f"\n== {part}\n{text}\n", flush=True)
    if report.values:
        RESULTS.mkdir(parents=True, exist_ok=True)
        promises = [promise.values() for promise in report.promises]
        values = {"part": part, "about": about, "promises": promises, **report.values}
        (RESULTS / f"{part}.json").write_text(json.dumps(values, indent=1))
    if is_dry():
        return
    begin, end = (f"<!-- scripts/bench {part}: {edge} -->" for edge in ("begin", "end"))
    document = DOCUMENT.read_text()
    before, begun, rest = document.partition(begin)
    _, ended, after = rest.partition(end)
    if not begun or not ended:
        raise SystemExit(f"bench: {DOCUMENT} has no place for the results: {begin} ... {end}")
    DOCUMENT.write_text(f"{before}{begin}\n{text}\n{end}{after}")
