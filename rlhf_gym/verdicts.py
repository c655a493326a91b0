"""What the newest reward model says, stored for the pages (which have no torch): of each labeled pair, and along the
episode in each round's video. One model judges them all, so that rounds compare.

A video's verdict is a JSON file beside it:

    judge       the round of the reward model
    fps         of the video
    predicted   the predicted reward at each frame shown, mean of the steps it stands for
    true        the same of the true reward; null where the environment gives none
    ended       whether the episode ended by itself within the video
    mean        the predicted reward per step over the longest of all these episodes, absorbing steps counted
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import torch

from rlhf_gym.config import UserError
from rlhf_gym.envs import EnvInfo
from rlhf_gym.episodes import mean_reward
from rlhf_gym.files import write_atomic
from rlhf_gym.labels import Labels
from rlhf_gym.segments import Segment, load_segment
from rlhf_gym.store import Opinion, Session, finite
from rlhf_gym.train import Agent, RewardModel

VIDEO_FPS = 30  # at most


def video_stride(info: EnvInfo) -> int:
    """Every how many steps a video shows a frame."""
    return max(1, round(info.fps / VIDEO_FPS))


def video_fps(info: EnvInfo) -> int:
    return round(info.fps / video_stride(info))


def opinions(labels: Labels, round: int) -> list[Opinion]:
    """What the members that did not learn from a pair say of it; where all did, what all say. After train_reward."""
    assert labels.logits is not None
    p = torch.sigmoid(labels.logits).cpu()  # (K, P)
    unseen = labels.weight == 0
    asked = torch.where(unseen.any(0), unseen, torch.ones_like(unseen)).float()
    mean = (p * asked).sum(0) / asked.sum(0)
    counts = unseen.sum(0)
    return [
        Opinion(pair.id, round, float(mean[i]), int(counts[i]))
        for i, pair in enumerate(labels.pairs)
        if finite(float(mean[i])) is not None
    ]


def along(model: RewardModel, agent: Agent, segment: Segment) -> tuple[np.ndarray, float]:
    """The predicted reward at each live step of a segment, (n,), and at each step after its end, 0 without one."""
    obs, actions, ended, _ = (torch.as_tensor(x, device=model.scale.device) for x in segment.rows())
    beside = None if model.potential is None else torch.as_tensor(segment.beside(), device=model.scale.device)
    found = model.reward(obs, agent.from_env(actions), ended, beside)
    return found[~ended].cpu().numpy(), float(found[ended].sum())


def shown(values: np.ndarray, stride: int) -> list[float] | None:
    """Means over each frame's steps; None where one is no number."""
    means = [float(values[i : i + stride].mean()) for i in range(0, len(values), stride)]
    return means if all(finite(m) is not None for m in means) else None


def judge_videos(session: Session, model: RewardModel, agent: Agent, info: EnvInfo, judge: int) -> None:
    """Writes the verdict of every round with a recorded episode. A damaged episode gets none."""
    episodes: dict[int, Segment] = {}
    for number in session.trained_rounds():
        try:
            if session.episode(number).is_file():
                episodes[number] = load_segment(session.episode(number))
        except UserError:
            session.verdict(number).unlink(missing_ok=True)
    horizon = max((len(e.rewards) for e in episodes.values()), default=0)
    stride = video_stride(info)
    for number, episode in episodes.items():
        predicted, absorbing = along(model, agent, episode)
        absorbs = episode.absorbing.any() and session.config.episode_ends == "absorb"
        rest = horizon - len(predicted) if absorbs else 0
        mean = mean_reward(predicted.sum(), len(predicted), absorbing, rest)
        verdict = {
            "judge": judge, "fps": video_fps(info), "predicted": shown(predicted, stride),
            "true": shown(episode.rewards[~episode.absorbing], stride), "ended": bool(episode.absorbing.any()),
            "mean": finite(float(mean)),
        }  # fmt: skip
        write_atomic(session.verdict(number), json.dumps(verdict, allow_nan=False).encode(), durable=False)


def episode_segment(steps: Sequence[tuple[np.ndarray, np.ndarray, float]], ended: np.ndarray | None) -> Segment:
    """A played episode, (observation, action, true reward) of each step, as a segment.

    Args:
        ended: the terminal observation, where the episode ended by itself: one absorbing step.
    """
    obs, actions, rewards = (list(x) for x in zip(*steps, strict=True))
    extra = ended is not None
    return Segment(
        np.stack(obs + [ended] * extra),
        np.stack(actions + [np.zeros_like(actions[0])] * extra),
        np.array(rewards + [0.0] * extra, np.float32),
        np.arange(len(obs) + extra) >= len(obs),
        {},
    )
