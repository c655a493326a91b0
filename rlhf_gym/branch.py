"""A session that stands where another one stood after a round, to go on from there in another way.

    rlhf-gym branch cartpole-1 cartpole-other --round 3 --gamma 0.95

Copied are the clips, labels, agents, films, numbers and wishes up to that round; of what came later nothing is. The
session it comes from is only read, and may be running meanwhile. Nothing here runs what a session brings, unless the
settings given change that.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from rlhf_gym import catalog, labelers, track, trust
from rlhf_gym import config as cfg
from rlhf_gym.checkpoints import load_state
from rlhf_gym.config import FIXED, Config, UserError, changed, one_line
from rlhf_gym.files import write_atomic
from rlhf_gym.store import START, Clip, Session
from rlhf_gym.tables import clip_table, event_table, label_table, metric_table, pair_table

OF_THE_SOURCE = ("title", "archived", "pause", "continue", "stop")  # events that say nothing of another session
OWN = ("format", "config", "created", "branched_from", "replay_of", track.RUN_ID)  # of a header: each session's own


@dataclass(frozen=True)
class Trained:
    """What a round's checkpoint was made with."""

    config: Config
    last_label_id: int  # the newest label row that its reward model has seen


def trained_with(session: Session, number: int) -> Trained:
    """Raises UserError where the checkpoint cannot be read."""
    path = session.checkpoint(number)
    try:
        meta = json.loads(load_state(path)["meta"])
        return Trained(cfg.from_json(meta["config"]), int(meta["last_label_id"]))
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no checkpoint of this version of rlhf-gym ({one_line(error)}).") from None


# ---------------------------------------------------------------------------------------------- a session made aside


def copy_clip(source: Session, target: Session, clip: Clip, durable: bool = False) -> None:
    """Copies a clip's files, those that are there; a row of a stranger's session leads nowhere else.

    Args:
        durable: they are on disk before this returns.
    """
    for relative in (clip.path, clip.sheet or ""):
        found = source.file(relative)
        if found is None:
            continue
        place = found.relative_to(os.path.realpath(source.path))
        if place.parts[0] == "clips":
            (target.path / place).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target.path / place, found.read_bytes(), durable)


@contextlib.contextmanager
def one_moment(session: Session) -> Iterator[sa.Connection]:
    """Reads that all see the database as it is now, whatever a loop writes meanwhile."""
    with session.read() as db:
        db.exec_driver_sql("BEGIN")
        try:
            yield db
        finally:
            db.exec_driver_sql("COMMIT")


@contextlib.contextmanager
def fitting(session: Session) -> Iterator[sa.Connection]:
    """One transaction for rows that come from another session.

    Raises:
        UserError: they do not fit together; nothing was written.
    """
    try:
        with session.write() as db:
            yield db
    except sa.exc.IntegrityError as error:
        raise UserError(f"Rows of that session do not fit together ({error.orig}): nothing was made of it.") from None


def put(db: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        db.execute(table.insert(), [dict(row) for row in rows])


def settle(session: Session, config: Config, given: Mapping[str, Any], number: int) -> None:
    """The goal and the rounds given now win over what was asked for before, as when a session is resumed. The goal is
    an event: the labels that are there were given under the one of before.

    Args:
        number: the round that comes next.
    """
    if "goal" in given and session.goal() != config.goal:
        session.add_event("goal", number, text=config.goal)
    if "rounds" in given and session.wishes().rounds is not None:
        session.add_event("rounds", number, rounds=config.rounds)


# ---------------------------------------------------------------------------------------------- branching


def branch(source: Session, name: str, number: int | None, given: Mapping[str, Any], confirmed: bool) -> list[str]:
    """Makes the session `name` beside `source`, which stands where that stood when a round's checkpoint was made.

    Args:
        number: the round; None: the newest.
        given: settings that are other ones from there on.
        confirmed: --trust was given; asked for only where the settings change what the session brings.

    Returns:
        sentences that say what was made.

    Raises:
        UserError: no such round, a name that is none or taken, or settings that cannot change.
    """
    catalog.check_name(name)
    number = source.resolve_round(number)
    trained, now = trained_with(source, number), source.config
    then = as_it_was(trained.config, now)
    config, changes = changed(then, dict(given))
    header = {k: v for k, v in source.header().items() if k not in OWN}
    if trust.brings(config) != trust.brings(now):
        trust.require(source, confirmed)
        labelers.load_score(config.score)
        if config.track:
            track.require()
        header |= trust.signed(config)
    if number == START:  # none of the labels that came from elsewhere is there
        header.pop("labels_from", None)
    header |= {"created": time.time(), "branched_from": {"session": source.name, "round": number}}
    with catalog.session_aside(source.path.parent, name) as made:
        copy_files(source, made, number)
        copy_rows(source, made, number, trained.last_label_id)
        made.write_config(replace(config, goal=then.goal), **header)
        settle(made, config, given, number + 1)
        _, labels = made.count_pairs()
        finished = made.where().phase == "finished"
    after = "before round 0" if number == START else f"after round {number}"
    said = [f"Session {name} stands where {source.name} stood {after}, with {labels} labels."]
    said += [
        f"{setting} is {getattr(then, setting)!r} as it was then, not {getattr(now, setting)!r}."
        for setting in differing(then, now)
        if setting not in changes
    ]
    said += [f"{setting}: {before!r} -> {after!r}" for setting, (before, after) in changes.items()]
    if finished:
        said.append(f"It has done its {number + 1} rounds: give it more with --rounds when it goes on.")
    return said


def as_it_was(then: Config, now: Config) -> Config:
    """The settings of a checkpoint. What a session keeps for life, what it brings and what depends on the machine are
    the session's own: a checkpoint may come from elsewhere."""
    own = {name: getattr(now, name) for name in (*FIXED, "score", "track", "device")}
    every = then.checkpoint_iterations or now.checkpoint_iterations  # the untrained agent is older than that number
    return cfg.validate(replace(then, **own, checkpoint_iterations=every))


def differing(one: Config, other: Config) -> list[str]:
    """The settings in which they differ."""
    return [name for name in cfg.type_hints() if getattr(one, name) != getattr(other, name)]


def copy_files(source: Session, made: Session, number: int) -> None:
    """Agents and films up to a round. What the newest reward model says of the films is not among it."""
    for n in source.trained_rounds():
        if n <= number:
            for path in (source.checkpoint(n), source.video(n), source.episode(n)):
                if path.is_file():
                    shutil.copyfile(path, made.path / path.relative_to(source.path))


def copy_rows(source: Session, made: Session, number: int, last_label: int) -> None:
    """Clips, pairs, labels, events and metrics up to a round, all as they are this moment; and the clips' files."""
    with one_moment(source) as db:

        def rows(table: sa.Table, *which: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
            query = sa.select(table).where(*which).order_by(*table.primary_key.columns)
            return [dict(row) for row in db.execute(query).mappings()]

        clips = rows(clip_table, clip_table.c.round <= number)
        found = {
            clip_table: clips,
            pair_table: rows(pair_table, pair_table.c.round <= number),
            label_table: rows(label_table, label_table.c.id <= last_label),
            event_table: rows(event_table, event_table.c.round <= number, event_table.c.kind.not_in(OF_THE_SOURCE)),
            metric_table: rows(metric_table, metric_table.c.round <= number),
        }
    # A session that has done its rounds stays in the last one: what was asked for there came after its checkpoint.
    trained = source.checkpoint(number).stat().st_mtime
    events = [e for e in found[event_table] if e["round"] < number or e["created"] <= trained]
    # What leaves no label to count came later, too, whatever the file's time: a copied session's files have another.
    found[event_table] = [e for e in events if e["kind"] != "forget" or int(e["payload"]["until_label"]) < last_label]
    for clip in clips:
        copy_clip(source, made, Clip(**clip))
    with fitting(made) as to:
        for table, some in found.items():
            put(to, table, some)
