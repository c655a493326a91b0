"""Labels and clips as a directory that anything can read: JSON lines, .npz and .mp4 (`rlhf-gym export --format jsonl`).

docs/formats.md says what every file and field of it is. Nothing here imports torch or runs what a session brings.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa

from rlhf_gym import movies
from rlhf_gym.config import UserError
from rlhf_gym.segments import Segment, load_clip
from rlhf_gym.sheets import open_sheet
from rlhf_gym.store import CHOICES, Clip, Pair, Session, finite
from rlhf_gym.tables import label_table

FORMAT, VERSION = "rlhf-gym-labels", 1
MAX_STEPS = 100_000  # of a clip: a minute at a thousand a second is 60,000
# Settings without which clips cannot be read, or played again.
OF_CLIPS = (
    "pixels", "episode_ends", "seed", "clip_seconds", "frameskip", "repeat_action_probability", "noop_max",
    "frame_stack", "image_size", "mask_score", "reward_sees_action", "labeler", "mistake_rate", "score",
)  # fmt: skip

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Judged:
    """A pair with the label that counts."""

    pair: Pair
    uid: str
    source: str  # human or synthetic
    replays: int | None
    pauses: int | None
    hidden_ms: int | None
    goal: str | None  # the sentence above the clips when it was labeled; None where that is not known any more

    def row(self) -> dict[str, Any]:
        """A line of labels.jsonl."""
        pair = self.pair
        return {
            "pair": pair.id, "round": pair.round, "attempt": pair.attempt, "position": pair.position,
            "kind": pair.kind, "repeat_of": pair.repeat_of, "left": pair.left_clip, "right": pair.right_clip,
            "choice": pair.choice, "strength": pair.strength, "source": self.source, "goal": self.goal,
            "labeled": finite(pair.labeled), "response_ms": pair.response_ms, "hidden_ms": self.hidden_ms,
            "replays": self.replays, "pauses": self.pauses, "p_left": finite(pair.p_left),
            "disagreement": finite(pair.disagreement), "uid": self.uid,
        }  # fmt: skip


@dataclass(frozen=True)
class Material:
    """What a session has to hand on: labels that count, and the clips they are of, each readable."""

    labels: list[Judged]
    clips: dict[int, Clip]
    damaged: list[str]  # what was wrong with clips that cannot be read; their pairs are left out


def gather(session: Session) -> Material:
    """Reads what counts: of each pair the newest label, unless it was taken back or forgotten.

    Raises:
        UserError: there is none.
    """
    forgotten = session.wishes().forgotten
    pairs = [p for p in session.pairs() if p.choice in CHOICES and (p.label_id or 0) > forgotten]
    rows = label_rows(session)
    goals = Goals(session)
    clips, damaged = session.clips(), []
    whole: dict[int, Clip] = {}
    info = header_info(session) if pairs else {}
    for i in sorted({c for p in pairs for c in (p.left_clip, p.right_clip)}):
        try:
            if not fits(load_clip(session, clips[i]), info):
                raise UserError(f"Clip {session.path / clips[i].path} is of another environment than its session.")
            whole[i] = clips[i]
        except UserError as error:
            damaged.append(str(error))
    labels = [
        Judged(p, row["uid"], row["labeler"], row["replays"], row["pauses"], row["hidden_ms"], goals.at(p.labeled))
        for p in pairs
        if p.left_clip in whole and p.right_clip in whole and (row := rows.get(p.label_id or 0))
    ]
    used = {c for label in labels for c in (label.pair.left_clip, label.pair.right_clip)}
    if not labels:
        lost = f" ({len(damaged)} clips cannot be read, so their pairs are left out)" if damaged else ""
        raise UserError(f"Session {session.name!r} has no label that counts{lost}: label some pairs, then export them.")
    return Material(labels, {i: clip for i, clip in whole.items() if i in used}, damaged)


def label_rows(session: Session) -> dict[int, sa.RowMapping]:
    """Of each label, by its row id, what no Pair has: uid, labeler, replays, pauses, hidden_ms."""
    columns = ("id", "uid", "labeler", "replays", "pauses", "hidden_ms")
    with session.read() as db:
        rows = db.execute(sa.select(*(label_table.c[name] for name in columns))).mappings()
        return {row["id"]: row for row in rows}


class Goals:
    """Which goal was in force when."""

    def __init__(self, session: Session) -> None:
        events = session.events("goal")
        self.changes = [(float(e["created"]), str(e["payload"]["text"])) for e in events]
        first = session.config.goal
        # --goal of a later start replaces the one in config.json, too
        self.first = None if any(text == first for _, text in self.changes) else first

    def at(self, when: float | None) -> str | None:
        before = [text for changed, text in self.changes if when is not None and changed <= when]
        return before[-1] if before else self.first


# ---------------------------------------------------------------------------------------------- the directory


def write_bundle(session: Session, out: Path, report: Report) -> tuple[Material, int]:
    """Fills an empty directory with labels.jsonl, clips.jsonl, clips/ and, last, dataset.json.

    Returns:
        what is in it, and how many of its clips have a video.
    """
    material = gather(session)
    (out / "clips").mkdir()
    lines = []
    for n, clip in enumerate(material.clips.values()):
        report(n, len(material.clips))
        lines.append(write_clip(session, clip, out, steps_per_frame(session, clip)))
    report(len(material.clips), len(material.clips))
    write_lines(out / "clips.jsonl", lines)
    write_lines(out / "labels.jsonl", (label.row() for label in material.labels))
    about = description(session) | {"labels": len(material.labels), "clips": len(material.clips)}
    (out / "dataset.json").write_text(json.dumps(about, indent=2, allow_nan=False) + "\n", "utf-8")
    return material, sum(line["video"] is not None for line in lines)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines; a number that JSON does not have is a programmer's mistake here."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def write_clip(session: Session, clip: Clip, out: Path, stride: int) -> dict[str, Any]:
    """Writes a clip's files, what the model sees as it was stored; returns its line of clips.jsonl."""
    name = f"clips/{clip.id:06d}"
    stored = session.file(clip.path)
    assert stored is not None, clip  # it was read a moment ago
    (out / f"{name}.npz").write_bytes(stored.read_bytes())
    filmed = write_video(session, clip, out / f"{name}.mp4", stride)
    if filmed and (sheet := session.file(str(clip.sheet))) is not None:
        (out / f"{name}.png").write_bytes(sheet.read_bytes())
    named = {"file": f"{name}.npz", "video": f"{name}.mp4" if filmed else None}
    return clip_row(clip) | named | {"sheet": f"{name}.png" if filmed else None}


def clip_row(clip: Clip) -> dict[str, Any]:
    """A line of clips.jsonl; its files are those in the session."""
    return {
        "clip": clip.id, "file": clip.path, "video": None, "sheet": clip.sheet, "frame_width": clip.frame_width,
        "frame_height": clip.frame_height, "columns": clip.columns, "frames": clip.frames,
        "round": clip.round, "attempt": clip.attempt, "fps": finite(clip.fps), "steps": clip.steps,
        "ended_frame": clip.ended_frame, "seed": clip.seed, "start": clip.start,
        "true_return": finite(clip.true_return),
    }  # fmt: skip


def description(session: Session) -> dict[str, Any]:
    """dataset.json, without its counts."""
    header, config = session.header(), session.config
    info = header_info(session)
    settings = {name: getattr(config, name) for name in OF_CLIPS}
    return {
        "format": FORMAT, "version": VERSION, "session": session.name, "created": finite(header.get("created")),
        "exported": time.time(), "env_id": config.env_id, "env_kwargs": config.env_kwargs, "goal": session.goal(),
        "settings": settings, "info": info, "observation_space": observation_space(info),
        "action_space": action_space(info), "versions": versions(session),
    }  # fmt: skip


def versions(session: Session) -> dict[str, str]:
    """Of the packages that the session last ran with, as far as its header says so."""
    found = session.header().get("versions")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def header_info(session: Session) -> dict[str, Any]:
    """What the session's environment is (spec.EnvInfo), as its header says: nothing of the environment is run.

    Raises:
        UserError: the header does not say so.
    """
    info = session.header().get("info")
    if not isinstance(info, dict) or not whole_info(info):
        raise UserError(
            f"Session {session.name!r} does not say what its environment's observations and actions are (info in "
            "config.json): put that file back from a copy."
        )
    return info


def whole_info(info: Mapping[str, Any]) -> bool:
    """Whether what a header says of the environment has the form of an EnvInfo; somebody else may have written it."""

    def shape(value: Any) -> bool:
        return isinstance(value, list) and all(type(x) is int and x > 0 for x in value)

    discrete = type(info.get("num_actions")) is int and info["num_actions"] > 0
    bounds = [info.get("action_low"), info.get("action_high")]
    bounded = all(isinstance(b, list) and all(x is None or type(x) in (int, float) for x in b) for b in bounds)
    fps = info.get("fps")
    return (
        shape(info.get("obs_shape")) and shape(info.get("action_shape")) and isinstance(info.get("image"), bool)
        and (discrete or (info.get("num_actions") is None and bounded)) and isinstance(fps, int | float) and fps > 0
    )  # fmt: skip


def fits(segment: Segment, info: Mapping[str, Any]) -> bool:
    """Whether a clip is of the environment that the header describes."""
    kind = "u" if info["image"] else "f"
    obs, actions = segment.observations, segment.actions
    return (
        obs.shape[1:] == tuple(info["obs_shape"]) and obs.dtype.kind == kind
        and actions.shape[1:] == tuple(info["action_shape"]) and segment.rewards.ndim == 1
    )  # fmt: skip


def observation_space(info: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "Box", "shape": list(info["obs_shape"]), "dtype": "uint8" if info["image"] else "float32"}


def action_space(info: Mapping[str, Any]) -> dict[str, Any]:
    """Discrete actions count from 0; null stands for an open bound."""
    if info["num_actions"] is not None:
        return {"type": "Discrete", "n": info["num_actions"]}
    bounds = {"low": list(info["action_low"]), "high": list(info["action_high"])}
    return {"type": "Box", "shape": list(info["action_shape"]), "dtype": "float32", **bounds}


# ---------------------------------------------------------------------------------------------- videos


def steps_per_frame(session: Session, clip: Clip) -> int:
    """Every how many steps the person saw a frame of a clip."""
    return max(1, round(header_info(session)["fps"] / clip.fps)) if clip.fps > 0 else 1


def write_video(session: Session, clip: Clip, path: Path, stride: int) -> bool:
    """Writes what the person saw of a clip, its last frame held to the end; False where there is no picture of it."""
    sheet = session.file(clip.sheet) if clip.sheet else None
    frames = list(cut(sheet, clip)) if sheet is not None else []
    if not frames or not 0 < clip.fps <= 1000:
        return False
    shown = max(len(frames), math.ceil(min(clip.steps, MAX_STEPS) / stride))
    pictures = (movies.enlarge(frames[min(i, len(frames) - 1)]) for i in range(shown))
    rate = Fraction(clip.fps).limit_denominator(1001)
    movies.encode(path, pictures, rate, options={"preset": "veryfast", "crf": "18"})
    return True


def cut(sheet: Path, clip: Clip) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) of a sprite sheet; none where it is not what the clip's row says."""
    if (found := open_sheet(sheet, clip)) is not None:
        for i in range(found.frames):
            yield np.asarray(found.frame(i))
