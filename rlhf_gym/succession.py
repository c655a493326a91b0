"""From one round's agent to the next: where it begins, and which of the two is kept.

An agent that learned from a mistaken reward is often too sure of it to try what the next one likes, and one that has
just learned may be worse than it was (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rlhf_gym.config import Config
from rlhf_gym.envs import Envs
from rlhf_gym.episodes import mean_reward
from rlhf_gym.seeds import PHASE_SEED
from rlhf_gym.train import Agent, RewardModel, rollout

EPISODES = 8  # one in each environment
STEPS = 400  # of each at most
CHUNK = 50  # steps between looks at the clock and at what the person wants
SECONDS = 30.0  # for both agents
SURE = 2.0  # standard errors by which the agent of before must be liked better


def softness(config: Config, number: int) -> tuple[float, float]:
    """The factor and the standard deviation for `soften` at the start of that round, 1 or later.

    If it fades the factor is the n-th root of --soften-policy.
    """
    factor = config.soften_policy ** (1 / number if config.soften_fades else 1)
    return factor, config.round_std if factor == 1 else max(config.round_std, config.initial_std)


def soften(agent: Agent, factor: float, std: float) -> None:
    """Makes the policy more random, in place: its last layer times `factor`, its standard deviation `std` at least.

    What lies below that layer stays, and so does the value. A factor of 1 and a standard deviation of 0 change nothing.
    """
    last: Any = agent.actor[-1] if isinstance(agent.actor, nn.Sequential) else agent.actor
    with torch.no_grad():
        last.weight *= factor
        last.bias *= factor
        if not agent.discrete and std > 0:
            agent.log_std.clamp_(min=math.log(std))


class Trial:
    """An agent in some episodes, judged by a reward model."""

    def __init__(self, agent: Agent, model: RewardModel, config: Config, round: int) -> None:
        self.agent, self.model, self.config = agent, model, config
        self.vec = Envs(config, EPISODES, (config.seed, round, PHASE_SEED["train_agent"], 1 << 20))
        self.sums, self.lengths = torch.zeros(2, EPISODES, device=model.scale.device)
        self.running = torch.ones_like(self.sums, dtype=torch.bool)
        self.after = torch.full_like(self.sums, torch.nan)
        self.obs: np.ndarray | None = None

    def play(self, steps: int) -> None:
        """The likeliest actions for so many steps."""
        obs = self.vec.reset() if self.obs is None else self.obs
        some = replace(self.config, num_steps=steps)
        roll, self.obs, _ = rollout(self.agent, self.vec, obs, some, None, self.sums.device)
        self.model.score(roll)
        for t in range(steps):
            self.sums, self.lengths = self.sums + roll.rewards[t] * self.running, self.lengths + self.running
            if self.config.episode_ends == "absorb":
                self.after = torch.where(self.running & roll.terminated[t], roll.absorbing[t], self.after)
                self.running = self.running & ~(roll.terminated[t] | roll.truncated[t])

    def worth(self, horizon: int) -> torch.Tensor:
        """The mean predicted reward of each episode (EPISODES,), as long as `horizon` where it has ended by itself."""
        rest = torch.where(self.after.isnan(), 0.0, horizon - self.lengths)
        return mean_reward(self.sums, self.lengths, self.after.nan_to_num(), rest)


@torch.no_grad()
def worth(
    agents: Sequence[Agent],
    model: RewardModel,
    config: Config,
    round: int,
    heed: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[torch.Tensor]:
    """For each agent the mean predicted reward of each of some episodes, (EPISODES,), the likeliest actions taken.

    An episode that ends goes on with what its end is worth; one that is cut off counts as far as it went, and so do
    all where it takes longer than SECONDS, at the same step for each agent. With episode_ends "hide" the next one goes
    on in its place.

    Args:
        heed: called now and then; it may break this off by raising.
        clock: gives the seconds that count.
    """
    with contextlib.ExitStack() as stack:
        trials = list[Trial]()
        for agent in agents:
            trials.append(Trial(agent, model, config, round))
            stack.callback(trials[-1].vec.close)
        began, done = clock(), 0
        horizon = min(trials[0].vec.info.max_episode_steps or STEPS, STEPS)
        while done < horizon and (done == 0 or clock() - began < SECONDS):
            going = [trial for trial in trials if trial.running.any()]
            if not going:
                break
            steps = min(CHUNK, horizon - done)
            for trial in going:
                heed()
                trial.play(steps)
            done += steps
        return [trial.worth(horizon) for trial in trials]


def kept(trained: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether the agent just trained is kept, given the worth of some of its episodes and of the one before."""
    error = math.sqrt(float(trained.var() + before.var()) / len(trained))
    return float(trained.mean()) >= float(before.mean()) - SURE * error
