"""Small charts as inline SVG: histograms, curves, dots with their intervals. Their colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 320, 190
DEPTH = 9  # decades below the greatest value that curves are followed
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 30  # room for the numbers of the axes


def histogram(counts: np.ndarray, edges: np.ndarray, name: str, log: bool) -> str:
    """Bars of the share of values between `edges`; on a logarithmic axis where `log`."""
    x = _axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT, log)
    tallest = max(int(counts.max()), 1)
    floor = HEIGHT - BOTTOM
    bars = []
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        top = floor - (floor - TOP) * int(count) / tallest
        bars.append(f"M{x(low):.1f} {floor}V{top:.1f}H{x(high):.1f}V{floor}Z")
    zero = f'<path class="zero" d="M{x(0):.1f} {TOP}V{floor}"/>' if not log and edges[0] < 0 < edges[-1] else ""
    body = f'{_x_axis(x, edges[0], edges[-1], log)}<path class="bars" d="{"".join(bars)}"/>{zero}'
    return _svg(body, f"Histogram of {name} from {edges[0]:.3g} to {edges[-1]:.3g}")


def counted(values: Mapping[str, Mapping[str, int]], name: str) -> str:
    """How many samples of each split have each value of a parameter: stacked bars, values from left to right."""
    floor, step = HEIGHT - BOTTOM, (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    tallest = max((sum(by.values()) for by in values.values()), default=1)
    wide, body = min(46.0, 0.7 * step), []
    for index, (value, by) in enumerate(values.items()):
        left, base = LEFT + (index + 0.5) * step - wide / 2, float(floor)
        for split, count in by.items():
            high = (floor - TOP) * count / tallest
            base -= high
            place = f'x="{left:.1f}" y="{base:.1f}" width="{wide:.1f}" height="{high:.1f}"'
            body.append(f'<rect class="fill {split}" {place}/>')
        if len(values) <= 8 or index % math.ceil(len(values) / 8) == 0:
            body.append(_text(left + wide / 2, floor + 16, value, "middle"))
    body.append(f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>')
    body += [_text(LEFT - 6, floor + 4, "0", "end"), _text(LEFT - 6, TOP + 8, str(tallest), "end")]
    said = "; ".join(f"{value}: {sum(by.values())}" for value, by in values.items())
    return _svg("".join(body), f"Samples by {name}: {said}")


def curves(
    lines: Mapping[str, Sequence[float]], x: Sequence[float], x_name: str, y_name: str, log_x: bool = False
) -> str:
    """Curves over x on a logarithmic axis, the class of each its name; values far below the greatest are left out."""
    greatest = max(float(value) for values in lines.values() for value in values)
    points = {name: _shown(x, values, greatest * 10.0**-DEPTH, log_x) for name, values in lines.items()}
    everything = np.concatenate([value for value in points.values() if len(value)] or [np.ones((1, 2))])
    (left, low), (right, high) = everything.min(axis=0), everything.max(axis=0)
    low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high * 1.0001))
    across = _axis(float(left), float(right), LEFT, WIDTH - RIGHT, log_x)
    up = _axis(low, high, HEIGHT - BOTTOM, TOP, log=True)
    body = [_x_axis(across, left, right, log_x)]
    for tick in _decades(low, high):
        body.append(f'<path class="rule" d="M{LEFT} {up(tick):.1f}H{WIDTH - RIGHT}"/>')
        body.append(_text(LEFT - 6, up(tick) + 4, _power(tick), "end"))
    for name, values in points.items():
        path = "".join(f"{'L' if i else 'M'}{across(a):.1f} {up(b):.1f}" for i, (a, b) in enumerate(values))
        body.append(f'<path class="curve {name}" d="{path}"/>')
    body.append(_text(WIDTH - RIGHT, HEIGHT - 2, x_name, "end", "name"))
    return _svg("".join(body), f"{y_name} against {x_name}: {', '.join(lines)}")


def _shown(x: Sequence[float], values: Sequence[float], least: float, log_x: bool) -> np.ndarray:
    pairs = np.column_stack([np.asarray(x, dtype=float), np.asarray(values, dtype=float)])
    return pairs[np.isfinite(pairs).all(1) & (pairs[:, 1] > least) & ((pairs[:, 0] > 0) | (not log_x))]


def dots(rows: Mapping[str, tuple[float, float, float]], what: str) -> str:
    """A dot and an interval a row on one logarithmic axis: name -> value, low, high."""
    step, label, number = 26, 92, 58
    height = step * len(rows) + 26
    ends = [v for row in rows.values() for v in row if v > 0]
    low, high = min(ends) / 1.5, max(ends) * 1.5
    across = _axis(low, high, label, WIDTH - number, log=True)
    body = []
    for tick in _decades(low, high):
        body.append(f'<path class="rule" d="M{across(tick):.1f} 4V{height - 22}"/>')
        body.append(_text(across(tick), height - 6, _power(tick), "middle"))
    for index, (name, (value, lower, upper)) in enumerate(rows.items()):
        y = step * index + 18
        lower, upper = max(lower, low), max(upper, low)
        body.append(_text(0, y + 4, name, "start", f"name {name}"))
        body.append(f'<path class="interval {name}" d="M{across(lower):.1f} {y}H{across(upper):.1f}"/>')
        body.append(f'<circle class="dot {name}" cx="{across(max(value, low)):.1f}" cy="{y}" r="5"/>')
        body.append(_text(WIDTH, y + 4, f"{value:.3g}", "end", "value"))
    said = ", ".join(f"{name} {row[0]:.3g}" for name, row in rows.items())
    return _svg("".join(body), f"{what}: {said}", height)


def _axis(low: float, high: float, start: float, end: float, log: bool) -> Callable[[float], float]:
    """A function from values to places."""
    if log:
        low, high = math.log10(low), math.log10(high)
    span = (high - low) or 1.0
    return lambda value: start + (end - start) * ((math.log10(value) if log else float(value)) - low) / span


def _x_axis(x: Callable[[float], float], low: float, high: float, log: bool) -> str:
    floor = HEIGHT - BOTTOM
    marks = "".join(
        _text(x(tick), floor + 16, _power(tick) if log else f"{tick:g}", "middle") for tick in _ticks(low, high, log)
    )
    return f'<path class="axis" d="M{LEFT} {floor}H{WIDTH - RIGHT}"/>{marks}'


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values between the ends, about four."""
    if log:
        return _decades(low, high)
    raw = (high - low) / 4 or 1.0
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten between the ends, at most six."""
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    return [10.0**p for p in powers if (p - powers[0]) % max(1, math.ceil(len(powers) / 6)) == 0]


def _power(value: float) -> str:
    """A power of ten as a reader writes it: 0.01, 1, 10; 1e-6 beyond."""
    return f"{value:g}" if 1e-4 < value < 1e5 else f"1e{round(math.log10(value))}"


def _text(x: float, y: float, text: str, anchor: str, name: str = "tick") -> str:
    return f'<text class="{escape(name)}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(str(text))}</text>'


def _svg(body: str, said: str, height: int = HEIGHT) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(said)}">{body}</svg>'
