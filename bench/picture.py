"""Latency over time as an SVG: one small picture for each way, on the same scales."""

import math
from html import escape

WIDTH, PLOT, HEIGHT = 880, 800, 84
LEFT, TOP, GAP = 56, 88, 40
# of a cell that is painted when anybody was in it
CELL = 2
# Logarithmic above a floor just below the least that is possible: 20 ms more are to be seen as well as seconds.
FLOOR, LOWEST, HIGHEST = 140, 150, 10000
LINES = (160, 200, 500, 1000, 3000, 10000)

STYLE = """
svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --dot: #0969da; --mark: #eac54f; --lost: #cf222e }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #f0f6fc; --soft: #9198a1; --line: #30363d; --dot: #58a6ff; --mark: #6d5210; --lost: #ff7b72 }
}
text { font: 11px system-ui, sans-serif; fill: var(--soft) }
.title { font-size: 16px; font-weight: 600; fill: var(--ink) }
.name { font-size: 13px; font-weight: 600; fill: var(--ink) }
.done { font-weight: 400; fill: var(--soft) }
.bad { fill: var(--lost); font-weight: 600 }
.right { text-anchor: end }
.middle { text-anchor: middle }
.line { stroke: var(--line) }
.mark { stroke: var(--mark) }
.dots { stroke: var(--dot); stroke-width: 2 }
.lost { stroke: var(--lost); stroke-width: 2 }
"""


def draw(title, about, runs, seconds):
    """The first `seconds` of each."""
    height = TOP + len(runs) * (HEIGHT + GAP) - GAP + 28
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="var(--paper)"/>',
        f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>',
        f'<text x="{LEFT}" y="44">{escape(about)}</text>',
    ]
    for place, run in enumerate(runs):
        last = place == len(runs) - 1
        parts.append(f'<g transform="translate({LEFT} {TOP + place * (HEIGHT + GAP)})">{panel(run, seconds, last)}</g>')
    return "\n".join([*parts, "</svg>", ""])


def panel(run, seconds, with_time):
    def across(at):
        return at / seconds * PLOT

    done = f" · {run.done} × {run.what}" if run.marks else ""
    parts = [f'<text class="name" x="0" y="-11">{escape(run.name)}<tspan class="done">{done}</tspan></text>']
    lost = f"{run.lost} lost" if run.lost else "none lost"
    parts.append(f'<text class="right" x="{PLOT}" y="-11"><tspan class="{"bad" if run.lost else ""}">{lost}</tspan>'
                 f' · p50 {run.p50:.0f} · p99 {run.p99:.0f} · p99.9 {run.p999:.0f} · max {run.max:.0f} ms</text>')
    for value in LINES:
        y = down(value)
        parts.append(f'<line class="line" x1="0" x2="{PLOT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f"{value} ms" if value < 1000 else f"{value // 1000} s"
        parts.append(f'<text class="right" x="-6" y="{y + 4:.1f}">{label}</text>')
    marks = "".join(f"M{across(at):.1f} 0v{HEIGHT}" for at in run.marks if at < seconds)
    parts.append(f'<path class="mark" d="{marks}"/>')
    ok = cells((across(due), down(took)) for due, took, outcome, _ in run.connections if outcome == "ok" and due < seconds)
    parts.append(f'<path class="dots" d="{ok}"/>')
    # above everything
    lost = cells((across(due), -6) for due, _, outcome, _ in run.connections if outcome != "ok" and due < seconds)
    parts.append(f'<path class="lost" d="{lost.replace("v2", "v6")}"/>')
    if with_time:
        parts += [f'<text class="middle" x="{across(at):.0f}" y="{HEIGHT + 14}">{at} s</text>'
                  for at in range(0, seconds + 1, max(1, seconds // 10))]
    return "".join(parts)


def down(milliseconds):
    inside = min(max(milliseconds, LOWEST), HIGHEST)
    return HEIGHT * (1 - math.log((inside - FLOOR) / (LOWEST - FLOOR)) / math.log((HIGHEST - FLOOR) / (LOWEST - FLOOR)))


def cells(points):
    """Twenty thousand dots are too many for a picture: cells that anybody was in, columns in one stroke."""
    columns = {}
    for x, y in points:
        columns.setdefault(int(x / CELL), set()).add(int(y / CELL))
    strokes = []
    for x, rows in sorted(columns.items()):
        for first, last in runs_of(sorted(rows)):
            strokes.append(f"M{x * CELL + 1} {first * CELL}v{(last - first + 1) * CELL}")
    return "".join(strokes)


def runs_of(numbers):
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last
