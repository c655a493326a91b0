"""What the log shows of an agent while it learns: whole episodes, added up from rollouts, and where the time goes."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

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

    def add(self, true: np.ndarray, predicted: np.ndarray, ended: np.ndarray) -> None:
        """true, predicted, ended: (T, N)."""
        steps = np.stack([true, predicted, np.ones_like(true)], 1).astype(np.float64)
        for t in range(len(true)):
            self.running += steps[t]
            for i in np.flatnonzero(ended[t]):
                self.finished.append(self.running[:, i].copy())
                self.running[:, i] = 0

    def means(self) -> dict[str, float]:
        """Means over the last 100 episodes; empty before the first has ended."""
        if not self.finished:
            return {}
        names = ("charts/true_return", "charts/predicted_return", "charts/episode_length")
        means = dict(zip(names, map(float, np.mean(self.finished, axis=0)), strict=True))
        return means | {"charts/episodes": float(len(self.finished))}
