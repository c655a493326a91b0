"""A round's policy and reward model as ONNX graphs, or as safetensors with what is needed to build them again.

In an ONNX graph everything from raw observations on is inside: normalisation, the painting over of scores, the members'
scales. It computes in float32 what the plain path of train.py computes (`--no-fast`). docs/formats.md has inputs and
outputs. Nothing of the session's environment is run.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_gym import config as cfg
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.normalizer import LEAST_CONTRAST
from rlhf_gym.potential import LIMIT
from rlhf_gym.train import END_SPEED, Agent, RewardModel

FORMAT, VERSION = "rlhf-gym-model", 1
POTENTIAL = (  # what it adds to r; s stands for potential.spread
    f"v(o) = (x, |x|), x = clamp(o / s, -{LIMIT:g}, {LIMIT:g}), and (a, b, c) = potential.weights, of 2 D, 2 D and "
    "1 numbers: a (v(beside) - v(o)) of a step that led to beside (o itself, where the episode ended by it); after an "
    "end b v(beside) + c, with beside what was seen just before"
)
PRODUCTS = (
    "(x, x_1 x_1, x_1 x_2, ... x_1 x_D, x_2 x_2, x_2 x_3, ... x_D x_D), x the inputs and the action, without products "
    "of two discrete actions"
)
EXAMPLES = 3  # rows of the input that graphs are recorded with: any number but 1, which torch takes for fixed


class Policy(nn.Module):
    """Raw observations -> the likeliest actions as the environment takes them, and logits or means."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        policy, _ = self.agent(observations)
        if self.agent.discrete:
            return policy.argmax(-1), policy
        return self.agent.within_bounds(policy), policy


class Reward(nn.Module):
    """Raw observations, the environment's actions, and whether the episode was over -> predicted reward."""

    def __init__(self, model: RewardModel, agent: Agent) -> None:
        super().__init__()
        self.model, self.agent = model, agent

    def forward(self, observations: Tensor, actions: Tensor, ended: Tensor, beside: Tensor | None = None) -> Tensor:
        return self.model.scaled(self.model(observations, self.agent.from_env(actions), ended, beside))


def plain(snapshot: Snapshot) -> tuple[Policy, Reward | None]:
    """A snapshot's networks on the plain path, in float32."""
    for module in (snapshot.agent, snapshot.reward):
        if module is not None:
            module.fast = module.narrow = False
            module.eval().requires_grad_(False)
    return Policy(snapshot.agent), None if snapshot.reward is None else Reward(snapshot.reward, snapshot.agent)


# ---------------------------------------------------------------------------------------------- ONNX


def write_onnx(snapshot: Snapshot, out: Path) -> list[str]:
    """Writes policy.onnx and, where there is a reward model, reward_model.onnx. Returns their names."""
    policy, reward = plain(snapshot)
    info = snapshot.info
    observations = torch.zeros(EXAMPLES, *info.obs_shape, dtype=torch.uint8 if info.image else torch.float32)
    means = "logits" if info.num_actions else "means"
    write_graph(policy, {"observations": observations}, ["actions", means], out / "policy.onnx")
    if reward is None:
        return ["policy.onnx"]
    given = {
        "observations": observations,
        "actions": torch.zeros(EXAMPLES, *info.action_shape, dtype=torch.int64 if info.num_actions else torch.float32),
        "ended": torch.arange(EXAMPLES) > 0,
    }
    if reward.model.potential is not None:
        given["beside"] = torch.ones_like(observations)
    write_graph(reward, given, ["reward"], out / "reward_model.onnx")
    return ["policy.onnx", "reward_model.onnx"]


def write_graph(module: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    """Records a module as an ONNX graph for batches of any size."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # that torchvision is not installed
    batch = torch.export.Dim("batch")
    shapes, given = tuple({0: batch} for _ in inputs), tuple(inputs.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself
        # strict: else len() of a tensor is taken for a constant, and the graph for batches of EXAMPLES alone
        program = torch.export.export(module, given, dynamic_shapes=shapes, strict=True)
        torch.onnx.export(
            program, given, path, input_names=list(inputs), output_names=outputs, dynamo=True,
            dynamic_shapes=shapes, external_data=False, verbose=False,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- safetensors


def write_safetensors(snapshot: Snapshot, out: Path) -> list[str]:
    """Writes policy.safetensors, reward_model.safetensors where there is one, and config.json. Returns their names."""
    from safetensors.torch import save

    plain(snapshot)
    files = ["policy.safetensors"]
    (out / "policy.safetensors").write_bytes(save(tensors(snapshot.agent)))
    if snapshot.reward is not None:
        files.append("reward_model.safetensors")
        (out / "reward_model.safetensors").write_bytes(save(tensors(snapshot.reward)))
    text = json.dumps(architecture(snapshot), indent=2, allow_nan=False)
    (out / "config.json").write_text(text + "\n", "utf-8")
    return [*files, "config.json"]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as they lie in memory most plainly; safetensors takes no others."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def architecture(snapshot: Snapshot) -> dict[str, Any]:
    """config.json: what the networks are, layer by layer, and the settings that they were made with."""
    return {
        "format": FORMAT, "version": VERSION, "round": snapshot.round, "global_step": snapshot.global_step,
        "info": snapshot.info.as_json(), "settings": json.loads(cfg.to_json(snapshot.config)),
        "policy": policy_architecture(snapshot.agent),
        "reward_model": None if snapshot.reward is None else reward_architecture(snapshot.reward),
    }  # fmt: skip


def policy_architecture(agent: Agent) -> dict[str, Any]:
    return {
        "inputs": standardised(agent),
        "trunk": layers(agent.trunk, "trunk"), "actor": layers(agent.actor, "actor"),
        "critic": layers(agent.critic, "critic"), "actions": "discrete" if agent.discrete else "continuous",
    }  # fmt: skip


def standardised(agent: Agent) -> str:
    seen = "observations / 255" if agent.image else "observations"
    spread = f"max(sqrt(normalizer.var), {LEAST_CONTRAST:g})" if agent.image else "sqrt(normalizer.var + 1e-8)"
    return seen if agent.normalizer is None else f"clamp(({seen} - normalizer.mean) / {spread}, -10, 10)"


def reward_architecture(model: RewardModel) -> dict[str, Any]:
    """Of `members` networks side by side: weights.i is (members, inputs, outputs), biases.i (members, 1, outputs)."""
    return {
        "members": model.members,
        "inputs": f"clamp(({'observations / 255' if model.image else 'observations'} - obs_mean) / obs_std, -10, 10)",
        "painted_over": [list(region) for region in model.regions],  # top, bottom, left, right
        "convolutions": layers(model.convs, "convs") if model.image else [],
        "sees_action": model.sees_action,
        "products": None if model.products is None else PRODUCTS,
        "layers": [{"inputs": w.shape[1], "outputs": w.shape[2]} for w in model.weights],
        "activation": "Tanh",  # between the layers
        "ended": f"c + trust * (r - c) + {END_SPEED:g} * absorbing, with c the last bias, and no action",
        "potential": None if model.potential is None else POTENTIAL,
        "reward": "mean over members of (r - offset) * scale",
    } | ({} if model.potential is None else {"ended": "potential.usual, and no action"})


def layers(module: nn.Module, name: str) -> list[dict[str, Any]]:
    """The layers of a network in order, each with what torch.nn needs to make it again and the name of its tensors."""
    parts = list(module.named_children()) or [("", module)]
    found: list[dict[str, Any]] = []
    for part, layer in parts:
        entry: dict[str, Any] = {"layer": type(layer).__name__}
        if isinstance(layer, nn.Linear):
            entry |= {"inputs": layer.in_features, "outputs": layer.out_features}
        elif isinstance(layer, nn.Conv2d):
            entry |= {
                "inputs": layer.in_channels, "outputs": layer.out_channels, "kernel": layer.kernel_size[0],
                "stride": layer.stride[0], "padding": layer.padding[0], "groups": layer.groups,
            }  # fmt: skip
        elif isinstance(layer, nn.LeakyReLU):
            entry |= {"slope": layer.negative_slope}
        if next(layer.parameters(), None) is not None:
            entry["tensors"] = f"{name}.{part}" if part else name
        if not (isinstance(layer, nn.Sequential) and len(layer) == 0):
            found.append(entry)
    return found
