"""From one round's agent to the next: where it begins, and which of the two is kept.

An agent that learned from a mistaken reward is often too sure of it to try what the next one likes, and one that has
just learned may be worse than it was (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rlhf_gym.config import Config
from rlhf_gym.envs import Envs
from rlhf_gym.seeds import PHASE_SEED
from rlhf_gym.train import Agent, RewardModel, rollout

EPISODES = 16
STEPS = 400  # of each at most
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
def worth(agent: Agent, model: RewardModel, config: Config, round: int) -> torch.Tensor:
    """The mean predicted reward of each of some episodes, (EPISODES,), the likeliest actions taken.

    An episode that ends goes on with what its end is worth; one that is cut off counts as far as it went. With
    episode_ends "hide" the next one goes on in its place.
    """
    vec = Envs(config, EPISODES, (config.seed, round, PHASE_SEED["train_agent"], 1 << 20))
    steps = min(vec.info.max_episode_steps or STEPS, STEPS)
    some = replace(config, num_steps=steps, num_envs=EPISODES)
    roll, _, _ = rollout(agent, vec, vec.reset(), some, None, model.scale.device)
    vec.close()
    model.score(roll)
    if config.episode_ends == "hide":
        return roll.rewards.mean(0)
    over = roll.terminated | roll.truncated
    first = over & (over.cumsum(0) == 1)
    live = (over.cumsum(0) - over.long()) == 0
    rewards = (roll.rewards * live).sum(0)
    absorbing, ended = (roll.absorbing * first).sum(0), (roll.terminated & first).any(0)
    length = live.sum(0)
    return torch.where(ended, (rewards + (steps - length) * absorbing) / steps, rewards / length)


def kept(trained: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether the agent just trained is kept, given the worth of some of its episodes and of the one before."""
    error = math.sqrt(float(trained.var() + before.var()) / len(trained))
    return float(trained.mean()) >= float(before.mean()) - SURE * error
