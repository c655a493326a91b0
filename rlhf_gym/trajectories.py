"""The labeled clips as episodes of a Minari dataset, and the labels beside it (`--format minari`).

docs/formats.md says what becomes of a clip. Nothing here imports torch, and minari is loaded when it is needed.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from rlhf_gym.bundle import Material, Report, gather, header_info, write_lines
from rlhf_gym.segments import Segment, load_clip
from rlhf_gym.store import Session

NAMESPACE = "rlhf-gym"
DATASETS_PATH = "MINARI_DATASETS_PATH"  # where minari looks for datasets, and puts new ones
AGENT = "PPO on rewards learned from comparisons of clips; in the first round also random actions, held for a while"


def dataset_id(session: Session) -> str:
    """rlhf-gym/cartpole-1-v0: minari knows no dots in names."""
    return f"{NAMESPACE}/{re.sub(r'[^a-z0-9_-]', '-', session.name)}-v0"


def write_minari(session: Session, out: Path, report: Report) -> Material:
    """Makes an empty directory one for MINARI_DATASETS_PATH, with one dataset, and labels.jsonl beside it."""
    from minari import create_dataset_from_buffers
    from minari.data_collector import EpisodeBuffer

    material, info = gather(session), header_info(session)
    episode_of: dict[int, int] = {}

    def episodes() -> Iterator[EpisodeBuffer]:
        """One at a time, so that memory stays flat."""
        for n, clip in enumerate(material.clips.values()):
            report(n, len(material.clips))
            taken = transitions(load_clip(session, clip))
            if taken is not None:
                episode_of[clip.id] = len(episode_of)
                about = {"clip": clip.id, "round": clip.round, "seed": clip.seed, "start": clip.start}
                yield EpisodeBuffer(id=episode_of[clip.id], options=about, **taken)

    with datasets_at(out), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that we name neither an author nor an environment to make
        create_dataset_from_buffers(
            dataset_id(session), episodes(), observation_space=observation_space(info),
            action_space=action_space(info), algorithm_name=AGENT, description=described(session),
            jpeg_encoding=False,  # it would lose what the model saw
        )  # fmt: skip
    report(len(material.clips), len(material.clips))
    rows = []
    for label in material.labels:
        row = label.row()
        sides = {f"{side}_episode": episode_of.get(row[side]) for side in ("left", "right")}
        rows.append(row | sides)
    write_lines(out / "labels.jsonl", rows)
    return material


@contextmanager
def datasets_at(path: Path) -> Iterator[None]:
    """Minari has no other way to say where a dataset goes."""
    before = os.environ.get(DATASETS_PATH)
    os.environ[DATASETS_PATH] = str(path.resolve())
    try:
        yield
    finally:
        if before is None:
            del os.environ[DATASETS_PATH]
        else:
            os.environ[DATASETS_PATH] = before


def transitions(segment: Segment) -> dict[str, Any] | None:
    """A clip as an episode, which has one observation more than actions: what the last action led to.

    A clip that ends has it, its terminal observation. One that goes on has not, so its last action is left out and the
    episode is truncated there. None where nothing is left.
    """
    live = int((~segment.absorbing).sum())
    ended = live < len(segment.absorbing)
    steps = live if ended else live - 1
    if steps < 1:
        return None
    last = np.arange(steps) == steps - 1
    return {
        "observations": segment.observations[: steps + 1], "actions": segment.actions[:steps],
        "rewards": segment.rewards[:steps], "terminations": last & ended, "truncations": last & (not ended),
    }  # fmt: skip


def observation_space(info: dict[str, Any]) -> spaces.Space[Any]:
    shape = tuple(info["obs_shape"])
    if info["image"]:
        return spaces.Box(0, 255, shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def action_space(info: dict[str, Any]) -> spaces.Space[Any]:
    """As clips have them: counted from 0, or floats within the environment's bounds."""
    if info["num_actions"] is not None:
        return spaces.Discrete(info["num_actions"])
    low, high = (
        np.array([sign * np.inf if x is None else x for x in info[f"action_{name}"]], np.float32)
        for name, sign in (("low", -1), ("high", 1))
    )
    return spaces.Box(low, high, tuple(info["action_shape"]), np.float32)


def described(session: Session) -> str:
    config = session.config
    goal = f" The goal: {session.goal()}" if session.goal() else ""
    return f"Clips of agents in {config.env_id} that were compared in the rlhf-gym session {session.name}.{goal}"
