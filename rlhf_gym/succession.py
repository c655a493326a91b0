"""From one round's agent to the next: where it begins, and which of the two is kept.

An agent that learned from a mistaken reward is often too sure of it to try what the next one likes, and one that has
just learned may be worse than it was (docs/benchmarks.md).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rlhf_gym.config import Config
from rlhf_gym.envs import Envs
from rlhf_gym.seeds import PHASE_SEED
from rlhf_gym.train import Agent, RewardModel, rollout

EPISODES = 8  # one in each environment
STEPS = 400  # of each at most
CHUNK = 50  # steps between looks at the clock and at what the person wants
SECONDS = 15.0
SURE = 2.0  # standard errors by which the agent of before must be liked better


def soften(agent: Agent, factor: float) -> None:
    """Makes the policy more random, in place: its last layer times `factor`, and a standard deviation of one at least.

    What lies below that layer stays, and so does the value.
    """
    if factor == 1:
        return
    last: Any = agent.actor[-1] if isinstance(agent.actor, nn.Sequential) else agent.actor
    with torch.no_grad():
        last.weight *= factor
        last.bias *= factor
        if not agent.discrete:
            agent.log_std.clamp_(min=0.0)


@torch.no_grad()
def worth(
    agent: Agent, model: RewardModel, config: Config, round: int, heed: Callable[[], None] = lambda: None
) -> torch.Tensor:
    """The mean predicted reward of each of some episodes, (EPISODES,), the likeliest actions taken.

    An episode that ends goes on with what its end is worth; one that is cut off counts as far as it went, and so do
    all where it takes longer than SECONDS. With episode_ends "hide" the next one goes on in its place.

    Args:
        heed: called now and then; it may break this off by raising.
    """
    began, vec = time.monotonic(), Envs(config, EPISODES, (config.seed, round, PHASE_SEED["train_agent"], 1 << 20))
    try:
        horizon = min(vec.info.max_episode_steps or STEPS, STEPS)
        sums, lengths = torch.zeros(2, EPISODES, device=model.scale.device)
        running, after = torch.ones_like(sums, dtype=torch.bool), torch.full_like(sums, torch.nan)
        obs, done = vec.reset(), 0
        while done < horizon and running.any() and (done == 0 or time.monotonic() - began < SECONDS):
            heed()
            some = replace(config, num_steps=min(CHUNK, horizon - done))
            roll, obs, _ = rollout(agent, vec, obs, some, None, sums.device)
            model.score(roll)
            done += some.num_steps
            for t in range(some.num_steps):
                sums, lengths = sums + roll.rewards[t] * running, lengths + running
                if config.episode_ends == "absorb":
                    after = torch.where(running & roll.terminated[t], roll.absorbing[t], after)
                    running = running & ~(roll.terminated[t] | roll.truncated[t])
    finally:
        vec.close()
    rest = torch.where(after.isnan(), 0.0, horizon - lengths)
    return (sums + rest * after.nan_to_num()) / (lengths + rest)


def kept(trained: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether the agent just trained is kept, given the worth of some of its episodes and of the one before."""
    error = math.sqrt(float(trained.var() + before.var()) / len(trained))
    return float(trained.mean()) >= float(before.mean()) - SURE * error
