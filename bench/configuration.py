"""What the HAProxy that is reloaded is given: reload.cfg, with what a part of the bench wants otherwise."""

from line import PORT
from pathlib import Path

PLAIN = Path(__file__).with_name("reload.cfg").read_text()
BIND = f"    bind :{PORT}\n    bind :::{PORT} v6only\n"
ANSWER = 'string "served\\n"'
# an option that gives a listener a socket of its own
OTHER = "transparent"


MODE = "    mode http\n"
KEEPS = f"{MODE}    option idle-close-on-response\n"


def text(option="", backends=0, port=PORT, says_who=False, tells_idle=False):
    """`option` of each bind line; so many `backends` more; whether answers begin with the PID of who served.

    `tells_idle`: whether a client is told with an answer that its connection ends, and not by its end.
    """
    found = PLAIN
    if tells_idle:
        found = replace(found, MODE, KEEPS)
    if option:
        found = replace(found, BIND, "".join(f"{line} {option}\n" for line in BIND.splitlines()))
    if port != PORT:
        found = replace(found, BIND, BIND.replace(f":{PORT}", f":{port}"))
    if says_who:
        found = replace(found, ANSWER, 'lf-string "%pid served\\n"')
    for number in range(backends):
        found += f"\nbackend shop-{number}\n    server one 192.0.2.1:{1024 + number % 60000}\n"
    return found


def replace(whole, old, new):
    if old not in whole:
        raise SystemExit(f"bench: reload.cfg has no {old!r}")
    return whole.replace(old, new)
