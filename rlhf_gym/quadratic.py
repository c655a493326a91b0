"""A quadratic function of what is seen, in place of a network: a reward that few labels pin down.

A network of tanh units says of states beyond those labeled whatever its weights come to; it may like them least of all,
and then an agent never goes there. A quadratic function (`--reward-quadratic`) goes on as it began: who turns and rises
is liked more for turning faster, and for doing so higher up. It is linear in its weights, so that a good fit can be
found at once. It knows no more, though: nothing that hangs on three numbers at once, no step, no corner.
docs/benchmarks.md has what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rlhf_gym.labels import Labels
    from rlhf_gym.train import RewardModel

PENALTY = 3.0  # on the square of each weight, where what it weighs differs by one between a pair's clips (RMS)
LEAST_SPREAD = 0.01  # what differs less between clips is taken to differ so much, not blown up
ROWS = 8192  # steps looked at together


class Products(nn.Module):
    """x (K, B, D) -> the same, and each product x_i x_j with i <= j, (K, B, outputs).

    Discrete actions, the last numbers, are not multiplied by each other: one of them is 1 and the others are 0.
    """

    def __init__(self, numbers: int, discrete: int) -> None:
        super().__init__()
        self.sizes = numbers - discrete, numbers
        self.outputs = numbers + torch.triu_indices(*self.sizes).shape[1]

    def forward(self, x: Tensor) -> Tensor:
        one = x[0]  # all members see the same
        i, j = torch.triu_indices(*self.sizes, device=one.device)
        return torch.cat([one, one[:, i] * one[:, j]], 1).expand(len(x), -1, -1)


def weigh(x: Tensor, weights: Tensor) -> Tensor:
    """x (K, B, F), alike for all members, and their weights (K, F, 1) -> sums (K, B, 1)."""
    return (weights.squeeze(-1) @ x[0].T).unsqueeze(-1)


@torch.no_grad()
def tells(model: RewardModel, labels: Labels, end_speed: float) -> Tensor:
    """The mean over each clip's steps of what its reward is linear in: (C, F), the last for the worth of any end."""
    rows, owner, count = labels.rows_of(torch.arange(len(labels.length)))
    sums = torch.zeros(len(labels.length), model.weights[0].shape[1] + 1)
    for part in torch.arange(len(rows)).split(ROWS):
        obs, actions, ended = labels.steps(rows[part])
        x = model.sees(obs, actions, ended)[0]
        x = torch.where(ended[:, None], model.trust * x, x)
        x = torch.cat([x, end_speed * ended[:, None]], 1)
        sums.index_add_(0, owner[part], x * count[part, None])
    return sums / labels.length[:, None]


def fit(
    model: RewardModel, labels: Labels, loss: Callable[[Tensor, Tensor], Tensor], per_clip: float, end_speed: float
) -> None:
    """Finds the model's weights, and what any end is worth, by logistic regression: each member's on its labels.

    Args:
        model: one whose only layer is that from `Products` to the reward.
        loss: of log-odds that left is better (K, P) and what the labels say of it (P,), each by itself (K, P).
        per_clip, end_speed: `train.REFERENCE_STEPS` and `train.END_SPEED`.
    """
    device = model.trust.device
    told = tells(model.to("cpu"), labels, end_speed) * per_clip
    apart = (told[labels.left] - told[labels.right]).double()
    spread = apart.square().mean(0).sqrt().clamp_min(LEAST_SPREAD)  # whichever side a clip was shown on
    apart = apart / spread
    weights = torch.zeros(model.members, apart.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        losses = loss(weights @ apart.T, labels.target.double())
        total = (losses * labels.weight).sum() + PENALTY * weights.square().sum()
        total.backward()
        return total

    search.step(closure)
    with torch.no_grad():
        found = weights / spread
        model.weights[0].copy_(found[:, :-1, None])
        model.biases[0].zero_()  # which no label speaks of
        model.absorbing.copy_(found[:, -1])
    model.to(device)
