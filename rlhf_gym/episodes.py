"""What the log shows of an agent while it learns: whole episodes, added up from rollouts, and where the time goes."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

LEAST = 10  # episodes or clips that a correlation, or a change, is taken of
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
    """Sums true and predicted rewards over whole episodes, for the log only."""

    def __init__(self, num_envs: int) -> None:
        self.running = np.zeros((3, num_envs))  # true return, predicted return, length
        self.finished: deque[np.ndarray] = deque(maxlen=100)

    def begin(self) -> None:
        """The environments start anew: the episodes that ran are never finished."""
        self.running[:] = 0

    def add(self, true: np.ndarray, predicted: np.ndarray, ended: np.ndarray) -> None:
        """true, predicted, ended: (T, N)."""
        steps = np.stack([true, predicted, np.ones_like(true)], 1).astype(np.float64)
        for t in range(len(true)):
            self.running += steps[t]
            for i in np.flatnonzero(ended[t]):
                self.finished.append(self.running[:, i].copy())
                self.running[:, i] = 0

    def means(self) -> dict[str, float]:
        """Means over the last 100 episodes, and how true and predicted return go together; empty before the first has
        ended."""
        if not self.finished:
            return {}
        names = ("charts/true_return", "charts/predicted_return", "charts/episode_length")
        means = dict(zip(names, map(float, np.mean(self.finished, axis=0)), strict=True))
        true, predicted = np.array(self.finished)[:, :2].T
        together = correlation(true, predicted)
        more = {} if together is None else {"charts/return_correlation": together}
        return means | more | {"charts/episodes": float(len(self.finished))}


def spread(values: np.ndarray) -> float:
    """Standard deviation of values (n,); 0 where they differ by no more than rounding, NaN where one is no number."""
    found = float(values.std())
    return 0.0 if found <= 1e-9 * float(np.abs(values).max()) else found


def correlation(one: np.ndarray, two: np.ndarray) -> float | None:
    """Pearson's, of values (n,) each; None for fewer than 10, where either has no spread, or holds NaN."""
    if len(one) < LEAST or not (spread(one) > 0 and spread(two) > 0):
        return None
    return float(np.corrcoef(one, two)[0, 1])
