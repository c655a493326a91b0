"""What the curves are drawn from: series of metrics, thinned, and how the labels came in."""

from __future__ import annotations

import functools
import gzip
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from pydantic import BaseModel, Field

from rlhf_gym.store import Session

MOST_POINTS = 500  # of a series: more than a chart has pixels for
SHOWN = (  # asked for by the page; one that a session has not measured yet is an empty series
    "charts/true_return", "charts/predicted_return", "charts/predicted_reward", "charts/SPS", "charts/episode_length",
    "charts/predicted_gain", "charts/true_gain", "charts/kept",
    "reward/loss", "reward/floor", "reward/accuracy", "reward/held_out_loss", "reward/held_out_accuracy",
    "reward/prequential_accuracy", "labels/consistency", "eval/mean", "eval/std", "eval/episodes", "eval/mean_length",
)  # fmt: skip


class Series(BaseModel):
    """One metric over time; point i was measured in rounds[i] at steps[i]."""

    name: str
    rounds: list[int]
    steps: list[int] = Field(description="of the agent in the environment; within the phase for reward/ and labels/")
    values: list[float]
    total: int = Field(description="points that were measured; of more than 500 some are left out, never the last")


class LabelCount(BaseModel):
    """How many pairs had a label at some time; point i counts those up to times[i]."""

    times: list[float] = Field(description="seconds since 1970")
    counts: list[int]


class Metrics(BaseModel):
    series: list[Series]
    labels: LabelCount


def read_metrics(session: Session, names: Sequence[str]) -> Metrics:
    """The named series, or all; raises HTTPException where a name is no metric's."""
    if not names:
        rows = session.metrics()
        found = {name: [m for m in rows if m["name"] == name] for name in sorted({m["name"] for m in rows})}
    else:
        found = {name: session.metrics(name) for name in dict.fromkeys(names)}
        for name, points in found.items():
            if not points and name not in SHOWN:
                measured = ", ".join(sorted({m["name"] for m in session.metrics()}))
                detail = f"Session {session.name!r} has no metric {name[:60]!r}. It has: {measured}."
                raise HTTPException(404, detail)
    return Metrics(series=[series(name, points) for name, points in found.items()], labels=count_labels(session))


def series(name: str, points: Sequence[dict[str, Any]]) -> Series:
    kept = [points[i] for i in thin([p["round"] for p in points])]
    return Series(
        name=name,
        rounds=[p["round"] for p in kept],
        steps=[p["step"] for p in kept],
        values=[p["value"] for p in kept],
        total=len(points),
    )


def thin(rounds: Sequence[int], most: int = MOST_POINTS) -> list[int]:
    """Which points to keep: at most that many, spread evenly, and if it can be the last one of every round.

    Args:
        rounds: of the points, in order.
    """
    if len(rounds) <= most:
        return list(range(len(rounds)))
    ends = [i for i, number in enumerate(rounds) if i + 1 == len(rounds) or rounds[i + 1] != number]
    if len(ends) >= most:
        return evenly(ends, most)
    return sorted({*ends, *evenly(range(len(rounds)), most - len(ends))})


def evenly(items: Sequence[int], count: int) -> list[int]:
    """So many of the items, evenly, the last one among them."""
    return [items[(i + 1) * len(items) // count - 1] for i in range(count)]


def count_labels(session: Session) -> LabelCount:
    """By the time at which a pair got the label that stands."""
    times = session.label_times()
    kept = thin([0] * len(times))
    return LabelCount(times=[times[i] for i in kept], counts=[i + 1 for i in kept])


# ---------------------------------------------------------------------------------------------- Plotly


def plotly_url() -> str:
    """The address of Plotly's JavaScript. It holds the version, so that browsers may keep it for ever."""
    return f"/plotly/{importlib.metadata.version('plotly')}.js"


@functools.cache
def plotly_script() -> bytes:
    """Plotly's JavaScript out of the installed Python package, which is not imported; gzip, a third of its 5 MB."""
    script = importlib.metadata.distribution("plotly").locate_file("plotly/package_data/plotly.min.js")
    return gzip.compress(Path(str(script)).read_bytes(), 6)
