"""Figures as SVG text: axes with shared scales, lines, points, bars and ideal lines.

A figure is about as wide as a phone, so that its text is readable there; several stand side by side on a desk. Colours
are Okabe and Ito's, and each series has a dash or a shape of its own for those who see no colours or print in grey.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["COLOURS", "Axis", "Dot", "bars", "lines", "nice_ticks", "scatter"]

COLOURS = ("#0072B2", "#D55E00", "#007A5E", "#A2427A", "#8A6D00", "#2F6F9F")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2", "10 4")
_WIDTH, _HEIGHT = 360, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 14, 46


@dataclass(frozen=True)
class Axis:
    """An axis of a figure: its label, its limits, and an ideal value that a line marks."""

    label: str
    low: float
    high: float
    ideal: float | None = None
    log: bool = False

    @classmethod
    def of(
        cls, label: str, values: Sequence[float], *, ideal: float | None = None, zero: bool = False, log: bool = False
    ) -> Axis:
        """Return an axis that holds all values, the ideal among them."""
        known = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        known += [] if ideal is None else [ideal]
        known += [0.0] if zero else []
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        if log:
            return cls(label, low or 1.0, max(high, 2 * (low or 1.0)), ideal, True)
        margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        return cls(label, low if zero and low == 0 else low - margin, high + margin, ideal)

    def place(self, value: float) -> float:
        """Return where a value lies between the limits, from 0 to 1."""
        if self.log:
            low, high, value = (math.log10(max(v, 1e-12)) for v in (self.low, self.high, value))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[float]:
        """Return the values that are written at the axis."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            return [10.0**power for power in range(first, last + 1) if self.low <= 10.0**power <= self.high]
        return nice_ticks(self.low, self.high)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers from low to high."""
    raw = (high - low) / max(1, count)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _frame(x: Axis, y: Axis, x_ticks: Mapping[float, str] | None = None) -> list[str]:
    """Return axes, grid, tick labels and ideal lines."""
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<rect x="{_LEFT}" y="{_TOP}" width="{right - _LEFT}" height="{bottom - _TOP}" class="field"/>']
    for value in y.ticks():
        at = _y(y, value)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value, text in (x_ticks or {value: _number(value) for value in x.ticks()}).items():
        parts.append(f'<text x="{_x(x, value):.1f}" y="{bottom + 15}" text-anchor="middle">{escape(text)}</text>')
    if x.ideal is not None:
        at = _x(x, x.ideal)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}" class="ideal"/>')
        side, anchor = (4, "start") if at < (_LEFT + right) / 2 else (-4, "end")
        parts.append(f'<text x="{at + side:.1f}" y="{_TOP + 11}" text-anchor="{anchor}" class="ideal">ideal</text>')
    if y.ideal is not None:
        at = _y(y, y.ideal)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" class="ideal"/>')
        parts.append(f'<text x="{right - 4}" y="{at - 4:.1f}" text-anchor="end" class="ideal">ideal</text>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{_HEIGHT - 10}" text-anchor="middle" class="label">{escape(x.label)}</text>'
    )
    centre = (_TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(13 {centre:.0f}) rotate(-90)" text-anchor="middle" class="label">'
        f"{escape(y.label)}</text>"
    )
    return parts


def _figure(alt: str, parts: Sequence[str]) -> str:
    text = escape(alt)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text}" xmlns="http://www.w3.org/2000/svg">'
        f"<title>{text}</title>{''.join(parts)}</svg>"
    )


def _legend(names: Sequence[str], dashed: bool = True) -> str:
    """Return the legend, which stands below the figure and so wraps on narrow screens."""
    keys = []
    for number, name in enumerate(names):
        colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)]
        pattern = f' stroke-dasharray="{dash}"' if dash and dashed else ""
        keys.append(
            '<span class="key"><svg viewBox="0 0 26 10" width="26" height="10" aria-hidden="true">'
            f'<line x1="1" x2="25" y1="5" y2="5" stroke="{colour}" stroke-width="{3 if dashed else 9}"{pattern}/>'
            "</svg> "
            f"{escape(name)}</span>"
        )
    return f'<p class="legend">{" ".join(keys)}</p>'


def lines(alt: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: Axis, y: Axis) -> str:
    """Return a figure of lines, each with (x, y), and its legend."""
    parts = _frame(x, y)
    for number, (across, up) in enumerate(series.values()):
        colour, dash = COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)]
        points = " ".join(
            f"{_x(x, a):.1f},{_y(y, b):.1f}"
            for a, b in zip(across, up, strict=True)
            if math.isfinite(a) and math.isfinite(b)
        )
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>')
    return _figure(alt, parts) + _legend(list(series))


def bars(
    alt: str, groups: Sequence[str], series: Mapping[str, Sequence[float]], x_label: str, y: Axis, steps: int = 1
) -> str:
    """Return a figure of bars side by side: a bar of each series for each group, and its legend."""
    x = Axis(x_label, 0.5, len(groups) + 0.5)
    parts = _frame(x, y, {place + 1: text for place, text in enumerate(groups) if place % steps == 0})
    width = 0.84 / max(1, len(series))
    for number, values in enumerate(series.values()):
        colour = COLOURS[number % len(COLOURS)]
        for place, value in enumerate(values):
            if math.isfinite(value):
                left, right = (_x(x, place + 1 - 0.42 + width * (number + side)) for side in (0, 1))
                top, bottom = _y(y, value), _y(y, max(0.0, y.low))
                parts.append(
                    f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}" '
                    f'fill="{colour}"/>'
                )
    return _figure(alt, parts) + _legend(list(series), dashed=False)


@dataclass(frozen=True)
class Dot:
    """A point of a scatter: its place, its name, its series, and whether its name is written beside it."""

    x: float
    y: float
    name: str
    series: str
    labelled: bool = False
    joined: bool = False


def scatter(alt: str, dots: Sequence[Dot], x: Axis, y: Axis) -> str:
    """Return a figure of points, with a line through those that are joined, and its legend."""
    parts = _frame(x, y)
    joined = sorted((dot for dot in dots if dot.joined), key=lambda dot: dot.x)
    if len(joined) > 1:
        points = " ".join(f"{_x(x, dot.x):.1f},{_y(y, dot.y):.1f}" for dot in joined)
        parts.append(f'<polyline points="{points}" class="front"/>')
    series = list(dict.fromkeys(dot.series for dot in dots))
    for dot in dots:
        number = series.index(dot.series)
        parts.append(f'<g fill="{COLOURS[number % len(COLOURS)]}">{_mark(number, _x(x, dot.x), _y(y, dot.y))}')
        parts.append(f"<title>{escape(dot.name)}</title></g>")
    parts += _labels([(_x(x, dot.x), _y(y, dot.y), dot.name) for dot in dots if dot.labelled])
    return _figure(alt, parts) + _marks_legend(series)


# About the size of a label's letters, in the units of the figure.
_LETTER, _LINE = 5.9, 12.0


def _labels(points: Sequence[tuple[float, float, str]]) -> list[str]:
    """Return the names of points, where they cover neither each other nor a point; a thin line leads to far ones."""
    boxes = [(across - 5, up - 5, across + 5, up + 5) for across, up, _ in points]
    parts = []
    for across, up, name in sorted(points, key=lambda point: (point[1], point[0])):
        width = _LETTER * len(name)
        best, left, base = None, 0.0, 0.0
        for rise in (0, -1, 1, -2, 2, -3, 3, -4, 4, 5, 6, 7, 8):
            for begin in (across + 8, across - 8 - width):
                level = up + 4 + rise * _LINE
                box = (begin, level - 9, begin + width, level + 2)
                inside = box[0] >= _LEFT and box[2] <= _WIDTH and box[1] >= 0 and box[3] <= _HEIGHT - _BOTTOM
                cost = sum(_overlap(box, other) for other in boxes) + (0 if inside else 1e4) + 8 * abs(rise)
                if best is None or cost < best:
                    best, left, base = cost, begin, level
        boxes.append((left, base - 9, left + width, base + 2))
        if abs(base - 4 - up) > _LINE * 0.9:
            end = left if left > across else left + width
            parts.append(f'<line x1="{across:.1f}" y1="{up:.1f}" x2="{end:.1f}" y2="{base - 4:.1f}" class="lead"/>')
        parts.append(f'<text x="{left:.1f}" y="{base:.1f}" class="name">{escape(name)}</text>')
    return parts


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Return the area that two boxes (left, top, right, bottom) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _mark(number: int, x: float, y: float) -> str:
    """Return a mark of its own shape for each series."""
    # With six colours, so that no two of 24 series have both in common.
    shape = (number + number // 12) % 4
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if shape == 1:
        return f'<rect x="{x - 3.6:.1f}" y="{y - 3.6:.1f}" width="7.2" height="7.2"/>'
    half = 4.8
    points: tuple[tuple[float, float], ...]
    if shape == 2:
        points = ((x, y - half), (x + half, y + half), (x - half, y + half))
    else:
        points = ((x, y - half), (x + half, y), (x, y + half), (x - half, y))
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}"/>'


def _marks_legend(names: Sequence[str]) -> str:
    keys = [
        f'<span class="key"><svg viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">'
        f'<g fill="{COLOURS[number % len(COLOURS)]}">{_mark(number, 6, 6)}</g></svg> {escape(name)}</span>'
        for number, name in enumerate(names)
    ]
    return f'<p class="legend">{" ".join(keys)}</p>'
