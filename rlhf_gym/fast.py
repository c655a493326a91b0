"""The same PPO, sooner. `train.py` is the reference; a test holds what stands here against it.

Vectors: most of a small network's time goes to bookkeeping, so the gradient of `train.ppo_loss` is written out, and
the parameters lie in one vector. Images: memory is laid out for the convolutions, and kept rather than asked for anew.
`--no-fast` switches all of it off. docs/benchmarks.md says what each part gives, and that agents learn alike.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_gym.config import Config

if TYPE_CHECKING:
    from rlhf_gym.labels import Labels
    from rlhf_gym.train import Agent, RewardModel, Rollout

BETA1, BETA2, EPS = 0.9, 0.999, 1e-5  # of Adam, as in train.train_agent
CACHED_IMAGES = 400  # of an update of the reward model at once (docs/benchmarks.md)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names in malloc.h


def prepare(agent: Agent, config: Config, device: torch.device, alone: bool = True) -> VectorLearner | None:
    """Lays the agent's parameters out for training; for vectors gives what trains them, in a process alone: gradients
    written out are none that DDP could average."""
    if not config.fast:
        return None
    if agent.image:
        lay_out(agent)
        return None
    return VectorLearner(agent, config) if alone and device.type == "cpu" else None


def lay_out(model: Agent | RewardModel) -> None:
    """Puts channels last in memory, as convolutions want them."""
    keep_memory()
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def pixels(obs: Tensor, quick: bool) -> Tensor:
    """obs (B, S, H, W) uint8 -> float32 in [0, 1]; quick: channels last in memory, moved four times sooner as bytes."""
    return obs.contiguous(memory_format=torch.channels_last).float().div_(255.0) if quick else obs.float() / 255.0


def keep_memory() -> None:
    """Lets glibc keep what is freed. Else each large tensor is mapped, and its pages faulted in, at every operation."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        if not libc.mallopt(M_MMAP_THRESHOLD, 1 << 30):
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)  # the most that older versions take
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def parts(pairs: Tensor, model: RewardModel, labels: Labels, at_most: int = 0) -> tuple[Tensor, ...]:
    """A batch of pairs in parts whose gradients add up to the batch's, up to rounding: on a CPU, of images, what a part
    takes stays in the cache. Vectors are slower that way. at_most: as of `Labels.rows_of`."""
    if not (model.fast and model.image and model.scale.device.type == "cpu"):
        return (pairs,)
    rows = (labels.end - labels.begin)[torch.cat([labels.left[pairs], labels.right[pairs]])]
    images = (rows.clamp(max=at_most + 1) if at_most else rows).sum() / len(pairs)
    return pairs.split(max(1, round(CACHED_IMAGES / float(images))))


@functools.cache
def native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16 by itself, and so about twice as fast."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # which older versions of torch lack
        return False
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))


def precision(model: Agent | RewardModel, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Images: products in bfloat16 if the device has them, sums and parameters in float32 (docs/benchmarks.md)."""
    if not (model.fast and model.narrow and model.image and native_bfloat16(device)):
        return contextlib.nullcontext()
    # without a cache: that would keep the converted weights beyond the optimizer's step
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


class VectorLearner:
    """Acts with a vector agent and updates it: the numbers of train.rollout and train.update, up to rounding.

    Its state is that of torch.optim.Adam, so that either can go on from the other. An agent has one learner at a time:
    its parameters are views of the newest one's.
    """

    def __init__(self, agent: Agent, config: Config) -> None:
        self.agent, self.config = agent, config
        self.param_groups: list[dict[str, Any]] = [{"lr": config.learning_rate}]
        self.steps = {"actor": 0, "critic": 0}  # the critic has more: it warms up alone
        named = dict(agent.named_parameters())
        self.order = [f"{net}.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias") for net in ("actor", "critic")]
        self.order += [f"{net}.4.{kind}" for net in ("actor", "critic") for kind in ("weight", "bias")]
        self.order += [] if agent.discrete else ["log_std"]
        self.theta = torch.cat([named[n].detach().flatten() for n in self.order])
        self.grad, self.m, self.v = (torch.zeros_like(self.theta) for _ in range(3))
        for name, part in self._parts(self.theta).items():
            named[name].data = part
        ones = {n: torch.full_like(p, float(n.startswith("critic"))) for n, p in self._parts(self.theta).items()}
        self.critics = torch.cat([ones[n].flatten() for n in self.order]).bool()
        self.p, self.g = self._layers(self.theta), self._layers(self.grad)
        self.moments: Tensor | None = None  # the mean that `mean` and `std` were made of

    def _parts(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters' shares of a vector, by name."""
        named = dict(self.agent.named_parameters())
        sizes = [named[n].numel() for n in self.order]
        return {n: x.view_as(named[n]) for n, x in zip(self.order, flat.split(sizes), strict=True)}

    def _layers(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a vector by layer; the hidden layers of both networks stand side by side, so each is one product."""
        parts, i = self._parts(flat), 0
        hidden, inputs = parts["actor.0.weight"].shape
        shapes = {"w1": (2, hidden, inputs), "b1": (2, 1, hidden), "w2": (2, hidden, hidden), "b2": (2, 1, hidden)}
        layers = {}
        for name, shape in shapes.items():
            layers[name] = flat[i : i + math.prod(shape)].view(shape)
            i += math.prod(shape)
        last = {"wa": "actor.4.weight", "ba": "actor.4.bias", "wc": "critic.4.weight", "bc": "critic.4.bias"}
        return layers | {k: parts[n] for k, n in last.items()} | {"log_std": parts.get("log_std", flat[:0])}

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, D), normalised -> hidden layers (2, B, H) twice, policy (B, A), value (B,)."""
        p = self.p
        h1 = torch.baddbmm(p["b1"], x.expand(2, -1, -1), p["w1"].transpose(1, 2)).tanh_()
        h2 = torch.baddbmm(p["b2"], h1, p["w2"].transpose(1, 2)).tanh_()
        return h1, h2, torch.addmm(p["ba"], h2[0], p["wa"].t()), torch.addmv(p["bc"], h2[1], p["wc"][0])

    def normalise(self, obs: Tensor) -> Tensor:
        """As normalizer.Normalizer.forward, whose conversions are done once as long as its moments stay as they are."""
        if (normalizer := self.agent.normalizer) is None:
            return obs
        if self.moments is not normalizer.mean:
            self.moments = normalizer.mean
            self.mean, self.std = normalizer.mean.float(), (normalizer.var.float() + 1e-8).sqrt()
        return ((obs - self.mean) / self.std).clamp_(-10, 10)

    def choose(self, obs: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """As train.Agent.choose."""
        if generator is None:
            return self.agent.choose(obs, generator)
        _, _, policy, value = self._forward(self.normalise(obs))
        if not self.agent.discrete:
            actions = self.agent.sample(policy, generator)
            return actions, self._log_prob(policy, actions)[0], value
        log_p = policy.log_softmax(-1)
        actions = (log_p - torch.empty_like(policy).exponential_(generator=generator).log_()).argmax(-1)
        return actions, log_p.gather(1, actions[:, None]).squeeze(1), value

    def _log_prob(self, policy: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of continuous actions (B, A): log-probability (B,), distance from the mean in spreads (B, A), 1 / spread."""
        inverse = (-self.p["log_std"]).exp()
        z = (actions - policy) * inverse
        return (-0.5 * z**2 - self.p["log_std"] - 0.5 * math.log(2 * math.pi)).sum(1), z, inverse

    def backward(self, mb: Mapping[str, Tensor], value_only: bool = False, stats: bool = False) -> dict[str, Tensor]:
        """Writes the gradient of train.ppo_loss into `grad`; returns its statistics.

        Args:
            mb: as there, but observations and advantages normalised.
            stats: whether the statistics are wanted.
        """
        p, g, config, rows = self.p, self.g, self.config, len(mb["returns"])
        h1, h2, policy, value = self._forward(mb["obs"])
        error = value - mb["returns"]
        d_value = error
        if config.clip_vloss and not value_only:
            moved = value - mb["values"]
            clipped = mb["values"] + moved.clamp(-config.clip_coef, config.clip_coef) - mb["returns"]
            d_value = torch.where(error**2 >= clipped**2, error, clipped * (moved.abs() <= config.clip_coef))
            error = torch.maximum(error.abs(), clipped.abs())
        d_value = d_value * (config.vf_coef / rows)
        told = {"losses/value_loss": 0.5 * (error**2).mean()} if stats else {}
        if value_only:
            d_policy = torch.zeros_like(policy)
            g["log_std"].zero_()
        else:
            d_policy = self._policy_gradient(policy, mb, told, stats)
        # backwards through both networks
        torch.mm(d_policy.t(), h2[0], out=g["wa"])
        torch.sum(d_policy, 0, out=g["ba"])
        torch.mv(h2[1].t(), d_value, out=g["wc"][0])
        torch.sum(d_value, 0, keepdim=True, out=g["bc"])
        d2 = torch.stack([d_policy @ p["wa"], d_value[:, None] * p["wc"]])
        d2.addcmul_(d2 * h2, h2, value=-1)  # tanh' = 1 - tanh²
        torch.bmm(d2.transpose(1, 2), h1, out=g["w2"])
        torch.sum(d2, 1, keepdim=True, out=g["b2"])
        d1 = torch.bmm(d2, p["w2"])
        d1.addcmul_(d1 * h1, h1, value=-1)
        torch.bmm(d1.transpose(1, 2), mb["obs"].expand(2, -1, -1), out=g["w1"])
        torch.sum(d1, 1, keepdim=True, out=g["b1"])
        return told

    def _policy_gradient(
        self, policy: Tensor, mb: Mapping[str, Tensor], told: dict[str, Tensor], stats: bool
    ) -> Tensor:
        """The surrogate's and the entropy bonus's gradient by the policy (B, A); that by log_std goes into `grad`."""
        config, rows, actions = self.config, len(policy), mb["actions"]
        if self.agent.discrete:
            log_p = policy.log_softmax(-1)
            log_prob = log_p.gather(1, actions[:, None]).squeeze(1)
        else:
            log_prob, z, inverse = self._log_prob(policy, actions)
        log_ratio = log_prob - mb["log_probs"]
        ratio = log_ratio.exp()
        unclipped = mb["advantages"] * ratio
        surrogate = torch.minimum(unclipped, mb["advantages"] * ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef))
        d_log_prob = torch.where(unclipped <= surrogate, unclipped, 0.0) * (-1 / rows)
        if stats:
            told["losses/policy_loss"] = -surrogate.mean()
            told["losses/entropy"] = self.agent.log_prob(policy, actions)[1].mean().detach()
            told["losses/approx_kl"] = ((ratio - 1) - log_ratio).mean()
            told["losses/clipfrac"] = ((ratio - 1).abs() > config.clip_coef).float().mean()
        if self.agent.discrete:
            probs = log_p.exp()
            gradient = (probs * -d_log_prob[:, None]).scatter_add_(1, actions[:, None], d_log_prob[:, None])
            if config.ent_coef:
                entropy = -(probs * log_p).sum(1, keepdim=True)
                gradient.addcmul_(probs, log_p + entropy, value=config.ent_coef / rows)
            return gradient
        torch.sum((z**2 - 1) * d_log_prob[:, None], 0, out=self.g["log_std"])
        self.g["log_std"] -= config.ent_coef
        return z * inverse * d_log_prob[:, None]

    def step(self, value_only: bool = False) -> None:
        """Clips the gradient's norm, then one step of Adam (Kingma and Ba 2015)."""
        self.grad *= (self.config.max_grad_norm / (self.grad.norm() + 1e-6)).clamp(max=1.0)
        self.steps["critic"] += 1
        self.steps["actor"] += not value_only  # untouched till then: its gradients were zero, and so its moments
        self.m.lerp_(self.grad, 1 - BETA1)
        self.v.mul_(BETA2).addcmul_(self.grad, self.grad, value=1 - BETA2)
        if self.steps["actor"] == self.steps["critic"]:
            size, correction = self._size("critic")
            self.theta.addcdiv_(self.m, (self.v.sqrt() / correction).add_(EPS), value=-size)
        else:
            (size, correction), (size_a, correction_a) = self._size("critic"), self._size("actor")
            move = self.m / (self.v.sqrt() / torch.where(self.critics, correction, correction_a) + EPS)
            self.theta -= move * torch.where(self.critics, size, size_a)

    def _size(self, net: str) -> tuple[float, float]:
        """Adam's step size and the root of its correction for the second moment."""
        t = max(1, self.steps[net])
        return self.param_groups[0]["lr"] / (1 - BETA1**t), math.sqrt(1 - BETA2**t)

    def update(
        self, roll: Rollout, advantages: Tensor, returns: Tensor, generator: torch.Generator, value_only: bool = False
    ) -> dict[str, Tensor]:
        """As train.update."""
        with torch.inference_mode():
            obs, actions = self.normalise(roll.obs.flatten(0, 1)), roll.actions.flatten(0, 1)
            numbers = torch.stack([x.flatten() for x in (roll.log_probs, roll.values, returns, advantages)])
            parts = self.config.num_minibatches
            for _ in range(self.config.update_epochs):
                rows = torch.randperm(len(obs), generator=generator)
                columns = [x.contiguous() for x in numbers[:, rows].tensor_split(parts, dim=1)]
                batches = zip(obs[rows].tensor_split(parts), actions[rows].tensor_split(parts), columns, strict=True)
                for i, (mb_obs, mb_actions, mb) in enumerate(batches):
                    if self.config.norm_adv and mb.shape[1] > 1:
                        std, mean = torch.std_mean(mb[3])
                        mb[3].sub_(mean).div_(std + 1e-8)
                    named = dict(zip(("log_probs", "values", "returns", "advantages"), mb, strict=True))
                    named |= {"obs": mb_obs, "actions": mb_actions}
                    stats = self.backward(named, value_only, stats=i == parts - 1)
                    self.step(value_only)
                if self.config.target_kl > 0 and not value_only and stats["losses/approx_kl"] > self.config.target_kl:
                    break
        return stats

    def state_dict(self) -> dict[str, Any]:
        """As torch.optim.Adam's, parameters in the agent's own order."""
        m, v = self._parts(self.m), self._parts(self.v)
        state = {
            i: {
                "step": torch.tensor(float(self.steps["critic" if name.startswith("critic") else "actor"])),
                "exp_avg": m[name].clone(),
                "exp_avg_sq": v[name].clone(),
            }
            for i, (name, _) in enumerate(self.agent.named_parameters())
        }
        return {"state": {i: s for i, s in state.items() if s["step"] > 0}, "param_groups": self._groups()}

    def _groups(self) -> list[dict[str, Any]]:
        like = torch.optim.Adam([torch.zeros(1) for _ in self.order], lr=self.param_groups[0]["lr"], eps=EPS)
        return list(like.state_dict()["param_groups"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        m, v = self._parts(self.m), self._parts(self.v)
        for i, (name, _) in enumerate(self.agent.named_parameters()):
            if (own := state["state"].get(i)) is not None:
                m[name].copy_(own["exp_avg"])
                v[name].copy_(own["exp_avg_sq"])
                self.steps["critic" if name.startswith("critic") else "actor"] = int(own["step"])
        self.param_groups[0]["lr"] = state["param_groups"][0]["lr"]
        self.moments = None
