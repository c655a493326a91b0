"""The tables of a session's database, all in one place, and their rows as dataclasses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

DECIDED = ("left", "right")  # the choices that say which clip is better
JUDGED = (*DECIDED, "equal")  # and those that the reward model learns from

tables = sa.MetaData()

clip_table = sa.Table(
    "clip", tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("path", sa.String, nullable=False, unique=True),  # .npz, relative to the session
    sa.Column("sheet", sa.String),  # sprite sheet (.png), relative; NULL where nothing was rendered
    sa.Column("frame_width", sa.Integer), sa.Column("frame_height", sa.Integer),
    sa.Column("columns", sa.Integer), sa.Column("frames", sa.Integer),
    sa.Column("fps", sa.Float, nullable=False),  # of the sheet's frames
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("ended_frame", sa.Integer),  # first frame that shows an ended episode; NULL if it goes on
    sa.Column("seed", sa.Integer, nullable=False), sa.Column("start", sa.Integer, nullable=False),
    sa.Column("true_return", sa.Float),
)  # fmt: skip

pair_table = sa.Table(
    "pair", tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("round", sa.Integer, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("left_clip", sa.ForeignKey("clip.id"), nullable=False),
    sa.Column("right_clip", sa.ForeignKey("clip.id"), nullable=False),
    sa.Column("kind", sa.String, nullable=False),  # uniform, disagreement, different, repeat
    sa.Column("repeat_of", sa.ForeignKey("pair.id")),
    sa.Column("p_left", sa.Float),  # what the reward model said before the label: P(left is better)
    sa.Column("disagreement", sa.Float),
    sa.UniqueConstraint("round", "attempt", "position"),
)  # fmt: skip

label_table = sa.Table(
    "label", tables,
    sa.Column("id", sa.Integer, primary_key=True),  # the newest row of a pair is its current label
    sa.Column("uid", sa.String, nullable=False, unique=True),  # made by the client, so that a retry counts once
    sa.Column("pair", sa.ForeignKey("pair.id"), nullable=False, index=True),
    sa.Column("choice", sa.String),  # NULL: taken back
    sa.Column("strength", sa.String, nullable=False, server_default="normal"),
    sa.Column("labeler", sa.String, nullable=False),
    sa.Column("response_ms", sa.Integer),
    sa.Column("replays", sa.Integer), sa.Column("pauses", sa.Integer),
    sa.Column("hidden_ms", sa.Integer),  # of the response time: how long the page was not to be seen
    sa.Column("created", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)  # fmt: skip

event_table = sa.Table(
    "event", tables,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String, nullable=False),  # goal, close, plan, stop …: see wishes.py
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)  # fmt: skip

opinion_table = sa.Table(  # what the newest reward model says of the labeled pairs
    "opinion", tables,
    sa.Column("pair", sa.ForeignKey("pair.id"), primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),  # of the reward model
    sa.Column("p_left", sa.Float, nullable=False),  # P(left is better), of the members that did not learn from the pair
    sa.Column("members", sa.Integer, nullable=False),  # how many those are; 0: all learned from it and all are asked
)  # fmt: skip

metric_table = sa.Table(
    "metric", tables,
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("phase", sa.String, primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.Float, nullable=False),
    sa.Index("ix_metric_name", "name", "round", "step"),  # a curve, in order
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    id: int
    round: int
    attempt: int
    path: str
    sheet: str | None
    frame_width: int | None
    frame_height: int | None
    columns: int | None
    frames: int | None
    fps: float
    steps: int
    ended_frame: int | None
    seed: int
    start: int
    true_return: float | None


@dataclass(frozen=True)
class Pair:
    id: int
    round: int
    attempt: int
    position: int
    left_clip: int
    right_clip: int
    kind: str
    repeat_of: int | None
    p_left: float | None
    disagreement: float | None
    choice: str | None = None  # the current label, if any
    strength: str = "normal"
    label_id: int | None = None
    labeled: float | None = None  # when, in seconds since 1970
    response_ms: int | None = None

    def counts(self, forgotten: int) -> bool:
        """Whether it has a label (a skip, too) in a row after those that were forgotten."""
        return self.choice is not None and (self.label_id or 0) > forgotten


def repeats(pairs: Sequence[Pair]) -> list[bool]:
    """Of each hidden repeat, sides swapped, whether it got the label that agrees with the first; ties, skips and pairs
    whose first is not among these are left out."""
    first = {p.id: p.choice for p in pairs}
    both = [(p.choice, first.get(p.repeat_of)) for p in pairs if p.repeat_of is not None]
    return [a != b for a, b in both if a in DECIDED and b in DECIDED]


@dataclass(frozen=True)
class Opinion:
    pair: int
    round: int
    p_left: float
    members: int
