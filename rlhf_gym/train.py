"""The engine: networks, the Bradley-Terry reward ensemble, and PPO, on one page.

    python -m rlhf_gym.train cartpole-1                             retrain a session from its saved labels
    python -m rlhf_gym.train --env-id CartPole-v1 --reward env      plain PPO on the true reward

Shapes: T steps of a rollout or clip, N environments, B rows of a batch, K members of the reward model.

Sources: PPO as in Huang et al. 2022, "The 37 Implementation Details of Proximal Policy Optimization"; rewards from
comparisons as in Christiano et al. 2017, arXiv 1706.03741; absorbing states as in Kostrikov et al. 2019, arXiv
1809.02925.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlhf_gym import fast, quadratic, values
from rlhf_gym.config import Config
from rlhf_gym.envs import EnvInfo, Envs
from rlhf_gym.episodes import Stopwatch
from rlhf_gym.fast import VectorLearner
from rlhf_gym.honesty import mistake_rate, reward_metrics
from rlhf_gym.labels import Labels
from rlhf_gym.normalizer import normalizer_of, standardise
from rlhf_gym.potential import Potential, beside_rollout
from rlhf_gym.seeds import seed_from
from rlhf_gym.stretch import Stretch
from rlhf_gym.team import Team

REFERENCE_STEPS = 25.0  # a clip's reward is its mean per step times this, so clips of any length compare alike
END_SPEED = 10.0  # a lone number moves by one step size at a time, a network by many: r_abs would lag behind it
REWARD_SPREAD = 10.0  # standard deviation of the predicted reward, times 1 / (1 - gamma); see RewardModel.fit_scale

# ---------------------------------------------------------------------------------------------- networks


def layer(module: Any, std: float = math.sqrt(2)) -> Any:
    """Orthogonal weights and biases of zero (detail 2 of the 37)."""
    nn.init.orthogonal_(module.weight, std)
    nn.init.zeros_(module.bias)
    return module


class Agent(nn.Module):
    """Policy and value. Vectors: two tanh MLPs. Images: one convolutional trunk with two heads (Mnih et al. 2015).

    Continuous actions live in [-1, 1]; `to_env` maps them to the environment's bounds.
    """

    low: Tensor
    high: Tensor

    def __init__(self, info: EnvInfo, config: Config) -> None:
        super().__init__()
        self.discrete, self.num_actions = info.num_actions is not None, info.num_actions
        outputs = info.num_actions or int(np.prod(info.action_shape))
        self.image, self.fast, self.narrow = info.image, config.fast, config.bfloat16
        self.normalizer = normalizer_of(info.obs_shape, info.image) if config.normalize_obs else None
        if info.image:
            trunk: list[nn.Module] = [layer(nn.Conv2d(info.obs_shape[0], 32, 8, 4)), nn.ReLU(inplace=True)]
            trunk += [layer(nn.Conv2d(32, 64, 4, 2)), nn.ReLU(inplace=True)]
            trunk += [layer(nn.Conv2d(64, 64, 3, 1)), nn.ReLU(inplace=True), nn.Flatten()]
            with torch.no_grad():
                features = nn.Sequential(*trunk)(torch.zeros(1, *info.obs_shape)).shape[1]
            self.trunk = nn.Sequential(*trunk, layer(nn.Linear(features, 512)), nn.ReLU(inplace=True))
            self.actor = layer(nn.Linear(512, outputs), std=0.01)
            self.critic = layer(nn.Linear(512, 1), std=1.0)
        else:
            self.trunk = nn.Sequential()  # nothing shared
            sizes = (int(np.prod(info.obs_shape)), config.hidden_size)
            self.actor, self.critic = self._mlp(*sizes, outputs, 0.01), self._mlp(*sizes, 1, 1.0)
        if not self.discrete:
            self.log_std = nn.Parameter(torch.full((outputs,), math.log(config.initial_std)))
            for name, bound in zip(("low", "high"), info.action_bounds(), strict=True):
                self.register_buffer(name, torch.as_tensor(bound, dtype=torch.float32))
            self.action_shape = info.action_shape

    @staticmethod
    def _mlp(inputs: int, hidden: int, outputs: int, std: float) -> nn.Module:
        first, second = layer(nn.Linear(inputs, hidden)), layer(nn.Linear(hidden, hidden))
        return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), layer(nn.Linear(hidden, outputs), std))

    def forward(self, obs: Tensor, value_only: bool = False) -> tuple[Tensor, Tensor]:
        """obs (B, *obs_shape) -> policy (B, A): logits or means, value (B,); with value_only no gradient reaches what
        the policy uses too."""
        x = fast.pixels(obs, self.fast) if self.image else obs
        x = self.normalizer(x) if self.normalizer is not None else x
        with fast.precision(self, obs.device):
            features = self.trunk(x)
            policy, value = self.actor(features), self.critic(features.detach() if value_only else features)
        return policy.to(x.dtype), value.to(x.dtype).squeeze(-1)

    def log_prob(self, policy: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """policy (B, A), actions (B,) or (B, A) -> log-probability (B,), entropy (B,)."""
        if self.discrete:
            log_p = policy.log_softmax(-1)
            return log_p.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(-1)
        gauss = torch.distributions.Normal(policy, self.log_std.exp().expand_as(policy), validate_args=False)
        return gauss.log_prob(actions).sum(-1), gauss.entropy().sum(-1)

    def sample(self, policy: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draws actions (B,) or (B, A); with generator None the likeliest ones."""
        if generator is None:
            return policy.argmax(-1) if self.discrete else policy
        if self.discrete:  # the Gumbel-max trick: one argmax instead of a normalised distribution
            noise = torch.empty_like(policy).exponential_(generator=generator)
            return (policy.log_softmax(-1) - noise.log()).argmax(-1)
        noise = torch.empty_like(policy).normal_(generator=generator)
        return policy + self.log_std.exp() * noise

    def choose(self, obs: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """obs (B, *obs_shape) -> actions drawn (B,) or (B, A), their log-probabilities (B,), values (B,)."""
        policy, value = self(obs)
        actions = self.sample(policy, generator)
        return actions, self.log_prob(policy, actions)[0], value

    def within_bounds(self, actions: Tensor) -> Tensor:
        """Continuous actions (B, A), of which [-1, 1] counts -> (B, *action_shape) within the environment's bounds."""
        scaled = self.low.flatten() + (actions.clamp(-1, 1) + 1) / 2 * (self.high - self.low).flatten()
        return scaled.reshape(-1, *self.action_shape)

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Actions as the environment takes them: (B,) int64, or (B, *action_shape) float32 within its bounds."""
        return (actions if self.discrete else self.within_bounds(actions)).cpu().numpy()

    def from_env(self, actions: Tensor) -> Tensor:
        """The inverse of to_env, for continuous actions (B, *action_shape) -> (B, A) in [-1, 1]."""
        if self.discrete:
            return actions
        low, high = (bound.flatten().to(actions.device) for bound in (self.low, self.high))
        return ((actions.flatten(1) - low) / (high - low).clamp_min(1e-8) * 2 - 1).clamp(-1, 1)

    @torch.no_grad()
    def act(self, obs: np.ndarray, generator: torch.Generator | None = None) -> np.ndarray:
        """obs (B, *obs_shape) -> actions for the environment; the likeliest ones unless a generator is given."""
        device = next(self.parameters()).device
        policy, _ = self(torch.as_tensor(obs, device=device))
        return self.to_env(self.sample(policy, generator))


class RewardModel(nn.Module):
    """K reward models trained as one: r(o, a), or r(o) without `reward_sees_action`, and r_abs(o) after an end in o:
    what that frame, which the person sees held, gives on all actions alike, plus a learned number. With
    `reward_potential` a step also gives what a potential of observations gained by it, and an end what that says of it.

    Vectors go through K two-layer MLPs (batched matrix products), or with `reward_quadratic` one layer on their
    products; images through K of Christiano's convolutional networks (2017, A.2; grouped, no batch norm) first.
    """

    obs_mean: Tensor  # the reward model's own input statistics, fixed by train_reward
    obs_std: Tensor
    offset: Tensor
    scale: Tensor
    trust: Tensor

    def __init__(self, info: EnvInfo, config: Config) -> None:
        super().__init__()
        self.members, self.image = config.ensemble_size, info.image
        self.fast, self.narrow = config.fast, config.bfloat16
        self.num_actions, self.sees_action = info.num_actions, config.reward_sees_action
        k, actions = self.members, info.num_actions or int(np.prod(info.action_shape))
        if info.image:
            c = 16 * k
            convs: list[nn.Module] = [nn.Conv2d(info.obs_shape[0], c, 7, 3), nn.LeakyReLU(0.01, inplace=True)]
            for kernel, stride, padding in ((5, 2, 0), (3, 1, 1), (3, 1, 1)):
                convs += [nn.Conv2d(c, c, kernel, stride, padding, groups=k), nn.LeakyReLU(0.01, inplace=True)]
            self.convs = nn.Sequential(*convs)
            with torch.no_grad():
                inputs = self.convs(torch.zeros(1, *info.obs_shape)).numel() // k
        else:
            inputs = int(np.prod(info.obs_shape))
        shape = info.obs_shape[1:] if info.image else (inputs,)  # as in PixelNormalizer
        self.register_buffer("obs_mean", torch.zeros(shape))
        self.register_buffer("obs_std", torch.ones(shape))
        told, hidden = inputs + actions * self.sees_action, [64] if info.image else [config.reward_hidden] * 2
        discrete = (info.num_actions or 0) * self.sees_action
        self.products = quadratic.Products(told, discrete) if config.reward_quadratic and not info.image else None
        sizes = [told, *hidden, 1] if self.products is None else [self.products.outputs, 1]
        self.weights = nn.ParameterList(
            torch.randn(k, a, b) * math.sqrt((2 if b > 1 else 0.1) / a) for a, b in pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(k, 1, b) for b in sizes[1:])
        linear = config.reward_potential and not info.image and config.episode_ends == "absorb"
        self.potential = Potential(k, inputs) if linear else None
        self.absorbing = nn.Parameter(torch.zeros(k))  # what any end is worth to each member, over END_SPEED
        self.register_buffer("trust", torch.ones(()))  # how much of r(o) an end in o is worth beside that
        self.register_buffer("scale", torch.ones(k))
        self.register_buffer("offset", torch.zeros(k))
        self.regions: list[tuple[int, int, int, int]] = []  # painted over, else it learns to read the score

    def sees(self, obs: Tensor, actions: Tensor, ended: Tensor | None) -> Tensor:
        """What the layers are given of each step, (K, B, inputs); arguments as of forward."""
        if self.image:
            x = standardise(fast.pixels(obs, self.fast), self.obs_mean, self.obs_std)
            for top, bottom, left, right in self.regions:
                x[..., top:bottom, left:right] = 0.0
            with fast.precision(self, obs.device):
                x = self.convs(x)
            x = x.float().reshape(len(obs), self.members, -1).transpose(0, 1)
        else:
            x = ((obs.flatten(1) - self.obs_mean) / self.obs_std).clamp(-10, 10).expand(self.members, -1, -1)
        if self.sees_action:
            a = F.one_hot(actions.long(), self.num_actions).float() if self.num_actions else actions.flatten(1)
            if ended is not None:
                a = torch.where(ended[:, None], 1 / self.num_actions if self.num_actions else 0.0, a)
            x = torch.cat([x, a.expand(self.members, -1, -1)], -1)
        return x if self.products is None else self.products(x)

    def forward(
        self, obs: Tensor, actions: Tensor, ended: Tensor | None = None, beside: Tensor | None = None
    ) -> Tensor:
        """obs (B, *obs_shape), actions (B,) or (B, A) in [-1, 1] -> raw rewards (K, B).

        Args:
            ended: (B,) bool: whether the step comes after an episode's end in obs, and its action does not count.
            beside: what stands beside obs (see `Potential.forward`); without it the potential has no part in it.
        """
        x = self.sees(obs, actions, ended)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight) if self.products is None else bias + quadratic.weigh(x, weight)
            if i < len(self.weights) - 1:
                x = torch.tanh(x)  # bounded: a state never labeled gets no wild reward (docs/benchmarks.md)
        r, constant = x.squeeze(-1), self.biases[-1].squeeze(-1)  # which no label speaks of, so an end has all of it
        if ended is None:
            return r
        if self.potential is None:
            return torch.where(ended, constant + self.trust * (r - constant) + END_SPEED * self.absorbing[:, None], r)
        r = torch.where(ended, self.potential.usual_step(r, ended), r)
        return r if beside is None else r + self.potential(obs, beside, ended)

    @torch.no_grad()
    def reward(
        self, obs: Tensor, actions: Tensor, ended: Tensor | None = None, beside: Tensor | None = None, batch: int = 4096
    ) -> Tensor:
        """The predicted reward (B,): the members' scaled rewards, averaged. Arguments as of forward."""
        ended = torch.zeros(len(obs), dtype=torch.bool, device=obs.device) if ended is None else ended
        given = (obs, actions, ended, obs if beside is None else beside)  # by itself it has gained nothing
        parts = zip(*(x.split(256 if self.image else batch) for x in given), strict=True)
        return self.scaled(torch.cat([self(*part) for part in parts], 1))

    def scaled(self, raw: Tensor) -> Tensor:
        """Raw rewards (K, B) -> the predicted reward (B,)."""
        return ((raw - self.offset[:, None]) * self.scale[:, None]).mean(0)

    def score(self, roll: Rollout, _true_rewards: np.ndarray | None = None) -> None:
        """Fills in the rewards (T, N) of a rollout, and those after an end; the true rewards are not looked at."""
        t, i = roll.ends.T
        obs = torch.cat([roll.obs.flatten(0, 1), roll.finals])
        actions = torch.cat([roll.actions.flatten(0, 1), roll.actions[t, i]])
        actions = actions if self.num_actions else actions.clamp(-1, 1)  # as the environment took them
        ended = torch.arange(len(obs), device=obs.device) >= roll.values.numel()
        then = None if self.potential is None else beside_rollout(roll)
        rewards, absorbing = self.reward(obs, actions, ended, then).split([roll.values.numel(), len(t)])
        roll.rewards, roll.absorbing = rewards.reshape(roll.values.shape), torch.zeros_like(roll.values)
        roll.absorbing[t, i] = absorbing

    def fit_scale(self, raw: Tensor, count: Tensor, gamma: float) -> None:
        """Fixes each member's offset and scale so that PPO's value targets are of order one.

        The statistics cover every step of the labeled clips, absorbing ones too, on raw outputs: mean zero,
        standard deviation REWARD_SPREAD * (1 - gamma). A member that finds no difference gives no reward at all,
        rather than amplified noise. raw (K, R): of the clips' rows, see `Labels`; each stands for count (R,) steps."""
        mean = (raw * count).sum(1) / count.sum()
        std = (((raw - mean[:, None]) ** 2 * count).sum(1) / count.sum()).sqrt()
        self.offset.copy_(mean)
        self.scale.copy_(torch.where(std > 1e-4, REWARD_SPREAD * (1 - gamma) / std.clamp_min(1e-4), 0.0))


# ---------------------------------------------------------------------------------------------- the reward model


def clip_rewards(
    model: RewardModel, labels: Labels, clips: Tensor, device: torch.device, raw: Tensor | None = None, **drawn: Any
) -> Tensor:
    """Raw rewards (K, C) of clips (C,): mean per step times REFERENCE_STEPS, absorbing steps counted. raw (K, R): what
    the model gives each row of `labels`, where that is known; drawn: at_most and generator of `Labels.rows_of`."""
    rows, owner, count = labels.rows_of(clips, **drawn)
    raw = model(*labels.steps(rows, device)) if raw is None else raw[:, rows.to(device)]  # (K, B)
    sums = torch.zeros(model.members, len(clips), device=device)
    sums = sums.index_add(1, owner.to(device), raw * count.to(device))
    return sums / labels.length[clips].to(device) * REFERENCE_STEPS


def pair_logits(
    model: RewardModel, labels: Labels, pairs: Tensor, device: torch.device, raw: Tensor | None = None, **drawn: Any
) -> Tensor:
    """Log-odds (K, P) that left is better, for pairs (P,) given by position; raw, drawn: as above."""
    sums = clip_rewards(model, labels, torch.cat([labels.left[pairs], labels.right[pairs]]), device, raw, **drawn)
    return sums[:, : len(pairs)] - sums[:, len(pairs) :]


def label_loss(logits: Tensor, target: Tensor, mistake_rate: float) -> Tensor:
    """Bradley-Terry cross-entropy (K, P): ONE softmax over the two clips, with labels flipped at a known rate m, so the
    likelihood of a label is (1 - 2m) p + m. logits (K, P): log-odds that left is better; target (P,): what the label
    says of P(left is better), 1/2 for equal."""
    if mistake_rate < 1e-6:  # which float32 does not tell from none where p is 1
        return F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    p = (1 - 2 * mistake_rate) * torch.sigmoid(logits) + mistake_rate
    return -(target * p.log() + (1 - target) * (1 - p).log())


def train_reward(
    model: RewardModel, labels: Labels, config: Config, device: torch.device, *, state: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    report: Callable[[int, int, dict[str, float]], None] | None = None, save_every: int = 200,
) -> dict[str, float]:  # fmt: skip
    """Fits the reward model to the labels, fixes its scale, and returns what can be said of it.

    Args:
        state, save, save_every: an in-phase checkpoint to go on from, and where to put one every so many steps.
        report: called with (step, steps, metrics) about ten times.

    Returns:
        what `honesty.reward_metrics` says of it. From 30 hidden repeats on, the loss allows for as many mistakes as
        these speak for; before that for config.assumed_mistake_rate.
    """
    count = len(labels.pairs)
    weight, target = labels.weight.to(device), labels.target.to(device)
    mistakes = mistake_rate(labels.pairs, config.assumed_mistake_rate)
    loss, batch = partial(label_loss, mistake_rate=mistakes), min(config.reward_batch_pairs, count)
    steps = max(1, min(config.reward_steps, config.reward_epochs * math.ceil(count / batch)))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.reward_learning_rate, weight_decay=config.reward_weight_decay, fused=config.fast
    )
    generator = torch.Generator().manual_seed(config.seed)
    order, begin = torch.empty(0, dtype=torch.int64), 0
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        order, begin = state["order"], state["step"]
    else:
        model.trust.fill_(1 / (1 + float(labels.ended.sum()) / config.ends_alike))
        for fixed, found in zip((model.obs_mean, model.obs_std), labels.moments(), strict=True):
            fixed.copy_(found)
        if model.potential is not None:  # first, and for good: what it does not explain is left to the networks
            model.potential.fit(labels, loss, REFERENCE_STEPS)
    known = 0 * weight if model.potential is None else model.potential.logits(labels, REFERENCE_STEPS).to(device)
    if model.products is not None:  # one layer, whose weights can be found at once
        quadratic.fit(model, labels, loss, REFERENCE_STEPS, END_SPEED)
        steps = begin
        if report is not None:
            report(1, 1, {})
    model.train()
    for step in range(begin, steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        pairs, order, losses = order[:batch], order[batch:], list[Tensor]()
        optimizer.zero_grad()
        for part in fast.parts(pairs, model, labels, config.reward_clip_steps):
            logits = pair_logits(model, labels, part, device, at_most=config.reward_clip_steps, generator=generator)
            losses.append(loss(logits + known[:, part], target[part]))
            ((losses[-1] * weight[:, part]).sum() / batch).backward()
        optimizer.step()
        if save is not None and (step + 1) % save_every == 0 and step + 1 < steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "order": order}
            save({**state, "generator": generator.get_state(), "step": step + 1})
        if report is not None and ((step + 1) % max(1, steps // 10) == 0 or step + 1 == steps):
            report(step + 1, steps, {"reward/loss": float(torch.cat(losses, 1).detach().mean())})
    model.eval()
    with torch.no_grad():
        rows = torch.arange(len(labels.actions)).split(256 if model.image else 8192)
        if model.potential is not None and not labels.ended.all():
            raw = torch.cat([model(*labels.steps(part, device)) for part in rows], 1)
            model.potential.usual.copy_(raw[:, ~labels.ended.to(device)].mean(1))
        raw = torch.cat([model(*labels.steps(part, device), labels.beside(part, device)) for part in rows], 1)
        model.fit_scale(raw, labels.count.to(device), config.gamma)
        model.scale *= (weight * (target != 0.5)).sum(1) > 0  # a member that saw no decided pair knows nothing
        labels.logits = logits = pair_logits(model, labels, torch.arange(count), device, raw)
    return reward_metrics(logits, loss(logits, target), target, weight, mistakes)


# ---------------------------------------------------------------------------------------------- PPO


@dataclass
class Rollout:
    obs: Tensor  # (T, N, *obs_shape)
    actions: Tensor  # (T, N) or (T, N, A)
    log_probs: Tensor  # (T, N)
    values: Tensor  # (T, N)
    next_values: Tensor  # (T, N) value of what each step led to, wherever that was
    rewards: Tensor  # (T, N) filled in once per rollout, and so is
    absorbing: Tensor  # (T, N) of the steps after an end, where one was
    ends: Tensor  # (E, 2) int64: step and environment of each end
    finals: Tensor  # (E, *obs_shape) what was seen last
    terminated: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool
    last: Tensor  # (N, *obs_shape) what the last step led to


def rollout(
    agent: Agent, vec: Envs, obs: np.ndarray, config: Config, generator: torch.Generator | None, device: torch.device,
    watch: Stopwatch | None = None, learner: VectorLearner | None = None,
) -> tuple[Rollout, np.ndarray, np.ndarray]:  # fmt: skip
    """Acts for num_steps steps. Returns the rollout, the next observation, and the true rewards (T, N)."""
    t_max, n, watch = config.num_steps, vec.num_envs, watch or Stopwatch()
    batch: dict[str, list[Any]] = {k: [] for k in ("obs", "actions", "log_probs", "values", "terminated", "truncated")}
    true_rewards, ends, finals = np.zeros((t_max, n), np.float32), list[tuple[int, int]](), list[np.ndarray]()
    for t in range(t_max):
        x = torch.as_tensor(obs, device=device)
        with torch.no_grad():
            actions, log_prob, value = (learner or agent).choose(x, generator)
        native = agent.to_env(actions)
        watch.lap("inference")
        step = vec.step(native)
        watch.lap("environment")
        true_rewards[t] = step.rewards
        for i in np.flatnonzero(step.truncated | step.terminated):
            ends.append((t, int(i)))
            finals.append(step.final_obs[i])
        over = torch.as_tensor(step.terminated), torch.as_tensor(step.truncated)
        for name, tensor in zip(batch, (x, actions, log_prob, value, *over), strict=True):
            batch[name].append(tensor)
        obs = step.obs
    stacked = {k: torch.stack(v).to(device) for k, v in batch.items()}
    with torch.no_grad():
        last = torch.as_tensor(obs, device=device)
        next_values = torch.cat([stacked["values"][1:], agent(last)[1][None]])
        where = torch.tensor(ends, dtype=torch.int64, device=device).reshape(-1, 2)
        seen = torch.as_tensor(np.stack(finals), device=device) if ends else stacked["obs"][:0, 0]
        if ends and config.episode_ends == "absorb":  # life goes on past a truncation, unseen
            next_values[where[:, 0], where[:, 1]] = agent(seen)[1]
    empty = {name: torch.zeros_like(next_values) for name in ("rewards", "absorbing")}
    return Rollout(**stacked, **empty, next_values=next_values, ends=where, finals=seen, last=last), obs, true_rewards


def gae(roll: Rollout, config: Config) -> tuple[Tensor, Tensor]:
    """Generalised advantages and returns, both (T, N).

    A termination leads into a state that gives r_abs for ever, worth r_abs / (1 - gamma); a truncation leads on as if
    nothing had happened. With episode_ends "hide" every reset is an ordinary transition.
    """
    next_values, goes_on = roll.next_values, torch.ones_like(roll.rewards)
    if config.episode_ends == "absorb":
        next_values = torch.where(roll.terminated, roll.absorbing / (1 - config.gamma), next_values)
        goes_on = (~(roll.terminated | roll.truncated)).float()
    delta = roll.rewards + config.gamma * next_values - roll.values
    advantages, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + config.gamma * config.gae_lambda * goes_on[t] * running
        advantages[t] = running
    return advantages, advantages + roll.values


def ppo_loss(
    agent: Agent, mb: Mapping[str, Tensor], config: Config, value_only: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate, value loss and entropy bonus of one minibatch (B rows in each entry of mb)."""
    policy, new_value = agent(mb["obs"], value_only=value_only)
    if config.clip_vloss and not value_only:
        clipped = mb["values"] + (new_value - mb["values"]).clamp(-config.clip_coef, config.clip_coef)
        v_loss = 0.5 * torch.max((new_value - mb["returns"]) ** 2, (clipped - mb["returns"]) ** 2).mean()
    else:
        v_loss = 0.5 * ((new_value - mb["returns"]) ** 2).mean()
    if value_only:
        return config.vf_coef * v_loss, {"losses/value_loss": v_loss.detach()}
    new_log_prob, entropy = agent.log_prob(policy, mb["actions"])
    log_ratio = new_log_prob - mb["log_probs"]
    ratio = log_ratio.exp()
    advantages = mb["advantages"]
    if config.norm_adv and len(advantages) > 1:  # one alone has no spread
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
    pg_loss = torch.max(unclipped, clipped).mean()
    loss = pg_loss - config.ent_coef * entropy.mean() + config.vf_coef * v_loss
    with torch.no_grad():
        approx_kl = ((ratio - 1) - log_ratio).mean()
        clipfrac = ((ratio - 1).abs() > config.clip_coef).float().mean()
    stats = {"losses/policy_loss": pg_loss.detach(), "losses/value_loss": v_loss.detach()}
    stats |= {"losses/entropy": entropy.mean().detach(), "losses/approx_kl": approx_kl, "losses/clipfrac": clipfrac}
    return loss, stats


def update(
    agent: Agent, optimizer: torch.optim.Optimizer | VectorLearner, roll: Rollout, advantages: Tensor, returns: Tensor,
    config: Config, generator: torch.Generator, value_only: bool = False, team: Team | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Several epochs of minibatches over one rollout. Returns the last minibatch's statistics, still on the device."""
    if isinstance(optimizer, VectorLearner):
        return optimizer.update(roll, advantages, returns, generator, value_only)
    fields = {"obs": roll.obs, "actions": roll.actions, "log_probs": roll.log_probs, "values": roll.values}
    flat = {k: v.flatten(0, 1) for k, v in (fields | {"advantages": advantages, "returns": returns}).items()}
    if config.fast and agent.image:
        flat["obs"] = flat["obs"].contiguous(memory_format=torch.channels_last)
    team = team or Team()
    loss_of = team.averaged(ppo_loss, agent, value_only)
    rows, device = len(flat["returns"]), flat["returns"].device
    stats: dict[str, Tensor] = {}
    for _ in range(config.update_epochs):
        shuffled = torch.randperm(rows, generator=generator, device=device)
        for mb_inds in shuffled.tensor_split(config.num_minibatches):
            loss, stats = loss_of(agent, {k: v[mb_inds] for k, v in flat.items()}, config, value_only)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), config.max_grad_norm)
            optimizer.step()
        if not value_only and 0 < config.target_kl < team.all_reduce_mean(stats["losses/approx_kl"]):
            break  # the rollout tells little of a policy so far from the one that played it
    return stats


def train_agent(
    agent: Agent, score: Callable[[Rollout, np.ndarray], None], config: Config, device: torch.device, *, steps: int,
    seed_path: tuple[int, ...], warmup: int = 0, state: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    report: Callable[[int, int, dict[str, float]], bool | None] | None = None, team: Team | None = None,
) -> int:  # fmt: skip
    """PPO for at least `steps` steps.

    Randomness comes from seed_path alone. From a checkpoint the actions since the environments began are played again
    (see `Stretch`), so that a run that was killed and resumed equals one that was not, bit for bit.

    Args:
        score: fills in the rewards to learn from, of a rollout and its true rewards (see `RewardModel.score`).
        warmup: iterations that begin with rescaling the value (two at most) and fit it alone, unless there are few.
        state, save: an in-phase checkpoint to go on from, and where to put one.
        report: called after each iteration with (steps done, steps to do, metrics); true ends the training.
        team: the processes that train together, each with its share of the environments (see `Team.run`).

    Returns:
        steps done, by all of them.
    """
    team = team or Team()
    config, seed_path = team.part(config), team.path(seed_path)
    learner = fast.prepare(agent, config, device, alone=team.size == 1)
    optimizer = learner or torch.optim.Adam(agent.parameters(), lr=config.learning_rate, eps=1e-5, fused=config.fast)
    generator = torch.Generator(device).manual_seed(seed_from(*seed_path))
    per_iteration = config.num_envs * config.num_steps * team.size
    iterations = max(1, math.ceil(steps / per_iteration))
    every = config.checkpoint_iterations or iterations
    stretch, begin = Stretch(config, team, seed_path, every, lambda actions: agent.to_env(actions.to(device))), 0
    if state is not None:
        agent.load_state_dict(state["agent"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["iteration"]
        if len(state["generator"]) == len(generator.get_state()):
            generator.set_state(state["generator"])
        else:  # the session went on on another kind of device
            generator.manual_seed(seed_from(*seed_path, begin))
    iteration = begin - 1
    with contextlib.closing(stretch):
        for iteration in range(begin, iterations):
            if iteration == begin or iteration % every == 0:
                team.begin(generator, seed_path, iteration)
                stretch.go_on(iteration, (state or {}).get("stretch") if iteration == begin else None)
                if save is not None and (iteration > begin or state is None):
                    whole = {"agent": agent.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
                    save({**whole, "generator": generator.get_state(), "stretch": stretch.state()})
            share = 1 - iteration / iterations if config.anneal_lr else 1.0
            optimizer.param_groups[0]["lr"] = config.learning_rate * share
            clock, watch = time.perf_counter(), Stopwatch()
            roll, obs, true_rewards = rollout(
                agent, stretch.vec, stretch.obs, config, generator, device, watch, learner
            )
            stretch.add(roll.actions, obs)
            watch.lap("inference")
            score(roll, true_rewards)
            watch.lap("reward")
            value_only = iteration < min(warmup, iterations // 4)  # a short round must move the policy, too
            if iteration < min(warmup, values.TIMES):
                values.begin(agent, roll, config, team, value_only)
            advantages, returns = gae(roll, config)
            stats = update(agent, optimizer, roll, advantages, returns, config, generator, value_only, team)
            if agent.normalizer is not None:
                agent.normalizer.update(team.all_gather(agent.normalizer.newest(roll.obs.flatten(0, 1))))
            metrics = {k: float(v) for k, v in stats.items()}
            watch.lap("update")
            after = torch.where(roll.terminated & (config.episode_ends == "absorb"), roll.absorbing, torch.nan)
            numbers = [x.cpu().numpy() for x in (roll.rewards, roll.terminated | roll.truncated, after)]
            stretch.tracker.add(true_rewards, *numbers)
            metrics |= stretch.tracker.means() | watch.shares()
            residual = (returns - roll.values).var() / returns.var().clamp_min(1e-8)
            metrics["losses/explained_variance"] = 1 - float(residual)
            metrics["charts/predicted_reward"] = float(roll.rewards.mean())
            metrics["charts/SPS"] = per_iteration / (time.perf_counter() - clock)
            if team.over(report, (iteration + 1) * per_iteration, iterations * per_iteration, metrics):
                break
    return (iteration + 1) * per_iteration


if __name__ == "__main__":
    from rlhf_gym.retrain import main

    main()
