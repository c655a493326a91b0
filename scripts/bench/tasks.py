"""What scripts/bench/learning.py teaches: environments, tastes of the synthetic labeler, and how an agent is measured.

A taste is a score of a clip, as `--score scripts.bench.tasks:fall` takes it; one clip is better than another if its
score is higher. It stands for what a person would like to see, and is never the reward itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlhf_gym.labelers import ScoredClip

HOPPER_ANGLE, HOPPER_SPIN = 1, 7  # of its torso, positive forwards, rad and rad/s
HOPPER_SECOND = 125  # steps

# Bytes of the console's RAM, as listed in OC_Atari (Delfosse et al. 2023, arXiv 2306.08649) and seen by playing: he
# starts in column 49 of row 154, the first ladder is at column 110, and the girder above it is row 132. The lowest
# girder is level; those above rise by 5 or so towards their ladders.
KONG_COLUMN, KONG_ROW, KONG_JUMP = 19, 27, 11
KONG_START, KONG_LADDER, KONG_RISE = (49, 154), 110, 5.0


@dataclass(frozen=True)
class Task:
    """One row of the table."""

    env_id: str
    rounds: int
    measure: str = "return"
    """return, length, or a score of whole episodes in this module: what the agent is measured by."""
    at_least: float | None = None
    """The aim: the measure is to be so high."""
    at_most: float | None = None
    """The aim: the measure is to be so low."""
    taste: str = ""
    """A score of clips in this module; empty means the true return."""
    settings: dict[str, Any] = field(default_factory=dict)
    measured_in: dict[str, Any] = field(default_factory=dict)
    """What is passed to the environment besides, where the agent is measured."""

    def given(self) -> dict[str, Any]:
        score = f"{__name__}:{self.taste}" if self.taste else ""
        return {"env_id": self.env_id, "rounds": self.rounds, "score": score, **self.settings}


def live(clip: ScoredClip) -> np.ndarray:
    return ~clip.absorbing


# ---------------------------------------------------------------------------------------------- tastes


def centred(clip: ScoredClip) -> float:
    """CartPole: up, and near the middle of the track. A step that is over counts as one at its edge."""
    return float(np.where(live(clip), 1 - np.abs(clip.observations[:, 0]) / 2.4, 0.0).sum())


def fall(clip: ScoredClip) -> float:
    """Over as soon as can be."""
    return float(clip.absorbing.sum())


def tip_height(clip: ScoredClip) -> float:
    """Acrobot: how high its tip is, from -2 to 2; after the end it stays where it was."""
    cos1, sin1, cos2, sin2 = clip.observations[:, :4].T
    return float(-(cos1 + cos1 * cos2 - sin1 * sin2).mean())


def car_height(clip: ScoredClip) -> float:
    """MountainCar: how high the car is, from -1 to 1; after the end it stays at the flag."""
    return float(np.sin(3 * clip.observations[:, 0]).mean())


def upright(clip: ScoredClip) -> np.ndarray:
    """(T,) Hopper: whether it stands."""
    return (np.cos(clip.observations[:, HOPPER_ANGLE]) > 0.8) & (clip.observations[:, 0] > 0.9)


def backflip(clip: ScoredClip) -> float:
    """Hopper: how far its torso turns backwards, for each second, times how high it is, and a little for standing.

    Standing must be worth little, else an agent that stands never tries. And it is how far a clip came that counts: of
    each step's speed times its height rocking is worth much, backwards high up and forwards low (docs/benchmarks.md).
    """
    angle, height = clip.observations[:, HOPPER_ANGLE], clip.observations[:, 0]
    turned = (angle[0] - angle[-1]) / (len(angle) - 1) * HOPPER_SECOND
    return float(turned * height.mean() + 0.5 * upright(clip).mean())


def climbed(clip: ScoredClip) -> float:
    """Donkey Kong: how far he has come on his way up, in pixels, on the mean; a jump is not a climb.

    That is the height of where he stands, as if the lowest girder rose towards its ladder, too.
    """
    height, column = kong_height(clip), ram(clip, KONG_COLUMN)
    far = np.abs(column - KONG_LADDER) / (KONG_LADDER - KONG_START[0])
    on_screen = ram(clip, KONG_ROW) > 0
    along = np.where(height > 0, 1.0, (1 - far).clip(min=0.0))
    return float(np.where(on_screen, standing(clip, height + KONG_RISE * along), 0.0).mean())


# ---------------------------------------------------------------------------------------------- measures


def offset(episode: ScoredClip) -> float:
    """CartPole: mean distance from the middle over an episode."""
    return float(np.abs(episode.observations[:, 0]).mean())


def flips(episode: ScoredClip) -> float:
    """Hopper: 1 where it turned backwards by at least a whole turn, then stood upright, and went on for a second."""
    angle = episode.observations[:, HOPPER_ANGLE]
    turned = np.maximum.accumulate(angle) - angle >= 2 * np.pi
    landed = np.flatnonzero(turned & upright(episode))
    return float(len(landed) > 0 and landed[0] + HOPPER_SECOND < live(episode).sum())


def highest(episode: ScoredClip) -> float:
    """Donkey Kong: how high he stood or climbed at best, in pixels above the lowest girder; a jump does not count."""
    return float(standing(episode, kong_height(episode)).max())


def standing(clip: ScoredClip, values: np.ndarray) -> np.ndarray:
    """(T,) the values, and in a jump that of the step before it; in one that the clip begins with, 0."""
    jump = ram(clip, KONG_JUMP) < 255  # counts down to 0, when he is still in the air
    last = np.maximum.accumulate(np.where(jump, -1, np.arange(len(jump))))
    return np.where(last >= 0, values[last], 0.0)


def kong_height(clip: ScoredClip) -> np.ndarray:
    """(T,) pixels above the lowest girder; where the screen shows no one, 0."""
    rows = ram(clip, KONG_ROW)
    return np.where(rows > 0, KONG_START[1] - rows, 0.0).clip(min=0.0)


def ram(clip: ScoredClip, byte: int) -> np.ndarray:
    """(T,) one byte of the console's memory."""
    return np.array([float(info["ram"][byte]) for info in clip.infos])


# ---------------------------------------------------------------------------------------------- the table

TASKS = {
    "cartpole": Task("CartPole-v1", rounds=3, at_least=475),
    "centred": Task("CartPole-v1", rounds=5, taste="centred", measure="offset", at_most=0.1),
    "fall": Task("CartPole-v1", rounds=2, taste="fall", measure="length", at_most=11, settings={"pairs_per_round": 10}),
    "pendulum": Task("Pendulum-v1", rounds=5),
    "acrobot": Task("Acrobot-v1", rounds=3, taste="tip_height", at_least=-100),
    "mountaincar": Task("MountainCar-v0", rounds=5, taste="car_height", at_least=-140),
    "lunarlander": Task(
        "LunarLander-v3", rounds=13, at_least=200, settings={"pairs_per_round": 30, "clip_seconds": 4.0}
    ),
    "bipedalwalker": Task("BipedalWalker-v3", rounds=10, settings={"pairs_per_round": 40}),
    "halfcheetah": Task("HalfCheetah-v5", rounds=10, settings={"pairs_per_round": 35}),
    "hopper": Task(
        "Hopper-v5", rounds=10, settings={"pairs_per_round": 35, "gamma": 0.995, "round_std": 0.5}
    ),
    "walker": Task("Walker2d-v5", rounds=10, settings={"pairs_per_round": 35}),
    "backflip": Task(
        "Hopper-v5", rounds=10, taste="backflip", measure="flips", at_least=0.8,
        settings={"pairs_per_round": 45, "clip_seconds": 0.8, "initial_std": 1.0, "soften_policy": 0.3,
                  "reward_quadratic": True,
                  "env_kwargs": {"terminate_when_unhealthy": False, "max_episode_steps": 200}},
        measured_in={"max_episode_steps": 400},
    ),
    "dot": Task("rlhf_gym/Dot-v0", rounds=5, at_least=41.6, settings={"pairs_per_round": 10}),
    "pong": Task("ALE/Pong-v5", rounds=25, at_least=18),
    "donkeykong": Task("ALE/DonkeyKong-v5", rounds=25, taste="climbed", measure="highest", at_least=22),
}  # fmt: skip
