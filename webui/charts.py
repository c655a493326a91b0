"""Small things the templates draw and say: a line of returns, how long ago."""

from __future__ import annotations

import time
from collections.abc import Sequence


def sparkline(values: Sequence[float], width: float = 120, height: float = 32, margin: float = 3) -> str:
    """The `points` of an SVG polyline through the values, highest on top, the newest at the right end."""
    low, high = min(values), max(values)
    step = (width - 2 * margin) / max(len(values) - 1, 1)
    span = height - 2 * margin
    heights = [(v - low) / (high - low) if high > low else 0.5 for v in values]
    points = enumerate(reversed(heights))
    return " ".join(reversed([f"{width - margin - i * step:.1f},{margin + (1 - h) * span:.1f}" for i, h in points]))


def ago(then: float, now: float | None = None) -> str:
    """just now, 5 min ago, 3 h ago, 2 days ago."""
    seconds = max((time.time() if now is None else now) - then, 0.0)
    for limit, unit, name in ((5400, 60, "min"), (129_600, 3600, "h")):
        if seconds < limit:
            count = round(seconds / unit)
            return f"{count} {name} ago" if count else "just now"
    return f"{round(seconds / 86_400)} days ago"
