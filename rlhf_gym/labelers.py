"""Who labels: a human, for whom we wait, or a synthetic labeler that scores clips and makes mistakes like one.

Both write to the same label table, so nothing after this phase knows the difference. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.config import Config, UserError, one_line
from rlhf_gym.segments import Segment, load_clip
from rlhf_gym.store import Session, Where

POLL_SECONDS = 0.1
GRACE_SECONDS = 1.0  # after the last label, so that the last one can be taken back too


@dataclass(frozen=True)
class ScoredClip:
    """What a score function gets: a clip's T steps, or in `evaluate` a whole episode."""

    observations: np.ndarray  # (T, *obs_shape) raw, unmasked
    actions: np.ndarray  # (T,) or (T, A)
    rewards: np.ndarray  # (T,) true rewards
    absorbing: np.ndarray  # (T,) bool: steps after the episode's end
    infos: list[dict[str, Any]]  # T dicts of numbers; on Atari the console's RAM (128,) under "ram"


Score = Callable[[ScoredClip], float]


def true_return(clip: ScoredClip) -> float:
    """The default score: the environment's own reward, summed."""
    value = float(np.sum(clip.rewards))
    if math.isnan(value):
        raise UserError("The true return of a clip is NaN: say with --score what the synthetic labeler prefers.")
    return value


def load_score(name: str) -> Score:
    """The score function MODULE:FUNCTION, the current directory included in the search; "" is the true return."""
    if not name:
        return true_return
    if ":" not in name:
        raise UserError(f"--score {name!r} is not MODULE:FUNCTION, e.g. my_scores:upright.")
    module_name, _, function_name = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's own code, or no module's name: told in their words
        said = f"--score {name}: cannot import {module_name!r} ({one_line(error)}); is it in {here}?"
        raise UserError(said) from error
    function = getattr(module, function_name, None)
    if function is None:
        raise UserError(f"--score {name}: module {module_name!r} has no function {function_name!r}.")
    if not callable(function):
        raise UserError(f"--score {name}: {function_name!r} is not a function.")

    def score(clip: ScoredClip) -> float:
        try:
            value = float(function(clip))
        except Exception as error:  # the user's own code: told in their words
            raise UserError(f"--score {name} raised {one_line(error)}.") from error
        if math.isnan(value):
            raise UserError(f"--score {name} returned NaN: a score must be a number.")
        return value

    return score


def scored(segment: Segment) -> ScoredClip:
    return ScoredClip(segment.observations, segment.actions, segment.rewards, segment.absorbing, segment.info_dicts())


def synthetic_choice(left: float, right: float, config: Config, rng: np.random.Generator) -> str:
    """The label of a pair with these scores: skip, equal, or the better one, flipped with the mistake rate."""
    mistaken = rng.random() < config.mistake_rate
    if max(left, right) < config.skip_threshold:
        return "skip"
    if left == right or abs(left - right) <= config.tie_threshold:  # two infinite scores have no difference
        return "equal"
    return "left" if (left > right) != mistaken else "right"


def label_synthetically(session: Session, config: Config, where: Where, report: Callable[[int, int], None]) -> None:
    """Labels every open pair of the batch; a batch that was half labeled is finished, not begun anew."""
    score = load_score(config.score)
    batch = session.pairs(where.round, where.attempt)
    clips = session.clips([clip for p in batch for clip in (p.left_clip, p.right_clip)])
    known: dict[int, float] = {}

    def score_of(clip: int) -> float:
        if clip not in known:
            known[clip] = score(scored(load_clip(session, clips[clip])))
        return known[clip]

    for n, pair in enumerate(batch, 1):
        if pair.choice is None:
            rng = np.random.default_rng((config.seed, pair.id))
            choice = synthetic_choice(score_of(pair.left_clip), score_of(pair.right_clip), config, rng)
            uid = f"synthetic-{pair.id}-{pair.label_id or 0}"  # a new one once a label was taken back
            session.add_label(uid, pair.id, choice, labeler="synthetic")
        report(n, len(batch))


def wait_for_human(session: Session, where: Where, report: Callable[[int, int], None]) -> None:
    """Sleeps until the batch is labeled and a moment has passed, or the person closed it."""
    done_since: float | None = None
    while True:
        now = session.where()
        report(now.labeled, now.pairs)
        if now.phase == "label":
            done_since = None
        elif session.wishes().closed(where.round, where.attempt):
            return
        else:
            done_since = done_since or time.monotonic()
            if time.monotonic() - done_since >= GRACE_SECONDS:
                return
        time.sleep(POLL_SECONDS)
