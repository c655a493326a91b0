"""What an agent brings along from the round before: its value, when the reward has changed, and its policy.

Each reward model's zero is the mean of the clips labeled so far, and that moves. The value of the round before is then
wrong by several times what it differs from state to state (docs/benchmarks.md). While it is too high an end, which is
worth what the new reward model says, looks like a great loss, and the agent learns to stand still; while it is too low,
like a gain. Returns that bootstrap from the value itself mend that only slowly, from rollout to rollout.

And an agent that has pushed as hard as it can means to push harder still, since what lies beyond the bounds of an
action is cut off. There noise changes nothing, so it learns nothing else from the new reward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlhf_gym.config import Config

if TYPE_CHECKING:
    from rlhf_gym.team import Team
    from rlhf_gym.train import Agent, Rollout

TIMES = 2  # rollouts at the start of a round with which it is done: with each the chance in them comes in anew
MOST = 2.0  # that the value is multiplied by at once
DIFFERS = 1e-6  # of its mean square: what differs less is the same in all states, and only chance would multiply it


def begin(agent: Agent, roll: Rollout, config: Config, team: Team, value_only: bool) -> None:
    """What is done with one of the first TIMES rollouts of a round, in place.

    Args:
        value_only: whether the policy stays as it is for this rollout, so that it may differ from the one that played.
    """
    rescale(agent, roll, config, team)
    if value_only and config.round_std > 0 and not agent.discrete:
        bound(agent, roll, team)


@torch.no_grad()
def bound(agent: Agent, roll: Rollout, team: Team) -> None:
    """Brings the means of continuous actions back to the bounds of [-1, 1], in place.

    Each output of the policy's last layer is divided by its root mean square over the rollout where that is above one.
    """
    means, _ = agent(roll.obs.flatten(0, 1))  # (T N, A)
    factor = (1 / team.all_gather(means.square().mean(0)[None]).mean(0).sqrt()).clamp_max(1.0)
    last: Any = agent.actor[-1] if isinstance(agent.actor, nn.Sequential) else agent.actor
    last.weight.mul_(factor[:, None])
    last.bias.mul_(factor)


@torch.no_grad()
def rescale(agent: Agent, roll: Rollout, config: Config, team: Team) -> None:
    """Brings the agent's value, and what the rollout noted of it, to the scale of the rollout's rewards, in place.

    V becomes a V + b, the two numbers that solve the temporal-difference equations of the rollout: the errors
    r + gamma V' - V then have a mean of zero and, unless 0 <= a <= MOST forbids it, do not go with V (least squares,
    Bradtke and Barto 1996). An end is worth what `train.gae` takes it for. All processes of a team find the same two.
    """
    over = roll.terminated & (config.episode_ends == "absorb")
    reward = roll.rewards + over * (config.gamma / (1 - config.gamma)) * roll.absorbing
    fall = roll.values - config.gamma * ~over * roll.next_values  # of V by the step: what its reward should be
    one = 1 - config.gamma * (~over).float()  # the same if V were one everywhere
    reward, fall, one, v = (x.cpu().double() for x in (reward, fall, one, roll.values))
    means = torch.stack([x.mean() for x in (reward, fall, one, v * reward, v * fall, v * one, v, v * v)])
    r, f, e, vr, vf, ve, m, vv = team.all_gather(means[None]).mean(0).tolist()
    spread = vf - ve * f / e
    a = min(max((vr - ve * r / e) / spread, 0.0), MOST) if spread > 0 and vv - m * m > DIFFERS * vv else 1.0
    b = (r - a * f) / e
    last: Any = agent.critic[-1] if isinstance(agent.critic, nn.Sequential) else agent.critic
    last.weight *= a
    last.bias.mul_(a).add_(b)
    for values in (roll.values, roll.next_values):
        values.mul_(a).add_(b)
