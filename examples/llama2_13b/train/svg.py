"""Charts as SVG text, for a page that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 240, 64, 30, 12
COLOURS = ("#2f6db5", "#d9622b")

Points = Sequence[tuple[float, float]]


def lines(title: str, series: Mapping[str, Points]) -> str:
    """One line for each series over the steps, from 0 upward. What is not finite is left out."""
    kept = {name: [point for point in points if all(map(math.isfinite, point))] for name, points in series.items()}
    every = [point for points in kept.values() for point in points]
    first, last = min((x for x, _ in every), default=0), max((x for x, _ in every), default=1)
    top = max((y for _, y in every), default=1) or 1
    body = [_axes(top), _text(LEFT, HEIGHT - 8, f"step {first:g}"), _text(WIDTH - 4, HEIGHT - 8, f"{last:g}", "end")]
    for (name, points), colour in zip(kept.items(), COLOURS, strict=False):
        placed = [(_x(x, first, last), _y(y, top)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{path}"/>')
        now = f"{name}, now {points[-1][1]:.4g}" if points else f"{name}: none"
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in placed if len(placed) < 40]
        body.append(_text(WIDTH - 8, 24 + 16 * COLOURS.index(colour), now, "end", colour))
    return _chart(title, body)


def bars(title: str, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """A group of bars for each label, one of each series."""
    top = max((value for values in series.values() for value in values), default=1) or 1
    group = (WIDTH - LEFT) / max(len(labels), 1)
    width = 0.8 * group / max(len(series), 1)
    body = [_axes(top)]
    for number, ((name, values), colour) in enumerate(zip(series.items(), COLOURS, strict=False)):
        for place, value in enumerate(values):
            x, y = LEFT + group * (place + 0.1) + width * number, _y(value, top)
            size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
            about = escape(f"{labels[place]}, {name}: {value:.4g}")
            body.append(f'<rect {size} fill="{colour}"><title>{about}</title></rect>')
        body.append(_text(WIDTH - 8, 24 + 16 * number, name, "end", colour))
    body += [_text(LEFT + group * (place + 0.5), HEIGHT - 8, label, "middle") for place, label in enumerate(labels)]
    return _chart(title, body)


def _chart(title: str, body: Sequence[str]) -> str:
    head = f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">'
    return f"<figure><figcaption>{escape(title)}</figcaption>{head}{''.join(body)}</svg></figure>"


def _axes(top: float) -> str:
    grid = [
        f'<line x1="{LEFT}" x2="{WIDTH}" y1="{_y(y, top):.1f}" y2="{_y(y, top):.1f}" stroke="#ddd"/>'
        + _text(LEFT - 6, _y(y, top) + 4, f"{y:.3g}", "end")
        for y in (0, top / 2, top)
    ]
    return "".join(grid)


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _x(value: float, first: float, last: float) -> float:
    return LEFT + (WIDTH - LEFT - 6) * (value - first) / ((last - first) or 1)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top
