"""Whole episodes, added up from rollouts: what the log shows of an agent while it learns."""

from __future__ import annotations

from collections import deque

import numpy as np


class EpisodeTracker:
    """Sums true and predicted rewards over whole episodes, for the log only."""

    def __init__(self, num_envs: int) -> None:
        self.running = np.zeros((3, num_envs))  # true return, predicted return, length
        self.finished: deque[np.ndarray] = deque(maxlen=100)

    def add(self, true: np.ndarray, predicted: np.ndarray, ended: np.ndarray) -> None:
        """true, predicted, ended: (T, N)."""
        for t in range(len(true)):
            self.running += np.stack([true[t], predicted[t], np.ones(len(true[t]))])
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
