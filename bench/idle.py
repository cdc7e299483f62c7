"""What hapilot holds and does when nothing happens."""

import time
from pathlib import Path

from report import table, verdict
from world import CONFIGURATION, HAPILOT, HAPROXY_ALONE, World, children, docker, first_byte

RELOADS = 20
# for HAProxy and hapilot to come to rest
REST = 5
WINDOW = 60
MEMORY_AIM = 6
WAKE_UPS_AIM = 0
# with a server in the configuration hapilot looks once a minute whether there is something to save, and each look is a few
# questions to HAProxy with as many answers; before that more often, later each time
WITH_SERVER = CONFIGURATION.with_name("servers.cfg")
SETTLED = 130
LOOK_AIM = 12


def status(process, *names):
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return [int(lines[name].split()[0]) for name in names]


def memory(pid):
    """In MiB."""
    return [kib / 1024 for kib in status(pid, "VmRSS", "RssAnon", "VmHWM")]


def wake_ups(pid):
    """How often any of its threads went to sleep or lost the processor."""
    threads = [task.name for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(sum(status(f"{pid}/task/{thread}", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"))
               for thread in threads)


def processor_seconds(pid):
    """Of all that ever ran in the container of this process (cgroup 1 and 2)."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "cpuacct" in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/{controllers}{path}/cpuacct.usage").read_text()) / 1e9
        stat = Path(f"/sys/fs/cgroup{path}/cpu.stat")
        if controllers == "" and stat.exists():
            return int(stat.read_text().split()[1]) / 1e6
    return float("nan")


def measure(image):
    # a network each: both listen on the same port
    quiet_world, checked_world = World(image, "nft"), World(image, "legacy")
    quiet = quiet_world.run("quiet", HAPILOT)
    checked = checked_world.run("checked", HAPILOT, options=())
    server_world = World(image, "nft", "server")
    server = server_world.run("server", HAPILOT, configuration=WITH_SERVER)
    server_since = time.monotonic()
    for world in (quiet_world, checked_world, server_world):
        first_byte(world.address)
    pid = quiet.pid()
    time.sleep(REST)
    rows = [["hapilot, after the start", *memory(pid)]]
    for _ in range(RELOADS):
        docker("exec", quiet.name, "hapilot", "reload")
    time.sleep(REST)
    rows.append([f"hapilot, after {RELOADS} reloads", *memory(pid)])
    (threads,) = status(pid, "Threads")
    (haproxy,) = children(pid)
    time.sleep(max(0, server_since + SETTLED - time.monotonic()))
    counts = watch({"hapilot": pid, "hapilot, with a server": server.pid(), "HAProxy under it": haproxy, "hapilot with HEALTHCHECK": checked.pid()})
    rows.append([f"hapilot, {WINDOW} s later", *memory(pid)])
    docker("stop", "--time=10", quiet.name)
    alone = quiet_world.run("alone", HAPROXY_ALONE)
    first_byte(quiet_world.address)
    rows.append(["HAProxy alone", *memory(alone.pid())])
    return report(rows, counts, threads)


def watch(pids):
    """Wake-ups, and seconds of the processor, within the window."""
    before = {who: (wake_ups(pid), processor_seconds(pid)) for who, pid in pids.items()}
    time.sleep(WINDOW)
    return {who: (wake_ups(pid) - before[who][0], processor_seconds(pid) - before[who][1]) for who, pid in pids.items()}


def report(rows, counts, threads):
    alone = rows[-1][1]
    lines = [[what, *(f"{value:.2f}" for value in values), f"{values[0] / alone:.2f}"] for what, *values in rows]
    held = table(["MiB", "resident (VmRSS)", "of it its own (RssAnon)", "at most so far (VmHWM)", "ratio of VmRSS"], lines)
    done = table([f"{WINDOW} s without traffic", "wake-ups", "processor time of its container, ms"],
                 [[who, woken, f"{seconds * 1000:.1f}"] for who, (woken, seconds) in counts.items()])
    resident = max(values[0] for _, *values in rows[:-1])
    return (f"{held}\n\n- resident memory: {verdict(resident, MEMORY_AIM, 'MiB')}\n- threads: {threads}\n\n{done}\n\n"
            f"- wake-ups when idle: {verdict(counts['hapilot'][0], WAKE_UPS_AIM, 'a minute')}\n"
            f"- wake-ups when idle, with a server (one look): {verdict(counts['hapilot, with a server'][0], LOOK_AIM, 'a minute')}")
