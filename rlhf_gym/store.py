"""A session on disk: paths, tables, transactions, files. The only module that knows where things lie.

A session is one directory; the loop and the web page share nothing else. What phase a session is in is derived
from what is there (`Session.where`), never stored, so every phase may run twice and a kill costs little.
Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from rlhf_gym import config as cfg
from rlhf_gym import migrate
from rlhf_gym.config import Config, UserError
from rlhf_gym.files import bytes_below, remove, replace, write_atomic
from rlhf_gym.tables import Clip as Clip
from rlhf_gym.tables import Opinion as Opinion
from rlhf_gym.tables import Pair as Pair
from rlhf_gym.tables import clip_table, event_table, label_table, metric_table, opinion_table, pair_table, tables
from rlhf_gym.wishes import NONE, Wishes
from rlhf_gym.within import check_files, resolve

START = -1  # the round number of the untrained agent; its checkpoint is start.pt
CHOICES = ("left", "right", "equal", "skip")
STRENGTHS = ("normal", "strong")
PHASES = ("collect", "label", "train_reward", "train_agent", "record", "finished")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MAX_LABEL_ID_CHARS = 64
BUSY_SECONDS = 30.0  # how long a database is waited for that another program has locked
CLIP_BYTES = "disk/clip_bytes"  # the metric of a batch's files; its step is the batch's attempt
TRASH = ".trash"  # in the data directory; no session has such a name
MIRRORED = {"left": "right", "right": "left", "equal": "equal"}  # what a repeat, its sides swapped, should say


# What reading a session may raise that is damaged, or made by somebody else to look like one.
UNREADABLE = (
    UserError, sa.exc.DatabaseError, OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip


class Busy(UserError):
    """Another process runs the session."""


@dataclass(frozen=True)
class Where:
    """What a session has to do next: round, attempt at its batch, and phase."""

    round: int
    attempt: int
    phase: str
    pairs: int
    labeled: int


@dataclass(frozen=True)
class Counts:
    """Of a batch: its pairs, those with a label, and those of which one clip was said to be better."""

    pairs: int
    labeled: int
    decided: int


# ---------------------------------------------------------------------------------------------- names, numbers


def round_name(number: int) -> str:
    return "start" if number == START else f"r{number:03d}"


def finite(value: float | None) -> float | None:
    """SQLite stores NaN as NULL and JSON refuses it, so neither ever gets one."""
    return float(value) if value is not None and math.isfinite(value) else None


# ---------------------------------------------------------------------------------------------- the session


class Session:
    """One session directory, open for reading and writing.

    Any number of processes may have it open; only the one that holds `lock()` may run the loop.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.engine = _engine(self.path / "session.db")
        self.migrated: Path | None = None  # where a copy lies, if it was of an older format when it was opened
        self._events: list[dict[str, Any]] = []  # read so far, see wishes
        self._lock = FileLock(self.path / "loop.lock", timeout=1.0)  # waits out a page that looks (see running)

    def close(self) -> None:
        self.engine.dispose()

    # ------------------------------------------------------------------ settings

    def header(self) -> dict[str, Any]:
        """config.json: format, config, environment, versions, created."""
        header = self.any_header()
        if (found := header.get("format")) != cfg.FORMAT_VERSION:
            newer = isinstance(found, int) and found > cfg.FORMAT_VERSION
            raise UserError(
                f"Session {self.name!r} has format {found!r}, this rlhf-gym reads {cfg.FORMAT_VERSION}: "
                + ("update rlhf-gym." if newer else "open it with the version that made it.")
            )
        return header

    def any_header(self) -> dict[str, Any]:
        """As `header`, of any format."""
        try:
            header = json.loads((self.path / "config.json").read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"Session {self.name!r} has no readable config.json ({error}).") from None
        if not isinstance(header, dict):
            raise UserError(f"Session {self.name!r} has no settings in its config.json.")
        return header

    @property
    def config(self) -> Config:
        return cfg.from_json(json.dumps(self.header().get("config")))

    def write_config(self, config: Config, **more: Any) -> None:
        """Replaces config.json atomically, keeping the other entries of its header."""
        header = {**self.header(), **more} if (self.path / "config.json").exists() else more
        header = {"format": cfg.FORMAT_VERSION, **header, "config": json.loads(cfg.to_json(config))}
        write_atomic(self.path / "config.json", json.dumps(header, indent=2, allow_nan=False).encode())

    def wishes(self) -> Wishes:
        """What the person asked for. Events are only ever added, so only those after the last one known are read."""
        known = self._events
        if new := self.events(after=known[-1]["id"] if known else 0):
            known = self._events = known + new  # a new list: another thread may be reading the old one
        return Wishes(known)

    def goal(self) -> str:
        """The sentence above the clips: the newest that was set, else the one the session began with."""
        text = self.wishes().goal
        return self.config.goal if text is None else text

    # ------------------------------------------------------------------ transactions

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    def write(self) -> contextlib.AbstractContextManager[sa.Connection]:
        return self.engine.begin()  # BEGIN IMMEDIATE, see _engine

    def refuse_foreign_schema(self) -> None:
        """What a stranger may have put into a database to act by itself: views and triggers."""
        with self.read() as db:
            schema = db.execute(sa.text("SELECT name FROM sqlite_master WHERE type NOT IN ('table', 'index')"))
            if foreign := list(schema.scalars()):
                raise UserError(
                    f"The database of session {self.name!r} holds {foreign[0]!a}, neither table nor index, which "
                    "rlhf-gym never makes: drop it if you trust it."
                )

    # ------------------------------------------------------------------ clips and pairs

    def file(self, relative: str) -> Path | None:
        """Where a file lies that a row names; None where there is none, or where the row points out of the session."""
        return resolve(self.path, relative)

    def clip_directory(self, number: int, attempt: int) -> Path:
        return self.path / "clips" / (round_name(number) + ("" if attempt == 0 else f"-{attempt:d}"))

    def clear_batch_files(self, number: int, attempt: int) -> Path:
        """An empty directory for a batch's clips: what a killed collect phase left there goes."""
        directory = self.clip_directory(number, attempt)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    def add_batch(self, clips: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> None:
        """Inserts a round's clips and pairs in one transaction; after it the round is collected.

        Args:
            clips: rows of `clip` without `id`.
            pairs: rows of `pair` without `id`; `left` and `right` are indices into `clips`, or, with
                `repeat_of`, absent: a repeat shows the clips of the earlier pair with sides swapped.
        """
        with self.write() as db:
            ids = [_insert(db, clip_table, c) for c in clips]
            for number, attempt in sorted({(c["round"], c["attempt"]) for c in clips}):
                size = float(bytes_below(self.clip_directory(number, attempt)))
                row = dict(round=number, phase="collect", step=attempt, name=CLIP_BYTES, value=size)
                db.execute(sqlite_insert(metric_table).values(row).on_conflict_do_nothing())
            for pair in pairs:
                row = dict(pair)
                if row.get("repeat_of") is not None:
                    old = db.execute(sa.select(pair_table).where(pair_table.c.id == row["repeat_of"])).one()
                    row |= {"left_clip": old.right_clip, "right_clip": old.left_clip}
                else:
                    row |= {"left_clip": ids[row.pop("left")], "right_clip": ids[row.pop("right")]}
                db.execute(pair_table.insert().values(**row))

    def pairs(
        self,
        round: int | None = None,
        attempt: int | None = None,
        labels_until: int | None = None,
        ids: Sequence[int] | None = None,
    ) -> list[Pair]:
        """Pairs in the order they are shown, each with its current label.

        Args:
            labels_until: the newest label row that counts (what a checkpoint saw); None: all of them.
        """
        query = _labeled_pairs(labels_until).order_by(*SHOWN)
        if round is not None:
            query = query.where(pair_table.c.round == round)
        if attempt is not None:
            query = query.where(pair_table.c.attempt == attempt)
        if ids is not None:
            query = query.where(pair_table.c.id.in_(ids))
        return self._pairs(query)

    def _pairs(self, query: sa.Select[Any]) -> list[Pair]:
        with self.read() as db:
            rows = db.execute(query).mappings()
            return [Pair(**{**row, "strength": row["strength"] or "normal"}) for row in rows]

    def batches(self, round: int) -> dict[int, Counts]:
        """The batches of a round, by attempt."""
        attempt, choice = pair_table.c.attempt, label_table.c.choice
        decided = sa.func.count(sa.case((choice.in_(("left", "right")), 1)))
        query = sa.select(attempt, sa.func.count(), sa.func.count(choice), decided).select_from(_with_label())
        with self.read() as db:
            rows = db.execute(query.where(pair_table.c.round == round).group_by(attempt)).all()
        return {number: Counts(*counts) for number, *counts in rows}

    def newest_attempt(self, round: int) -> int:
        """Of the batches of a round; NONE if it has none."""
        return max(self.batches(round), default=NONE)

    def unlabeled(self, round: int, attempt: int, after: int | None, limit: int) -> list[Pair]:
        """The next pairs of a batch without a label, in the order to show them; those after the pair `after`."""
        batch = (pair_table.c.round == round, pair_table.c.attempt == attempt)
        query = _labeled_pairs().where(*batch, label_table.c.choice.is_(None))
        if after is not None:
            earlier = pair_table.alias()
            same = (earlier.c.id == after, earlier.c.round == round, earlier.c.attempt == attempt)
            shown = sa.select(earlier.c.position).where(*same).scalar_subquery()
            query = query.where(pair_table.c.position > sa.func.coalesce(shown, -1))
        return self._pairs(query.order_by(pair_table.c.position).limit(limit))

    def last_pair_id(self) -> int:
        with self.read() as db:
            return int(db.execute(sa.select(sa.func.coalesce(sa.func.max(pair_table.c.id), 0))).scalar_one())

    def count_pairs(self) -> tuple[int, int]:
        """Pairs of all rounds, and how many of them have a label."""
        counts = sa.select(sa.func.count(), sa.func.count(label_table.c.choice))
        with self.read() as db:
            pairs, labeled = db.execute(counts.select_from(_with_label())).one()
        return int(pairs), int(labeled)

    def repeatable(self, before: int, drawn: bool) -> list[int]:
        """Ids of the pairs of earlier rounds with a decided label that counts, no repeats among them, as shown.

        Args:
            before: the round that they are earlier than.
            drawn: whether both clips must have a sprite sheet.
        """
        query = sa.select(pair_table.c.id).select_from(_with_label()).order_by(*SHOWN)
        query = query.where(pair_table.c.round < before, pair_table.c.kind != "repeat")
        query = query.where(label_table.c.choice.in_(("left", "right")), label_table.c.id > self.wishes().forgotten)
        if drawn:
            for side in (pair_table.c.left_clip, pair_table.c.right_clip):
                clip = clip_table.alias()
                query = query.where(sa.exists().where(clip.c.id == side, clip.c.sheet.is_not(None)))
        with self.read() as db:
            return list(db.execute(query).scalars())

    def clips(self, ids: Sequence[int] | None = None) -> dict[int, Clip]:
        query = sa.select(clip_table)
        if ids is not None:
            query = query.where(clip_table.c.id.in_(list(ids)))
        with self.read() as db:
            return {row["id"]: Clip(**row) for row in db.execute(query).mappings()}

    def newest_picture(self) -> Clip | None:
        """The first clip with a sprite sheet of the newest batch that has one."""
        drawn = clip_table.c.sheet.is_not(None)
        newest_round = sa.select(sa.func.max(clip_table.c.round)).where(drawn).scalar_subquery()
        query = sa.select(clip_table).where(drawn, clip_table.c.round == newest_round)
        query = query.order_by(clip_table.c.attempt.desc(), clip_table.c.id).limit(1)
        with self.read() as db:
            row = db.execute(query).mappings().one_or_none()
        return Clip(**row) if row else None

    # ------------------------------------------------------------------ labels

    def add_label(
        self,
        uid: str,
        pair: int,
        choice: str | None,
        *,
        strength: str = "normal",
        labeler: str = "human",
        response_ms: int | None = None,
        replays: int | None = None,
        pauses: int | None = None,
        hidden_ms: int | None = None,
    ) -> int:
        """Commits a label to disk and returns its row id. The same uid again returns the same row.

        Args:
            choice: left, right, equal or skip; None takes the pair's label back.

        Raises:
            KeyError: no such pair.
            ValueError: a bad choice, strength, uid, count or time, or a uid that was used for another label.
        """
        if choice is not None and choice not in CHOICES:
            raise ValueError(f"{choice!r} is no label: use one of {', '.join(CHOICES)}.")
        if strength not in STRENGTHS:
            raise ValueError(f"{strength!r} is no strength: use one of {', '.join(STRENGTHS)}.")
        if not 1 <= len(uid) <= MAX_LABEL_ID_CHARS:
            raise ValueError(f"A label's id has 1 to {MAX_LABEL_ID_CHARS} characters, this one has {len(uid)}.")
        watched = dict(response_ms=response_ms, replays=replays, pauses=pauses, hidden_ms=hidden_ms)
        for name, value in watched.items():
            if value is not None and not 0 <= value < 2**31:
                said = name.replace("_ms", " time")
                raise ValueError(f"A {said} of {value} is out of range: use 0 to {2**31 - 1}.")
        with self.write() as db:
            old = db.execute(sa.select(label_table).where(label_table.c.uid == uid)).one_or_none()
            if old is not None:
                if (old.pair, old.choice) != (pair, choice):
                    raise ValueError(f"The label id {uid!r} was used for another label: make a new one.")
                return int(old.id)
            if db.execute(sa.select(pair_table.c.id).where(pair_table.c.id == pair)).one_or_none() is None:
                raise KeyError(pair)
            row = dict(uid=uid, pair=pair, choice=choice, strength=strength, labeler=labeler, **watched)
            return _insert(db, label_table, {**row, "created": time.time()})

    def last_label_id(self) -> int:
        with self.read() as db:
            return int(db.execute(sa.select(sa.func.coalesce(sa.func.max(label_table.c.id), 0))).scalar_one())

    def last_labeled_pair(self, round: int, attempt: int) -> Pair | None:
        """The pair of this batch that was labeled last and whose label stands: what undo takes back."""
        batch = (pair_table.c.round == round, pair_table.c.attempt == attempt)
        query = _labeled_pairs().where(*batch, label_table.c.choice.is_not(None))
        return next(iter(self._pairs(query.order_by(label_table.c.id.desc()).limit(1))), None)

    def recently_labeled(self, limit: int) -> list[Pair]:
        """The pairs that were labeled last and whose label stands, newest first."""
        newer = label_table.alias()
        newest = ~sa.exists().where(newer.c.pair == label_table.c.pair, newer.c.id > label_table.c.id)
        query = sa.select(pair_table, *OF_LABEL).join_from(label_table, pair_table)
        query = query.where(label_table.c.choice.is_not(None), newest)
        return self._pairs(query.order_by(label_table.c.id.desc()).limit(limit))

    def label_times(self) -> list[float]:
        """When each pair got the label that stands, in order."""
        query = sa.select(label_table.c.created).select_from(_with_label()).where(label_table.c.choice.is_not(None))
        with self.read() as db:
            return sorted(db.execute(query).scalars())

    def take_back(self, uid: str) -> Pair:
        """Takes back the newest standing label of the batch at hand; the same uid again changes nothing.

        Raises:
            ValueError: nothing to take back, a batch that is in training already, or a used uid.
        """
        with self.read() as db:
            pair = db.execute(sa.select(label_table.c.pair).where(label_table.c.uid == uid)).scalar_one_or_none()
        if pair is None:
            number = max(self.trained_rounds(), default=START) + 1
            attempt = max(self.newest_attempt(number), 0)
            in_training = any(self.partial(number, phase).exists() for phase in ("train_reward", "train_agent"))
            if in_training or self.wishes().closed(number, attempt):
                raise ValueError(f"Nothing was taken back: the labels of round {number} have gone into training.")
            last = self.last_labeled_pair(number, attempt)
            if last is None:
                raise ValueError("There is nothing to take back: no pair of this batch has a label.")
            pair = last.id
        self.add_label(uid, pair, None)
        return self.pairs(ids=[pair])[0]

    def consistency(self, round: int, attempt: int) -> tuple[int, int]:
        """How often the person agreed with themselves in a batch's hidden repeats: (agreed, repeats judged twice)."""
        repeats = [p for p in self.pairs(round, attempt) if p.repeat_of is not None]
        firsts = {p.id: p for p in self.pairs(ids=[p.repeat_of for p in repeats if p.repeat_of is not None])}
        judged = [(firsts[p.repeat_of].choice, p.choice) for p in repeats if p.repeat_of in firsts]
        judged = [(first, again) for first, again in judged if first in MIRRORED and again in MIRRORED]
        return sum(again == MIRRORED[str(first)] for first, again in judged), len(judged)

    def forget(self, round: int) -> int:
        """Labels up to the newest one no longer count (the goal has changed); returns that label's row id."""
        until = self.last_label_id()
        self.add_event("forget", round, until_label=until)
        return until

    def put_opinions(self, opinions: Sequence[Opinion]) -> None:
        """Stores what a reward model says of labeled pairs, in place of what an earlier one said."""
        with self.write() as db:
            db.execute(opinion_table.delete())
            if opinions:
                db.execute(opinion_table.insert(), [asdict(o) for o in opinions])

    def opinions(self, pairs: Sequence[int] | None = None) -> dict[int, Opinion]:
        """By pair, of these or of all; none for pairs that were labeled since, or whose label does not count."""
        query = sa.select(opinion_table)
        if pairs is not None:
            query = query.where(opinion_table.c.pair.in_(pairs))
        with self.read() as db:
            return {row["pair"]: Opinion(**row) for row in db.execute(query).mappings()}

    def judge(self) -> int | None:
        """Round of the reward model whose opinions these are; None before the first."""
        with self.read() as db:
            judge: int | None = db.execute(sa.select(sa.func.max(opinion_table.c.round))).scalar_one()
        return judge

    # ------------------------------------------------------------------ looking back

    def rounds_shown(self, last_pair: int, labeling: tuple[int, int] | None) -> list[int]:
        """The rounds that `look_back` finds something of."""
        known, is_open = pair_table.c.id <= last_pair, _of_batch(labeling)
        closed = sa.select(pair_table.c.round).where(known, ~is_open).distinct()
        begun = sa.select(pair_table.c.round).select_from(_with_label())
        begun = begun.where(known, is_open, label_table.c.choice.is_not(None))
        with self.read() as db:
            return sorted(db.execute(closed.union(begun)).scalars())

    def look_back(
        self,
        last_pair: int,
        labeling: tuple[int, int] | None,
        slip_below: float,
        *,
        round: int | None = None,
        choice: str | None = None,
        kind: str | None = None,
        order: str = "newest",
        offset: int = 0,
        limit: int = 24,
    ) -> tuple[int, int, list[Pair]]:
        """Pairs that were shown, a page of them: how many there are on all pages, how many likely slips, the page.

        Args:
            last_pair: newer pairs are left out.
            labeling: round and attempt of the batch that is being labeled; of it only labeled pairs.
            slip_below: a label that counts and that the reward model thinks less likely is likely a slip.
            choice: the label; none: without one.
            kind: how the pair was chosen; leaves out the batch that is being labeled.
            order: by when the pairs were shown, newest or oldest; slips: the least likely labels first.
        """
        chosen, is_open, p_left = label_table.c.choice, _of_batch(labeling), opinion_table.c.p_left
        source = _with_label().outerjoin(opinion_table, opinion_table.c.pair == pair_table.c.id)
        p_said = sa.case((chosen == "left", p_left), (chosen == "right", 1 - p_left))
        counting = sa.case((label_table.c.id > self.wishes().forgotten, p_said))  # else NULL
        asked = [pair_table.c.id <= last_pair, sa.or_(~is_open, chosen.is_not(None))]
        if round is not None:
            asked.append(pair_table.c.round == round)
        if choice is not None:
            asked.append(chosen.is_(None) if choice == "none" else chosen == choice)
        if kind is not None:
            asked += [pair_table.c.kind == kind, ~is_open]
        newest = [column.desc() for column in SHOWN]
        orders = {"oldest": SHOWN, "newest": newest, "slips": [counting.is_(None), counting, *newest]}
        counts = sa.select(sa.func.count(), sa.func.count(sa.case((counting < slip_below, 1))))
        with self.read() as db:
            total, slips = db.execute(counts.select_from(source).where(*asked)).one()
        page = sa.select(pair_table, *OF_LABEL).select_from(source).where(*asked).order_by(*orders[order])
        return int(total), int(slips), self._pairs(page.offset(offset).limit(limit))

    # ------------------------------------------------------------------ events and metrics

    def add_event(self, kind: str, round: int, /, **payload: Any) -> int:
        with self.write() as db:
            row = dict(kind=kind, round=round, payload=payload, created=time.time())
            return _insert(db, event_table, row)

    def events(self, kind: str | None = None, after: int = 0) -> list[dict[str, Any]]:
        query = sa.select(event_table).where(event_table.c.id > after).order_by(event_table.c.id)
        if kind is not None:
            query = query.where(event_table.c.kind == kind)
        with self.read() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def put_metrics(self, round: int, phase: str, step: int, values: Mapping[str, float | None]) -> None:
        """Stores metrics; the same (round, phase, step, name) again replaces the value. NaN is not stored."""
        rows = [
            dict(round=round, phase=phase, step=step, name=name, value=number)
            for name, value in values.items()
            if (number := finite(value)) is not None
        ]
        if rows:
            statement = sqlite_insert(metric_table)
            with self.write() as db:
                keys = [c.name for c in metric_table.primary_key.columns]
                db.execute(
                    statement.on_conflict_do_update(index_elements=keys, set_={"value": statement.excluded.value}), rows
                )

    def drop_metrics(self, round: int, phase: str) -> None:
        """Forgets what was measured in a phase that is begun anew in another way."""
        with self.write() as db:
            db.execute(metric_table.delete().where(metric_table.c.round == round, metric_table.c.phase == phase))

    def metrics(self, name: str | None = None, phase: str | None = None) -> list[dict[str, Any]]:
        """Rows of round, phase, step, name, value, oldest first."""
        query = sa.select(metric_table).order_by(metric_table.c.round, metric_table.c.step)
        if name is not None:
            query = query.where(metric_table.c.name == name)
        if phase is not None:
            query = query.where(metric_table.c.phase == phase)
        with self.read() as db:
            return [dict(row) for row in db.execute(query).mappings()]

    def true_returns(self) -> dict[int, float]:
        """Mean true return of the agent after each round; START is the untrained agent."""
        query = sa.select(metric_table.c.round, metric_table.c.value).order_by(
            metric_table.c.round, metric_table.c.step
        )
        query = query.where(metric_table.c.name == "eval/mean", metric_table.c.phase == "record")
        with self.read() as db:
            return {row.round: row.value for row in db.execute(query)}

    # ------------------------------------------------------------------ checkpoints and videos

    def checkpoint(self, number: int) -> Path:
        return self.path / "checkpoints" / f"{round_name(number)}.pt"

    def partial(self, number: int, phase: str) -> Path:
        """The in-phase checkpoint of train_reward or train_agent; gone once the round's checkpoint stands."""
        return self.path / "checkpoints" / f"{round_name(number)}.{phase}.pt"

    def leftovers(self) -> dict[str, list[Path]]:
        """What a killed loop left, by kind: half-written files, in-phase checkpoints of trained rounds, clips of a
        batch that was never finished. Only under the loop's lock are they no part of something."""
        directories = (self.path, self.path / "checkpoints", self.path / "videos")
        halves = [file for directory in directories for file in directory.glob(".*-*")]
        halves += (self.path / "videos").glob(".*.mp4")
        partials = [self.partial(n, phase) for n in self.trained_rounds() for phase in ("train_reward", "train_agent")]
        with self.read() as db:
            batches = db.execute(sa.select(clip_table.c.round, clip_table.c.attempt).distinct()).all()
        whole = {self.clip_directory(number, attempt).name for number, attempt in batches}
        return {
            "half-written file": halves,
            "in-phase checkpoint": [p for p in partials if p.exists()],
            "unfinished batch of clips": [p for p in (self.path / "clips").iterdir() if p.name not in whole],
        }

    def clear_leftovers(self) -> None:
        """Deletes them. For the loop alone, under its lock."""
        for path in itertools.chain.from_iterable(self.leftovers().values()):
            remove(path)

    def clean(self) -> tuple[int, dict[str, int]]:
        """Deletes what the session does not need: leftovers, damaged files that were replaced, the write-ahead log.

        Returns:
            the bytes that this freed, and how many things of each kind were deleted.

        Raises:
            Busy: a loop runs the session.
        """
        with self.lock():
            before = self.disk_bytes()
            kinds = self.leftovers()
            kinds["damaged checkpoint"] = list((self.path / "checkpoints").glob("*.damaged"))
            for path in itertools.chain.from_iterable(kinds.values()):
                remove(path)
            with self.read() as db:
                db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            return before - self.disk_bytes(), {kind: len(paths) for kind, paths in kinds.items() if paths}

    def live_video(self) -> Path:
        """The agent that is being trained, as it was a moment ago."""
        return self.path / "videos" / "live.mp4"

    def episode(self, number: int) -> Path:
        """What the model sees of the episode in a round's video, as a segment."""
        return self.path / "videos" / f"{round_name(number)}.npz"

    def verdict(self, number: int) -> Path:
        """What the newest reward model says along the episode in a round's video (JSON, see episodes.py)."""
        return self.path / "videos" / f"{round_name(number)}.json"

    def video(self, number: int) -> Path:
        return self.path / "videos" / f"{round_name(number)}.mp4"

    def trained_rounds(self) -> list[int]:
        """Rounds with a whole checkpoint, oldest first; START first of all."""
        try:
            names = set(os.listdir(self.path / "checkpoints"))
        except FileNotFoundError:
            names = set()
        rounds = [int(m.group(1)) for n in names if (m := re.fullmatch(r"r(\d+)\.pt", n))]
        return ([START] if "start.pt" in names else []) + sorted(rounds)

    def resolve_round(self, number: int | None) -> int:
        """The round asked for, or the newest; raises UserError where it has no checkpoint."""
        rounds = self.trained_rounds()
        if not rounds:
            raise UserError(
                f"Session {self.name!r} has no agent yet: run it first ({cfg.program()} resume {self.name})."
            )
        if number is None:
            return rounds[-1]
        if number not in rounds:
            raise UserError(
                f"Session {self.name!r} has no round {number}. "
                f"Rounds with an agent: {', '.join(str(r) for r in rounds)} ({START} is the untrained one)."
            )
        return number

    # ------------------------------------------------------------------ what to do next

    def recorded(self, number: int) -> bool:
        """Whether the agent of this round was evaluated (its video is written before)."""
        measured = (metric_table.c.name == "eval/mean_length", metric_table.c.phase == "record")
        query = sa.select(sa.exists().where(metric_table.c.round == number, *measured))
        with self.read() as db:
            return bool(db.execute(query).scalar_one())

    def where(self) -> Where:
        """Derives from disk what the session has to do next.

        Evaluation and video of a round come after the next batch is collected, so that the person can already
        label; only when no round is left is "record" a phase of its own, and after it "finished".
        """
        number, wishes = max(self.trained_rounds(), default=START) + 1, self.wishes()
        rounds = self.config.rounds if wishes.rounds is None else wishes.rounds
        plan, dropped = wishes.plan(number), max(wishes.dropped(number), default=NONE)
        if rounds and number >= rounds and plan is None:
            return Where(number - 1, 0, "finished" if self.recorded(number - 1) else "record", 0, 0)
        batches = self.batches(number)
        attempt = max(batches, default=NONE)
        batch = batches.get(attempt, Counts(0, 0, 0))
        if plan is not None and plan.practice:
            return Where(number, max(attempt, 0), "train_agent", batch.pairs, batch.labeled)
        if attempt <= dropped or not batches:
            return Where(number, max(attempt, dropped) + 1, "collect", 0, 0)
        for phase in ("train_agent", "train_reward"):
            if self.partial(number, phase).exists():
                return Where(number, attempt, phase, batch.pairs, batch.labeled)
        closed = wishes.closed(number, attempt)
        if batch.labeled < batch.pairs and not closed:
            return Where(number, attempt, "label", batch.pairs, batch.labeled)
        # nothing to learn from: once, other clips are collected
        again = any(a not in wishes.dropped(number) for a in range(attempt))
        if not again and not closed and not any(b.decided for b in batches.values()):
            return Where(number, attempt + 1, "collect", 0, 0)
        return Where(number, attempt, "train_reward", batch.pairs, batch.labeled)

    # ------------------------------------------------------------------ progress and the lock

    def write_progress(self, **progress: Any) -> None:
        """What the loop is doing this moment, for the page. Fleeting: not flushed to disk."""
        data = json.dumps({"time": time.time(), "pid": os.getpid(), **progress}, allow_nan=False).encode()
        write_atomic(self.path / "progress.json", data, durable=False)

    def progress(self) -> dict[str, Any]:
        try:
            value = json.loads((self.path / "progress.json").read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the loop while it runs; it dies with its process. The one who holds it may take it again.

        Raises:
            Busy: another process runs this session.
        """
        try:
            self._lock.acquire()
        except Timeout:
            pid = self.progress().get("pid", "?")
            raise Busy(
                f"Session {self.name!r} is already running (process {pid}): stop that one first, or only watch "
                f"it: {cfg.program()} serve."
            ) from None
        try:
            yield
        finally:
            self._lock.release()

    def running(self) -> bool:
        """Whether some process runs this session's loop now."""
        if self._lock.is_locked:
            return True
        if not self.path.is_dir():  # moved to the trash: asking would make the directory again
            return False
        if (self.path / "loop.lock").is_symlink():  # no loop of ours made that, and asking could empty another file
            return False
        lock = FileLock(self.path / "loop.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        except OSError:  # nothing can be written there
            return False
        lock.release()
        return False

    def disk_bytes(self) -> int:
        """Of everything in the session; batches that were measured when they were collected are not looked at again."""
        known = {self.clip_directory(m["round"], m["step"]).name: m["value"] for m in self.metrics(CLIP_BYTES)}
        total = 0
        for entry in os.scandir(self.path):
            if entry.name == "clips":
                batches = [(known.get(batch.name), batch.path) for batch in os.scandir(entry.path)]
                total += sum(int(size) if size is not None else bytes_below(path) for size, path in batches)
            else:
                total += bytes_below(entry.path)
        return total

    def summary(self, disk: bool = True) -> dict[str, Any]:
        """What `rlhf-gym list` and the list of sessions show, JSON-able.

        Args:
            disk: with `disk_bytes`.
        """
        where, config, wishes = self.where(), self.config, self.wishes()
        pairs, labels = self.count_pairs()
        with self.read() as db:
            newest = db.execute(sa.select(label_table.c.created).order_by(label_table.c.id.desc()).limit(1)).scalar()
        return {
            "name": self.name,
            "title": wishes.title,
            "archived": wishes.archived,
            "env_id": config.env_id,
            "goal": config.goal if wishes.goal is None else wishes.goal,
            "labeler": config.labeler,
            "round": where.round,
            "phase": where.phase,
            "running": self.running(),
            "labels": labels,
            "pairs": pairs,
            "last_activity": max(newest or 0.0, (self.path / "session.db").stat().st_mtime),
            "true_returns": [{"round": r, "mean": v} for r, v in sorted(self.true_returns().items())],
            **({"disk_bytes": self.disk_bytes()} if disk else {}),
        }


OF_LABEL = (
    label_table.c.choice, label_table.c.strength, label_table.c.id.label("label_id"),
    label_table.c.created.label("labeled"), label_table.c.response_ms,
)  # fmt: skip
SHOWN = (pair_table.c.round, pair_table.c.attempt, pair_table.c.position)  # the order in which pairs are shown


def _with_label(until: int | None = None) -> sa.Join:
    """Pairs joined with their current labels: of each pair the newest row, one look into the index on label.pair.

    Args:
        until: the newest label row that counts; None: all of them.
    """
    row = label_table.alias()
    newest = sa.select(sa.func.max(row.c.id)).where(row.c.pair == pair_table.c.id)
    if until is not None:
        newest = newest.where(row.c.id <= until)
    return pair_table.outerjoin(label_table, label_table.c.id == newest.correlate(pair_table).scalar_subquery())


def _labeled_pairs(until: int | None = None) -> sa.Select[Any]:
    """The columns of `Pair`."""
    return sa.select(pair_table, *OF_LABEL).select_from(_with_label(until))


def _of_batch(batch: tuple[int, int] | None) -> sa.ColumnElement[bool]:
    """Whether a pair is of the batch (round, attempt)."""
    if batch is None:
        return sa.false()
    return sa.and_(pair_table.c.round == batch[0], pair_table.c.attempt == batch[1])


def _insert(db: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> int:
    """Inserts a row and returns its id."""
    return int(db.execute(table.insert().returning(table.c.id), dict(row)).scalar_one())


def _engine(database: Path) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        source, uri = str(database), False
        if not os.access(database.parent, os.W_OK):  # a copy on a medium that cannot be written can be looked at
            log = database.with_name(f"{database.name}-wal")
            how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
            source, uri = f"{database.absolute().as_uri()}?{how}", True
        return sqlite3.connect(source, uri=uri, timeout=BUSY_SECONDS, check_same_thread=False)

    engine = sa.create_engine("sqlite:///session.db", creator=connect)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        # the first as soon as may be: what stands in a stranger's schema calls nothing that could do harm
        for pragma in ("trusted_schema=OFF", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # In WAL mode a transaction that starts by reading and then writes fails at once, whatever the timeout.
        if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


# ---------------------------------------------------------------------------------------------- sessions


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(
            f"Session name {name!r} is not allowed: use up to 64 small letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit."
        )
    return name


def new_name(data_dir: Path, env_id: str) -> str:
    """cartpole-1, cartpole-2, …: the first number that is free."""
    base = re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1].rsplit(":", 1)[-1]).lower()
    base = re.sub(r"[^a-z0-9]+", "-", base).strip("-")[:40] or "session"
    taken = {p.name for p in data_dir.iterdir()} if data_dir.is_dir() else set()
    return next(name for n in range(1, len(taken) + 2) if (name := f"{base}-{n}") not in taken)


def create_session(data_dir: Path, name: str, config: Config, **header: Any) -> Session:
    """Makes the directory, the tables and, last, config.json: a directory without it is no session."""
    path = data_dir / check_name(name)
    try:
        path.mkdir(parents=True)  # of two that start at once, one gets the name
        for sub in ("clips", "checkpoints", "videos", "tb"):
            (path / sub).mkdir()
    except FileExistsError:
        raise UserError(f"{path} exists already and is no session: choose another name with --session.") from None
    except OSError as error:
        raise UserError(f"Cannot write to {data_dir} ({error.strerror}): choose another with --data-dir.") from None
    session = Session(path)
    with session.write() as db:
        tables.create_all(db)
    session.write_config(config, created=time.time(), **header)
    return session


def session_names(data_dir: Path) -> list[str]:
    """Names of the sessions in a data directory, newest first."""
    if not data_dir.is_dir():
        return []
    found = [p for p in data_dir.iterdir() if NAME.fullmatch(p.name) and (p / "config.json").is_file()]
    return [p.name for p in sorted(found, key=lambda p: (p / "config.json").stat().st_mtime, reverse=True)]


def open_session(data_dir: Path, name: str) -> Session:
    """Opens an existing session; raises UserError that names those there are."""
    check_name(name)
    if not (data_dir / name / "config.json").is_file():
        names = session_names(data_dir)
        have = f"Sessions: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}." if names else "It has none yet."
        raise UserError(f'No session "{name}" in {data_dir}/. {have} Start one: {cfg.program()} run CartPole-v1.')
    check_files(data_dir / name)  # it may be a stranger's
    session = Session(data_dir / name)
    older = migrate.needed(session)
    if not older:
        session.header()  # a foreign format is refused here, before the database is touched
    session.refuse_foreign_schema()
    if older:
        session.migrated = migrate.migrate(session)
    return session


def trash_session(data_dir: Path, session: Session) -> Path:
    """Closes a session and moves its directory to the trash of the data directory; returns where it lies now.

    Nothing is erased: the session is back once its directory is.

    Raises:
        UserError: a loop runs the session, or its directory cannot be moved.
    """
    name, trash = session.name, data_dir / TRASH
    if session.running():
        raise UserError(f"Session {name!r} is running: stop it, then delete it.")
    with contextlib.ExitStack() as held:
        if not (session.path / "loop.lock").is_symlink():  # see running
            held.enter_context(session.lock())  # no loop starts meanwhile
        session.close()
        if os.name == "nt":  # moves nothing that is open, so neither our lock nor what a loop has that starts now
            held.close()
        try:
            trash.mkdir(exist_ok=True)
            numbered = (f"{name[:58]}-{n}" for n in itertools.count(2))
            target = next(trash / n for n in itertools.chain([name], numbered) if not (trash / n).exists())
            replace(session.path, target)
        except OSError as error:
            raise UserError(f"Session {name!r} could not be moved to {trash} ({error.strerror}): try again.") from None
    return target


def as_dict(row: Clip | Pair | Where) -> dict[str, Any]:
    return asdict(row)
