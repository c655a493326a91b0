"""What would have become of a session with other settings, or without some of its labels?

    rlhf-gym replay cartpole-1 --ensemble-size 5
    rlhf-gym replay cartpole-1 --without 13-18,24

A replay is a session of its own, run by the same loop. Only where that would collect and label, the clips, pairs and
labels of the original's round are brought in instead (`recall`), up to the newest label that the round's reward model
saw; all else is trained anew. `replay_of` in its config.json says whose rounds these are, so a replay that was
interrupted goes on like any session. The original is only read.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from rlhf_gym import catalog, provenance, trust
from rlhf_gym import config as cfg
from rlhf_gym.branch import (
    OF_THE_SOURCE,
    copy_clip,
    differing,
    fitting,
    one_moment,
    put,
    settle,
    trained_with,
)
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.collect import expit, judge
from rlhf_gym.config import FIXED, Config, UserError, flag
from rlhf_gym.files import bytes_below
from rlhf_gym.segments import Segment, load_clip
from rlhf_gym.store import CLIP_BYTES, START, Clip, Session, finite
from rlhf_gym.tables import JUDGED, clip_table, event_table, label_table, metric_table, pair_table
from rlhf_gym.wishes import NONE

MAY_CHANGE = (
    "seed", "ensemble_size", "reward_hidden", "hidden_size", "normalize_obs", "reward_sees_action",
    "reward_potential", "reward_quadratic",
)  # fmt: skip
OF_LABELED_CLIPS = tuple(name for name in FIXED if name not in MAY_CHANGE)  # the clips on disk were made with these
OF_NEW_CLIPS = (  # and of new labels: a replay has none
    "pairs_per_round", "clip_seconds", "pool_factor", "explore_share", "disagreement_fraction", "repeat_fraction",
    "labeler", "mistake_rate", "tie_threshold", "skip_threshold",
)  # fmt: skip
NOT_TRAINING = (*OF_NEW_CLIPS, "goal", "rounds", "score", "render", "track", "device", "checkpoint_iterations")
MEASURED = {  # columns of the comparison
    "held-out accuracy": ("reward/held_out_accuracy", "train_reward"),
    "prequential accuracy": ("reward/prequential_accuracy", "train_reward"),
    "true return": ("eval/mean", "record"),
    "predicted return": ("charts/predicted_return", "train_agent"),
}
Spans = list[tuple[int, int]]  # first and last, both among them


@dataclass(frozen=True)
class Original:
    """What a session replays, as its config.json has it.

    Attributes:
        session: its name, in the same data directory.
        until: of each round replayed the newest label row that the original's reward model had seen.
        without: numbers of pairs whose labels are left out.
    """

    session: str
    until: list[int]
    without: Spans

    def leaves_out(self, pair: int) -> bool:
        return any(first <= pair <= last for first, last in self.without)


def original_of(session: Session) -> Original | None:
    """What a session replays; None where it is no replay."""
    found = session.header().get("replay_of")
    if found is None:
        return None
    try:
        until = [int(row) for row in found["until"]]
        return Original(catalog.check_name(found["session"]), until, [(int(a), int(b)) for a, b in found["without"]])
    except (LookupError, TypeError, ValueError):
        raise UserError(f"Session {session.name!r} does not say whose rounds it replays: replay them anew.") from None


def replays(session: Session) -> Original:
    """As `original_of`, of what is known to be a replay."""
    original = original_of(session)
    assert original is not None
    return original


# ---------------------------------------------------------------------------------------------- a replay begins


def plan(source: Session, given: Mapping[str, Any], without: str) -> tuple[Config, Original]:
    """The settings of a replay, and what it replays.

    Raises:
        UserError: there is nothing to replay, or the settings or numbers are not possible.
    """
    rounds = [n for n in source.trained_rounds() if n >= 0]
    if not rounds:
        raise UserError(
            f"Session {source.name!r} has no trained round to replay: {cfg.program()} resume {source.name}."
        )
    if missing := sorted(set(range(rounds[-1])) - set(rounds)):
        raise UserError(
            f"Session {source.name!r} has no checkpoint of round {missing[0]}, which says what labels it had: bring "
            f"{source.checkpoint(missing[0])} back from a copy."
        )
    if not 1 <= given.get("rounds", 1) <= len(rounds):
        raise UserError(
            f"--rounds {given['rounds']} is out of range: session {source.name!r} has trained {len(rounds)} rounds."
        )
    config = source.config
    refuse_other_clips(config, given, "in a replay")
    config = cfg.validate(replace(config, **{"rounds": len(rounds), **given}))
    until = [trained_with(source, n).last_label_id for n in range(config.rounds)]
    return config, Original(source.name, until, left_out(source, without, until[-1], config.rounds))


def refuse_other_clips(config: Config, given: Mapping[str, Any], where: str) -> None:
    """Raises UserError for settings that the labeled clips were not made with."""
    for name in OF_LABELED_CLIPS:
        if name in given and given[name] != getattr(config, name):
            raise UserError(
                f"{flag(name)} cannot change from {getattr(config, name)!r} to {given[name]!r} {where}: the clips "
                "that were labeled show the environment as it was. Start a new session for that."
            )


def left_out(source: Session, text: str, until: int, rounds: int) -> Spans:
    """The numbers in a text such as 13-18,24, which must be of labeled pairs."""
    spans: Spans = []
    labeled = [p for p in source.pairs(labels_until=until) if p.round < rounds and p.choice is not None]
    numbers = {p.id for p in labeled}
    have = ", ".join(
        f"{min(ids)} to {max(ids)} in round {n}"
        for n in range(rounds)
        if (ids := [p.id for p in labeled if p.round == n])
    )
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
        if match is None:
            raise UserError(f"--without {text!r} names no pairs: write their numbers like 13-18,24.")
        first, last = int(match[1]), int(match[2] or match[1])
        if not any(first <= n <= last for n in numbers):
            raise UserError(f"--without {part}: no such pair has a label. Labeled pairs: {have or 'none'}.")
        spans.append((first, last))
    return sorted(spans)


def notes(source: Session, replayed: Session, given: Mapping[str, Any]) -> list[str]:
    """What somebody who compares the two should know."""
    said = [
        f"{flag(name)} says how clips and labels are made: a replay takes those there are, so it changes nothing here."
        for name in given
        if name in OF_NEW_CLIPS
    ]
    now, config, rounds = source.config, replayed.config, len(replays(replayed).until)
    before = [differing(trained_with(source, n).config, now) for n in range(rounds)]
    for name in sorted({name for names in before for name in names} - set(NOT_TRAINING) - set(given)):
        those = ", ".join(str(n) for n, names in enumerate(before) if name in names)
        said.append(
            f"{flag(name)} was another in round {those} of session {source.name!r}: all are replayed with "
            f"{getattr(config, name)!r}."
        )
    return said


def free_name(data_dir: Path, name: str) -> str:
    """NAME-replay, NAME-replay-2, …: the first that is free."""
    base = f"{name[:50]}-replay"
    names = [base, *(f"{base}-{n}" for n in range(2, 10_000))]
    return next(name for name in names if not (data_dir / name).exists())


def begin(
    source: Session, name: str, config: Config, original: Original, info: dict[str, Any], given: Mapping[str, Any],
    there: Session | None = None,
) -> Session:  # fmt: skip
    """Makes the replay's session, with the course that the original took; its rounds come in one by one.

    Args:
        info: the environment's, as it stands in config.json.
        given: the settings that were given.
        there: the session that has the name already: the replay that goes on.

    Raises:
        UserError: that one is another session, or another replay.
    """
    if there is not None:
        refuse_another(there, config, original, given)
        return there
    data_dir, rounds = source.path.parent, len(original.until)
    header = {
        "info": info, **provenance.now(config), **trust.signed(config), "created": time.time(),
        "replay_of": asdict(original),
    }  # fmt: skip
    if (taken := source.header().get("labels_from")) is not None:  # its round 0 is not asked again
        header["labels_from"] = taken
    with catalog.session_aside(data_dir, name) as made:
        # forget comes with the labels that it is about; rounds are in the settings
        left = (*OF_THE_SOURCE, "forget", "rounds", "star")
        with one_moment(source) as db:
            query = sa.select(event_table).where(event_table.c.round < rounds, event_table.c.kind.not_in(left))
            events = [dict(row) for row in db.execute(query.order_by(event_table.c.id)).mappings()]
        with fitting(made) as to:
            put(to, event_table, events)
        for number in range(rounds):
            attempt = source.newest_attempt(number)
            if attempt != NONE and not made.wishes().closed(number, attempt):
                made.add_event("close", number, attempt=attempt)  # labels that are left out are not waited for
        made.write_config(replace(config, goal=source.config.goal), **header)
        settle(made, config, given, 0)
    return catalog.open_session(data_dir, name)


def refuse_another(there: Session, wanted: Config, original: Original, given: Mapping[str, Any]) -> None:
    mine = original_of(there)
    elsewhere = any(getattr(there.config, name) != getattr(wanted, name) for name in OF_LABELED_CLIPS)
    if mine is None or mine.session != original.session or elsewhere:
        raise UserError(
            f"Session {there.name!r} is there already and no replay of {original.session!r}: choose another --name."
        )
    config = begun_with(there)
    other = [flag(name) for name in given if name not in NOT_TRAINING and getattr(config, name) != given[name]]
    if mine.without != original.without:
        other.append("--without")
    if given.get("rounds", len(mine.until)) != len(mine.until):
        other.append("--rounds")
    if other:
        raise UserError(
            f"The replay {there.name!r} was begun with another {other[0]}: give what it was begun with, or choose "
            "another --name."
        )


def begun_with(replayed: Session) -> Config:
    """The settings of its untrained agent: it may have gone on with others."""
    return trained_with(replayed, START).config if replayed.checkpoint(START).exists() else replayed.config


def done(replayed: Session) -> bool:
    """Whether every round that is replayed has been trained and evaluated."""
    return replayed.recorded(len(replays(replayed).until) - 1)


# ---------------------------------------------------------------------------------------------- a round is brought in


def recall(
    session: Session, original: Original, snapshot: Snapshot, number: int, report: Callable[[int, int], None]
) -> None:
    """Brings in a round of the original, instead of collecting one: clips, pairs and labels, in one transaction.

    What was said beforehand of the pairs is the replay's own reward model's.

    Args:
        snapshot: what the round begins with.

    Raises:
        UserError: the original is not there, or has lost that round.
    """
    with opened(session, original) as source:
        newest, until = session.last_pair_id(), original.until[number]
        before = original.until[number - 1] if number else 0
        with one_moment(source) as db:

            def rows(table: sa.Table, *which: sa.ColumnElement[bool]) -> list[dict[str, Any]]:
                return [dict(r) for r in db.execute(sa.select(table).where(*which).order_by(table.c.id)).mappings()]

            # those of a round of practice, which brings in nothing, come with the next
            pairs = rows(pair_table, pair_table.c.round <= number, pair_table.c.id > newest)
            clips = rows(clip_table, clip_table.c.round <= number)
            labels = rows(label_table, label_table.c.id <= until)
        known = session.clips()
        clips = [clip for clip in clips if clip["id"] not in known]
        if not any(pair["round"] == number for pair in pairs):
            raise UserError(
                f"Session {original.session!r} has lost the pairs of round {number}: it cannot be replayed."
            )
        for n, clip in enumerate(clips, 1):
            copy_clip(source, session, Clip(**clip), durable=True)
            report(n, len(clips))
        foresee(session, snapshot, pairs, clips)
        new = [row for row in labels if row["id"] > before and not original.leaves_out(row["pair"])]
        own = [{k: v for k, v in row.items() if k != "id"} for row in new]  # labels may have been given meanwhile
        gone = forgotten(source, until)
        uids = {row["uid"] for row in labels if row["id"] <= gone}
        batches = sorted({(clip["round"], clip["attempt"]) for clip in clips})
        taken = [
            dict(round=n, phase="collect", step=attempt, name=CLIP_BYTES,
                 value=float(bytes_below(session.clip_directory(n, attempt))))
            for n, attempt in batches
        ]  # fmt: skip
        with fitting(session) as db:
            for table, rows_of in ((clip_table, clips), (pair_table, pairs), (label_table, own), (metric_table, taken)):
                put(db, table, rows_of)
            known_labels = db.execute(sa.select(label_table.c.id, label_table.c.uid)).all()
            if mine := max((i for i, uid in known_labels if uid in uids), default=0):
                payload = {"until_label": mine}  # those that did not count in the original
                put(db, event_table, [dict(kind="forget", round=number, payload=payload, created=time.time())])


@contextlib.contextmanager
def opened(session: Session, original: Original) -> Iterator[Session]:
    data_dir = session.path.parent
    if not (data_dir / original.session / "config.json").is_file():
        raise UserError(
            f"Session {session.name!r} replays {original.session!r}, which is not in {data_dir}/: bring it back, from "
            f"{data_dir / catalog.TRASH} or from a copy, until the replay is done."
        )
    source = catalog.open_session(data_dir, original.session)
    try:
        yield source
    finally:
        source.close()


def foresee(
    session: Session, snapshot: Snapshot, pairs: list[dict[str, Any]], clips: list[dict[str, Any]]
) -> None:  # fmt: skip
    """Puts into the rows of pairs what the reward model there is says of them, as `collect` does."""
    values: dict[int, Any] = {}
    if snapshot.reward is not None:
        segments: dict[int, Segment] = {}
        for clip in clips:
            with contextlib.suppress(UserError):  # a damaged clip, of which the labels' loading will tell
                segments[clip["id"]] = load_clip(session, Clip(**clip))
        if segments:
            each = judge(snapshot.reward, snapshot.agent, list(segments.values())).cpu().numpy()  # (K, C)
            values = dict(zip(segments, each.T, strict=True))
    said: dict[int, float | None] = {p.id: p.p_left for p in session.pairs()}
    for pair in pairs:
        left, right, first = values.get(pair["left_clip"]), values.get(pair["right_clip"]), pair["repeat_of"]
        pair |= {"p_left": None, "disagreement": None}
        if first is not None:
            p_first = said.get(first)
            pair["p_left"] = None if p_first is None else 1 - p_first
        elif left is not None and right is not None:
            p = expit(left - right)
            pair |= {"p_left": finite(p.mean()), "disagreement": finite(p.std())}
        said[pair["id"]] = pair["p_left"]


def forgotten(session: Session, until: int) -> int:
    """The newest label row that no longer counted when a reward model was trained whose newest was `until`."""
    rows = [int(e["payload"]["until_label"]) for e in session.events("forget")]
    return max((row for row in rows if row < until), default=0)


# ---------------------------------------------------------------------------------------------- the comparison


def show(source: Session, replayed: Session, as_json: bool) -> None:
    """Prints the comparison: for people, or as one JSON object."""
    original = replays(replayed)
    compared = compare(source, replayed, len(original.until))
    if as_json:
        found = {"original": source.name, "replay": replayed.name, "rounds": compared}
        print(json.dumps(found, allow_nan=False))
        return
    names = {"original": source.name, "replay": replayed.name}
    Console(width=None if sys.stdout.isatty() else 160).print(table(compared, names))
    print(differences(source, replayed, original))


def compare(source: Session, replayed: Session, rounds: int) -> list[dict[str, Any]]:
    """Of each round replayed its number, and what was measured of the original and of the replay (JSON-able)."""
    sides = {"original": source, "replay": replayed}
    found = {side: measured(session) for side, session in sides.items()}
    there = [n for n in range(rounds) if n in replayed.trained_rounds()]
    return [{"round": n, **{side: found[side].get(n, {}) | used(sides[side], n) for side in sides}} for n in there]


def measured(session: Session) -> dict[int, dict[str, float]]:
    """By round, the newest value of each metric that is compared."""
    values: dict[int, dict[str, float]] = {}
    for column, (name, phase) in MEASURED.items():
        for row in session.metrics(name, phase):
            values.setdefault(row["round"], {})[column] = row["value"]
    return values


def used(session: Session, number: int) -> dict[str, int]:
    """How many labels a round's reward model learned from."""
    until = trained_with(session, number).last_label_id
    after = forgotten(session, until)
    return {"labels": sum(p.choice in JUDGED and p.counts(after) for p in session.pairs(labels_until=until))}


def table(compared: list[dict[str, Any]], names: Mapping[str, str]) -> Table:
    """Two lines a round, the original's and the replay's."""
    shown = Table(box=None, header_style="bold")
    shown.add_column("round", justify="right")
    shown.add_column("session")
    for column in ("labels", *MEASURED):
        shown.add_column(column, justify="right")
    for row in compared:
        for side, name in names.items():
            cells = [f"{row[side][c]:.4g}" if c in row[side] else "–" for c in ("labels", *MEASURED)]
            shown.add_row(str(row["round"]) if side == "original" else "", name, *cells)
    return shown


def differences(source: Session, replayed: Session, original: Original) -> str:
    """What the replay did in another way, in a sentence."""
    before, after = source.config, begun_with(replayed)
    changes = [
        f"{name} {getattr(before, name)!r} -> {getattr(after, name)!r}"
        for name in differing(before, after)
        if name not in NOT_TRAINING
    ]
    said = [f"with {', '.join(changes)}"] if changes else []
    if original.without:
        spans = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in original.without)
        said.append(f"without the labels of pairs {spans}")
    return f"Replayed {' and '.join(said) or 'with the same settings and labels'}."
