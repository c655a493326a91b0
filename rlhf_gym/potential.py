"""How far a clip came: a potential of what is seen (Ng, Harada and Russell 1999), learned from the same labels.

Who compares two clips of a landing looks at where each came to, and from where. A reward of single steps says so only
in a roundabout way; a potential Φ(o) says it directly: a clip is worth Φ of its last step less Φ of its first, and a
step what Φ gained by it. Φ is linear in each number of an observation and in its size, so that some hundred labels pin
it down: how near, how slow, how upright. So is what each step after an end is worth, by what was seen just before, and
hardly by its being an end, or an agent that was shown crashes alone would hover for ever.
docs/benchmarks.md has what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rlhf_gym.labels import Labels
    from rlhf_gym.train import Rollout

LIMIT = 8.0  # times its spread, beyond which a number counts for no more
PENALTY = 0.3  # on the square of each weight of Φ, where what it weighs has a spread of one over the clips
END_PENALTY = 3.0  # the same after ends: what no clip has shown yet, a landing, is not to count as all crashes do
ANY_END_PENALTY = 30.0  # on what any end is worth: of crashes it is the speed and the tilt that were bad
LEAST_MOVE = 0.05  # spreads: what moves less within clips is taken to move so much, not blown up


class Potential(nn.Module):
    """K potentials, one for each member of a reward model, on the scale of its raw rewards."""

    spread: Tensor  # (D,) standard deviation of each number over the clips, or a quarter of |mean|, the larger
    weights: Tensor  # (K, 4 D + 1): of Φ; after an end, of what was seen before it, and of any end
    usual: Tensor  # (K,) what the networks give a live step of the labeled clips in the mean

    def __init__(self, members: int, numbers: int) -> None:
        super().__init__()
        self.register_buffer("spread", torch.ones(numbers))
        self.register_buffer("weights", torch.zeros(members, 4 * numbers + 1))
        self.register_buffer("usual", torch.zeros(members))

    def sees(self, obs: Tensor) -> Tensor:
        """obs (B, *obs_shape) -> each number and its size (B, 2 D), in spreads."""
        x = (obs.flatten(1) / self.spread.to(obs.device)).clamp(-LIMIT, LIMIT)
        return torch.cat([x, x.abs()], 1)

    def forward(self, obs: Tensor, beside: Tensor, ended: Tensor) -> Tensor:
        """What steps gain, or what each step after an end is worth: raw rewards (K, B).

        Args:
            obs, beside: (B, *obs_shape) what was seen, and what stands beside it: what a step led to (itself, where the
                episode ended by it), or, after an end, what was seen just before.
            ended: (B,) bool: which of the two it is.
        """
        there = self.sees(beside)
        gained, over = self.weights.split([there.shape[1], there.shape[1] + 1], 1)
        after = over[:, :-1] @ there.T + over[:, -1:]
        return torch.where(ended, after, gained @ (there - self.sees(obs)).T)

    def usual_step(self, raw: Tensor, ended: Tensor) -> Tensor:
        """What the networks, which give raw (K, B), have to say of an end: (K, 1), as of a usual step and no more.

        Else they would soon find that ends are bad, any end, where the clips have shown bad ones alone.
        """
        return raw[:, ~ended].mean(1, keepdim=True) if self.training and not ended.all() else self.usual[:, None]

    def tells(self, labels: Labels, per_clip: float) -> Tensor:
        """What the worth of each clip is linear in, (C, 4 D + 1), with `weights`.

        Args:
            per_clip: how many steps' rewards a clip's worth is (`train.REFERENCE_STEPS`).
        """
        over = labels.ended[labels.end - 1]
        held = (labels.count[labels.end - 1] * over)[:, None]
        live = (labels.end - 1 - over.long()).maximum(labels.begin)  # the last row of which it was
        first, last = self.sees(labels.obs[labels.begin]), self.sees(labels.obs[live])
        return torch.cat([last - first, held * last, held], 1) * (per_clip / labels.length[:, None])

    def fit(self, labels: Labels, loss: Callable[[Tensor, Tensor], Tensor], per_clip: float) -> None:
        """Finds the weights by logistic regression, each member's on its share of the labels.

        Args:
            loss: of log-odds that left is better (K, P) and what the labels say of it (P,), each by itself (K, P).
        """
        device = self.weights.device
        mean, std = labels.moments()
        self.to("cpu").spread.copy_(torch.maximum(std, 2 * mean.abs() / LIMIT))  # what stays far from zero counts
        told = self.tells(labels, per_clip)
        least = LEAST_MOVE * per_clip / float(labels.length.float().mean())
        size = told.std(0, unbiased=False).clamp_min(least).double()
        apart = (told[labels.left] - told[labels.right]).double() / size
        weights = torch.zeros(self.weights.shape, dtype=torch.float64, requires_grad=True)
        penalty = torch.full_like(size, END_PENALTY)
        penalty[: 2 * len(self.spread)], penalty[-1] = PENALTY, ANY_END_PENALTY
        far = (self.spread > std).repeat(2)  # nearly the same at every end, so each says that it was one
        penalty[2 * len(self.spread) : -1].masked_fill_(far, 10 * ANY_END_PENALTY)
        search = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            search.zero_grad()
            losses = loss(weights @ apart.T, labels.target.double())
            total = (losses * labels.weight).sum() + (penalty * weights.square()).sum()
            total.backward()
            return total

        search.step(closure)
        self.weights.copy_(weights.detach() / size)
        self.to(device)

    def logits(self, labels: Labels, per_clip: float) -> Tensor:
        """What it says of each pair, (K, P) log-odds that left is better, on the CPU."""
        told = self.tells(labels, per_clip)
        return self.weights.cpu() @ (told[labels.left] - told[labels.right]).T


def beside_rollout(roll: Rollout) -> Tensor:
    """What stands beside each step of a rollout and each of its ends, (T * N + E, *obs_shape), see `Potential.forward`.

    A step that an episode was cut off at led to what was seen last.
    """
    t, i = roll.ends.T
    led = torch.cat([roll.obs[1:], roll.last[None]])
    over = roll.terminated[t, i].reshape(-1, *[1] * (roll.finals.ndim - 1))
    led[t, i] = torch.where(over, roll.obs[t, i], roll.finals)
    return torch.cat([led.flatten(0, 1), roll.obs[t, i]])
