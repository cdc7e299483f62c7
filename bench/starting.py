"""How long HAProxy itself takes to start, under the same load: on a port of its own, beside the one that serves."""

import socket
import subprocess
import time

import configuration
from line import PORT, inside
from ways import Undisturbed


class Starting(Undisturbed):
    every = 0.5
    what = "start aside"

    def start(self):
        super().start()
        self.starts = []
        aside = {**self.given, "port": PORT + 1}
        (self.line.directory / "aside.cfg").write_text(configuration.text(**aside))

    def disturb(self):
        self.starts.append(start(self.line, self.haproxy) * 1000)

    def done(self):
        return len(self.starts)

    def took(self):
        return sorted(self.starts)


def start(line, haproxy):
    """From its execution until it answers; as hapilot does, the socket is there before it is."""
    path = line.directory / "aside.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, (line.directory / "aside.log").open("ab") as log:
        listener.bind(str(path))
        listener.listen()
        number = listener.fileno()
        fragment = line.directory / "fragment.cfg"
        fragment.write_text(f"global\n    stats socket fd@{number}\n")
        child = subprocess.Popen(
            inside("balancer", "bash", "-c", 'echo $EPOCHREALTIME; exec "$@" >&2', "bash", str(haproxy), "-db",
                   "-f", str(fragment), "-f", str(line.directory / "aside.cfg")),
            stdout=subprocess.PIPE, stderr=log, pass_fds=[number])
        begun = float(child.stdout.readline())
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(path))
            client.sendall(b"show info\n")
            if not client.recv(1):
                raise SystemExit("bench: HAProxy does not start aside")
            return time.time() - begun
    finally:
        child.kill()
        child.wait()
