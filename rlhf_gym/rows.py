"""A session's database: batches of pairs, labels, events, metrics, opinions. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from rlhf_gym.config import UserError
from rlhf_gym.tables import (
    DECIDED,
    Clip,
    Opinion,
    Pair,
    clip_table,
    event_table,
    label_table,
    metric_table,
    opinion_table,
    pair_table,
    repeats,
)
from rlhf_gym.wishes import NONE, Wishes

CHOICES = ("left", "right", "equal", "skip")
STRENGTHS = ("normal", "strong")
MAX_LABEL_ID_CHARS = 64
BUSY_SECONDS = 30.0  # how long a database is waited for that another program has locked
CLIP_BYTES = "disk/clip_bytes"  # the metric of a batch's files; its step is the batch's attempt


@dataclass(frozen=True)
class Counts:
    """Of a batch: its pairs, those with a label, and those of which one clip was said to be better."""

    pairs: int
    labeled: int
    decided: int


def finite(value: float | None) -> float | None:
    """SQLite stores NaN as NULL and JSON refuses it, so neither ever gets one."""
    return float(value) if value is not None and math.isfinite(value) else None


class Rows:
    """The rows of one session. `store.Session` adds the files beside them."""

    def __init__(self, database: Path) -> None:
        self.name = database.parent.name
        self.engine = _engine(database)
        self._wishes = Wishes([])  # by the events read so far

    def close(self) -> None:
        self.engine.dispose()

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

    def insert_batch(
        self,
        clips: Sequence[Mapping[str, Any]],
        pairs: Sequence[Mapping[str, Any]],
        clip_bytes: Mapping[tuple[int, int], int],
    ) -> None:
        """Inserts a round's clips and pairs in one transaction; after it the round is collected.

        Args:
            clips: rows of `clip` without `id`.
            pairs: rows of `pair` without `id`; `left` and `right` are indices into `clips`, or, with
                `repeat_of`, absent: a repeat shows the clips of the earlier pair with sides swapped.
            clip_bytes: what the clips of each (round, attempt) take on disk.
        """
        with self.write() as db:
            ids = [_insert(db, clip_table, c) for c in clips]
            for (number, attempt), size in clip_bytes.items():
                taken = dict(round=number, phase="collect", step=attempt, name=CLIP_BYTES, value=float(size))
                db.execute(sqlite_insert(metric_table).values(taken).on_conflict_do_nothing())
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
        decided = sa.func.count(sa.case((choice.in_(DECIDED), 1)))
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

    def repeatable(self, before: int, drawn: bool, since: int = 0) -> list[int]:
        """Ids of the pairs of earlier rounds with a decided label that counts, no repeats among them, as shown.

        Args:
            before: the round that they are earlier than.
            drawn: whether both clips must have a sprite sheet.
            since: the first of these rounds.
        """
        query = sa.select(pair_table.c.id).select_from(_with_label()).order_by(*SHOWN)
        query = query.where(pair_table.c.round < before, pair_table.c.kind != "repeat", pair_table.c.round >= since)
        query = query.where(label_table.c.choice.in_(DECIDED), label_table.c.id > self.wishes().forgotten)
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

    def consistency(self, round: int, attempt: int) -> tuple[int, int]:
        """How often the person agreed with themselves in a batch's hidden repeats: (agreed, repeats that tell)."""
        batch = self.pairs(round, attempt)
        firsts = self.pairs(ids=[p.repeat_of for p in batch if p.repeat_of is not None])
        agreed = repeats([*firsts, *batch])
        return sum(agreed), len(agreed)

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

    def wishes(self) -> Wishes:
        """What the person asked for. Events are only ever added, so only those after the last one known are read."""
        wishes = self._wishes
        if new := self.events(after=wishes.last):
            wishes = self._wishes = wishes.and_then(new)  # anew: another thread may be reading the old one
        return wishes

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

    def drop_metrics(self, round: int, phase: str, names: Sequence[str] | None = None) -> None:
        """Forgets what was measured in a phase that is begun anew in another way; with names, these metrics alone."""
        statement = metric_table.delete().where(metric_table.c.round == round, metric_table.c.phase == phase)
        if names is not None:
            statement = statement.where(metric_table.c.name.in_(names))
        with self.write() as db:
            db.execute(statement)

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

    def recorded(self, number: int) -> bool:
        """Whether the agent of this round was evaluated (its video is written before)."""
        measured = (metric_table.c.name == "eval/mean_length", metric_table.c.phase == "record")
        query = sa.select(sa.exists().where(metric_table.c.round == number, *measured))
        with self.read() as db:
            return bool(db.execute(query).scalar_one())


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


def frozen(directory: Path) -> bool:
    """Whether nobody can write there: it lies on a file system that is mounted read-only."""
    return hasattr(os, "statvfs") and bool(os.statvfs(directory).f_flag & os.ST_RDONLY)


def _engine(database: Path) -> sa.Engine:
    def connect() -> sqlite3.Connection:
        source, uri = str(database), False
        if not os.access(database.parent, os.W_OK):  # a copy on a medium that cannot be written can be looked at
            log = database.with_name(f"{database.name}-wal")
            logged = log.exists() and log.stat().st_size
            how = "immutable=1" if frozen(database.parent) and not logged else "mode=ro"
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
