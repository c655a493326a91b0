"""What the log shows of an agent while it learns: whole episodes, added up from rollouts, and where the time goes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

HORIZON = 1000  # steps of an episode that is never cut off, where its worth is asked for
LEAST = 10  # episodes or clips that a correlation, or a change, is taken of
EARLY = 0.1, 0.5  # of a phase: when its first episodes are looked at, as soon as there are enough of them
SMALLEST = 0.05  # of the early mean: no smaller a spread is taken for the unit of a change, else any change is large
PARTS = ("environment", "inference", "reward", "update")  # of the time that training an agent takes


class Stopwatch:
    """Shares of the time since it was made, by part. On a GPU a part also waits for what was queued before it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What has passed since the last call was this part's."""
        now = time.perf_counter()
        self.seconds[part] += now - self.last
        self.last = now

    def shares(self) -> dict[str, float]:
        total = sum(self.seconds.values()) or 1.0
        return {f"time/{part}": seconds / total for part, seconds in self.seconds.items()}


class EpisodeTracker:
    """Sums true and predicted rewards over whole episodes, for the log only.

    What predicts how good an episode was is its predicted worth: the mean reward over as many steps as an episode may
    have, those after its end included; one cut off is taken to go on as it was. A constant on every reward changes it
    by that constant.
    """

    def __init__(self, num_envs: int) -> None:
        self.horizon = HORIZON
        self.running = np.zeros((3, num_envs))  # true return, predicted return, length
        self.finished: deque[np.ndarray] = deque(maxlen=100)

    def begin(self, horizon: int | None) -> None:
        """The environments start anew: the episodes that ran are never finished.

        Args:
            horizon: steps after which an episode is cut off; None if it may last for ever.
        """
        self.horizon = horizon or HORIZON
        self.running[:] = 0

    def add(self, true: np.ndarray, predicted: np.ndarray, ended: np.ndarray, after: np.ndarray | None = None) -> None:
        """true, predicted, ended: (T, N); after: (T, N) predicted reward of each step after an end, NaN if cut off."""
        after = np.full_like(predicted, np.nan) if after is None else after
        steps = np.stack([true, predicted, np.ones_like(true)], 1).astype(np.float64)
        for t in range(len(true)):
            self.running += steps[t]
            for i in np.flatnonzero(ended[t]):
                _, total, length = self.running[:, i]
                each = total / length if np.isnan(after[t, i]) else after[t, i]
                self.finished.append(np.append(self.running[:, i], each))
                self.running[:, i] = 0

    def means(self) -> dict[str, float]:
        """Means and spreads over the last 100 episodes, and how far true return and predicted worth go together; empty
        before the first has ended."""
        if not self.finished:
            return {}
        names = ("charts/true_return", "charts/predicted_return", "charts/episode_length")
        means = dict(zip(names, map(float, np.mean(self.finished, axis=0)), strict=False))
        true, predicted, length, after = np.array(self.finished).T
        whole = np.maximum(self.horizon, length)
        worth = mean_reward(predicted, length, after, whole - length)
        with np.errstate(invalid="ignore"):  # true rewards may be infinite
            means |= {"charts/true_return_std": float(true.std()), "charts/predicted_worth": float(worth.mean())}
            means |= {"charts/predicted_worth_std": float(worth.std()), "charts/episodes": float(len(true))}
            together = correlation(true, worth)
        return means | ({} if together is None else {"charts/return_correlation": together})


def mean_reward(total: Any, length: Any, after: Any, rest: Any) -> Any:
    """The worth of an episode: its mean reward over its steps and `rest` more of the value `after` its end."""
    return (total + rest * after) / (length + rest)


class Gains:
    """How far true return and predicted worth moved while an agent was trained, in standard deviations of its early
    episodes: the last that ended in the first tenth of the phase, or, where these are fewer than 10, the first 10,
    unless half of the phase is over by then.

    Args:
        early: what those were like; empty until they are known. It is filled in here, and a caller who keeps it can go
            on with it in another process.
    """

    def __init__(self, early: dict[str, float]) -> None:
        self.early = early
        self.now: dict[str, float] = {}  # charts/predicted_gain, charts/true_gain; empty while they are not known

    def update(self, share: float, metrics: Mapping[str, float]) -> dict[str, float]:
        """Takes in one report of the training; returns what is known now.

        Args:
            share: of the phase that is done; more than 1 where it is prolonged.
            metrics: with `EpisodeTracker.means`.
        """
        returns = {name: metrics.get(f"charts/{name}", math.nan) for name in ("predicted_worth", "true_return")}
        stds = {f"{name}_std": metrics.get(f"charts/{name}_std", math.nan) for name in returns}
        if metrics.get("charts/episodes", 0) < LEAST or not all(
            map(math.isfinite, [*returns.values(), *stds.values()])
        ):
            return self.now
        if not self.early and EARLY[0] <= share <= EARLY[1]:
            self.early |= returns | stds
        if self.early:
            moved = [self._moved(name, value) for name, value in returns.items()]
            self.now = dict(zip(("charts/predicted_gain", "charts/true_gain"), moved, strict=True))
        return self.now

    def _moved(self, name: str, value: float) -> float:
        before = self.early[name]
        return (value - before) / max(self.early[f"{name}_std"], SMALLEST * abs(before), 1e-9)

    def warning(self, number: int) -> str:
        """A sentence for the person where the agent of a round seems to exploit the reward model; else empty."""
        predicted, true = self.now.get("charts/predicted_gain", 0.0), self.now.get("charts/true_gain", 0.0)
        if not (predicted > 1 and true < -1):
            return ""
        return (
            f"While the agent of round {number} was trained, its predicted return rose by {predicted:.1f} standard "
            f"deviations and its true return fell by {-true:.1f}: no surprise if the environment's own reward is not "
            "what you teach; if it is, the agent exploits the reward model, so watch the newest clips and label more."
        )


def spread(values: np.ndarray) -> float:
    """Standard deviation of values (n,); 0 where they differ by no more than rounding, NaN where one is no number."""
    found = float(values.std())
    return 0.0 if found <= 1e-9 * float(np.abs(values).max()) else found


def correlation(one: np.ndarray, two: np.ndarray) -> float | None:
    """Pearson's, of values (n,) each; None for fewer than 10, where either has no spread, or holds NaN."""
    if len(one) < LEAST or not (spread(one) > 0 and spread(two) > 0):
        return None
    return float(np.corrcoef(one, two)[0, 1])
