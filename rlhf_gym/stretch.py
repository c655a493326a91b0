"""The environments that an agent trains in, which a training that was killed finds again as they stood."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.config import Config
from rlhf_gym.envs import Envs
from rlhf_gym.episodes import EpisodeTracker
from rlhf_gym.team import Team

CHECKPOINTS = 8  # in-phase ones, a minute apart at most, after which environments begin anew: so little is played again


class Stretch:
    """The environments of a training, from where they began until they begin anew, `CHECKPOINTS` checkpoints later.

    Few environments can be saved, but they repeat themselves for the same seeds and actions: so what the agent did is
    saved, and played again. An episode longer than the time between two checkpoints is seen to its end, unless the
    stretch ends first.

    Args:
        config: with this process's share of the environments.
        team: the processes that train together.
        seed_path: names this use of the environments, see `Envs`.
        every: iterations between two checkpoints.
        to_env: as `Agent.to_env`, for actions that lie on the CPU.
    """

    vec: Envs
    obs: np.ndarray
    """(N, *obs_shape): what the agent sees now."""

    def __init__(
        self, config: Config, team: Team, seed_path: tuple[int, ...], every: int, to_env: Callable[[Tensor], np.ndarray]
    ) -> None:
        self.config, self.team, self.seed_path, self.to_env = config, team, seed_path, to_env
        self.length = every * CHECKPOINTS
        self.tracker = EpisodeTracker(config.num_envs)
        self.since = -1  # the iteration at which the environments began
        self.actions: list[Tensor] = []  # (processes, T, N) or (processes, T, N, A) of each iteration since then
        self.newest: list[Tensor] = []  # (T, N) or (T, N, A) of those since the last checkpoint, of this process alone

    def go_on(self, iteration: int, saved: dict[str, Any] | None = None) -> None:
        """Where a checkpoint is due: the environments stay as they are, or begin anew where a stretch is over.

        All processes call it.

        Args:
            saved: what `state` gave where a training stopped that is now resumed, if anything.
        """
        if self.newest and iteration % self.length:
            newest = self.team.all_gather(torch.stack(self.newest)[None])  # (processes, iterations, T, N, …)
            self.actions += list(newest.unbind(1))
        self.newest = []
        if saved is not None and self._fits(saved):
            self._begin(saved["since"])
            self.actions = list(saved["actions"])
            for played in self.actions:
                for actions in played[self.team.rank]:
                    self.obs = self.vec.step(self.to_env(actions)).obs
            self.tracker.running[:] = saved["running"].numpy()
        elif self.since < 0 or iteration % self.length == 0:
            self._begin(iteration)

    def _fits(self, saved: dict[str, Any]) -> bool:
        """Whether as many processes with as many environments each were at it."""
        as_many = (len(a) == self.team.size for a in saved["actions"])
        return saved["running"].shape == self.tracker.running.shape and all(as_many)

    def _begin(self, iteration: int) -> None:
        self.close()
        self.vec = Envs(self.config, self.config.num_envs, (*self.seed_path, iteration))
        self.since, self.actions = iteration, []
        self.obs = self.vec.reset()
        self.tracker.begin(self.vec.info.max_episode_steps)

    def add(self, actions: Tensor, obs: np.ndarray) -> None:
        """Takes in the actions (T, N) or (T, N, A) of an iteration, and what is seen after it (N, *obs_shape)."""
        if self.config.checkpoint_iterations:  # else nothing is ever resumed
            self.newest.append(actions.cpu())
        self.obs = obs

    def state(self) -> dict[str, Any]:
        """What a resumed training goes on from."""
        return {
            "since": self.since, "actions": list(self.actions), "running": torch.as_tensor(self.tracker.running.copy())
        }  # fmt: skip

    def close(self) -> None:
        if self.since >= 0:
            self.since = -1
            self.vec.close()
