"""A session on disk: its files, beside its rows (rows.py), and what to do next. Where things lie is decided here.

A session is one directory; the loop and the web page share nothing else. What phase a session is in is derived
from what is there (`Session.where`), never stored, so every phase may run twice and a kill costs little.
Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock, Timeout

from rlhf_gym import config as cfg
from rlhf_gym.config import Config, UserError
from rlhf_gym.files import bytes_below, remove, write_atomic
from rlhf_gym.rows import CHOICES as CHOICES
from rlhf_gym.rows import CLIP_BYTES as CLIP_BYTES
from rlhf_gym.rows import MAX_LABEL_ID_CHARS as MAX_LABEL_ID_CHARS
from rlhf_gym.rows import STRENGTHS as STRENGTHS
from rlhf_gym.rows import Counts as Counts
from rlhf_gym.rows import Rows
from rlhf_gym.rows import finite as finite
from rlhf_gym.tables import DECIDED as DECIDED
from rlhf_gym.tables import JUDGED as JUDGED
from rlhf_gym.tables import Clip as Clip
from rlhf_gym.tables import Opinion as Opinion
from rlhf_gym.tables import Pair as Pair
from rlhf_gym.tables import clip_table, label_table
from rlhf_gym.tables import repeats as repeats
from rlhf_gym.wishes import NONE
from rlhf_gym.within import resolve

START = -1  # the round number of the untrained agent; its checkpoint is start.pt
HALF_WRITTEN = (  # of what the loop alone writes, each aside first; all else in a session is the user's
    ".config.json-*", ".progress.json-*", "checkpoints/.*.pt-*", "videos/.r[0-9]*", "videos/.start.*", "videos/.live.*",
    "clips/*/.[0-9]*.png-*", "clips/*/.[0-9]*.npz-*", "clips/*/.undrawn.npz-*",
)  # fmt: skip
TRAINING = ("train_reward", "train_agent")
PHASES = ("collect", "label", "train_reward", "train_agent", "record", "finished")


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


# ---------------------------------------------------------------------------------------------- names, numbers


def round_name(number: int) -> str:
    return "start" if number == START else f"r{number:03d}"


# ---------------------------------------------------------------------------------------------- the session


class Session(Rows):
    """One session directory, open for reading and writing.

    Any number of processes may have it open; only the one that holds `lock()` may run the loop.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(Path(path) / "session.db")
        self.path = Path(path)
        self._top = os.path.realpath(path)
        self.migrated: Path | None = None  # where a copy lies, if it was of an older format when it was opened
        self._lock = FileLock(self.path / "loop.lock", timeout=1.0)  # waits out a page that looks (see running)

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
            file = self.path / "config.json"
            raise UserError(
                f"Session {self.name!r} has no readable config.json ({error}): put {file} back from a copy. The labels "
                "are in session.db, untouched."
            ) from None
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

    def goal(self) -> str:
        """The sentence above the clips: the newest that was set, else the one the session began with."""
        text = self.wishes().goal
        return self.config.goal if text is None else text

    # ------------------------------------------------------------------ clips and pairs

    def file(self, relative: str) -> Path | None:
        """Where a file lies that a row names; None where there is none, or where the row points out of the session."""
        return resolve(self._top, relative)

    def clip_directory(self, number: int, attempt: int) -> Path:
        return self.path / "clips" / (round_name(number) + ("" if attempt == 0 else f"-{attempt:d}"))

    def add_batch(self, clips: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> None:
        """Inserts a round's clips, whose files are there, and its pairs, as `insert_batch` says."""
        batches = sorted({(c["round"], c["attempt"]) for c in clips if {"round", "attempt"} <= set(c)})
        self.insert_batch(clips, pairs, {batch: bytes_below(self.clip_directory(*batch)) for batch in batches})

    def undrawn(self, number: int, attempt: int) -> Path:
        """How to play those clips of a batch again that are drawn while the person labels; gone once all are."""
        return self.clip_directory(number, attempt) / "undrawn.npz"

    def measure_batch(self, number: int, attempt: int) -> None:
        """Stores what the files of a batch take, as add_batch did when some were still to come."""
        self.put_metrics(number, "collect", attempt, {CLIP_BYTES: bytes_below(self.clip_directory(number, attempt))})

    def clear_batch_files(self, number: int, attempt: int) -> Path:
        """An empty directory for a batch's clips: what a killed collect phase left there goes."""
        directory = self.clip_directory(number, attempt)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        return directory

    # ------------------------------------------------------------------ labels

    def take_back(self, uid: str) -> Pair:
        """Takes back the newest standing label of the batch at hand; the same uid again changes nothing.

        Raises:
            ValueError: nothing to take back, a batch that is in training already, or a used uid.
        """
        with self.read() as db:
            pair = db.execute(sa.select(label_table.c.pair).where(label_table.c.uid == uid)).scalar_one_or_none()
        if pair is None:
            number = self.next_round()
            attempt = max(self.newest_attempt(number), 0)
            in_training = any(self.partial(number, phase).exists() for phase in TRAINING)
            if in_training or self.wishes().closed(number, attempt):
                raise ValueError(f"Nothing was taken back: the labels of round {number} have gone into training.")
            last = self.last_labeled_pair(number, attempt)
            if last is None:
                raise ValueError("There is nothing to take back: no pair of this batch has a label.")
            pair = last.id
        self.add_label(uid, pair, None)
        return self.pairs(ids=[pair])[0]

    # ------------------------------------------------------------------ checkpoints and videos

    def checkpoint(self, number: int) -> Path:
        return self.path / "checkpoints" / f"{round_name(number)}.pt"

    def partial(self, number: int, phase: str) -> Path:
        """The in-phase checkpoint of train_reward or train_agent; gone once the round's checkpoint stands."""
        return self.path / "checkpoints" / f"{round_name(number)}.{phase}.pt"

    def leftovers(self) -> dict[str, list[Path]]:
        """What a killed loop left, by kind: half-written files, in-phase checkpoints of trained rounds, clips of a
        batch that was never finished. Only under the loop's lock are they no part of something."""
        halves = [file for pattern in HALF_WRITTEN for file in self.path.glob(pattern)]
        partials = [self.partial(n, phase) for n in self.trained_rounds() for phase in TRAINING]
        with self.read() as db:
            batches = db.execute(sa.select(clip_table.c.round, clip_table.c.attempt).distinct()).all()
        whole = {self.clip_directory(number, attempt).name for number, attempt in batches}
        return {
            "half-written file": halves,
            "in-phase checkpoint": [p for p in partials if p.exists()],
            "unfinished batch of clips": [p for p in (self.path / "clips").glob("*") if p.name not in whole],
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
        """What the newest reward model says along the episode in a round's video (JSON, see verdicts.py)."""
        return self.path / "videos" / f"{round_name(number)}.json"

    def video(self, number: int) -> Path:
        return self.path / "videos" / f"{round_name(number)}.mp4"

    def next_round(self) -> int:
        """The round in the making."""
        return max(self.trained_rounds(), default=START) + 1

    def trained_rounds(self) -> list[int]:
        """Rounds with a whole checkpoint, oldest first; START first of all."""
        try:
            names = set(os.listdir(self.path / "checkpoints"))
        except FileNotFoundError:
            names = set()
        rounds = [int(n[1:-3]) for n in names if n[0] == "r" and n.endswith(".pt") and n[1:-3].isdecimal()]
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

    def where(self) -> Where:
        """Derives from disk what the session has to do next.

        Evaluation and video of a round come after the next batch is collected, so that the person can already
        label; only when no round is left is "record" a phase of its own, and after it "finished".
        """
        number, wishes = self.next_round(), self.wishes()
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
