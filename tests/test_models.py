"""Models in other formats: each is opened again with the library that reads it, and says what ours says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_gym import models
from rlhf_gym.checkpoints import Snapshot, new_reward_model
from rlhf_gym.config import Config, from_json
from rlhf_gym.spec import EnvInfo
from rlhf_gym.train import Agent

CONTINUOUS = EnvInfo("classic-continuous", (3,), False, None, (2,), (-2.0, 0.0), (2.0, 1.0), 20.0, 200)
DISCRETE = EnvInfo("classic", (4,), False, 3, (), None, None, 50.0, 500)
PIXELS = EnvInfo("atari", (4, 84, 84), True, 6, (), None, None, 15.0, None)
MODELS = {
    "discrete": ("CartPole-v1", DISCRETE),
    "continuous": ("Pendulum-v1", CONTINUOUS),
    "pixels": ("ALE/Pong-v5", PIXELS),
    "potential": ("LunarLander-v3", DISCRETE),
    "quadratic": ("Hopper-v5", CONTINUOUS),
}


def snapshot_of(name: str) -> Snapshot:
    """Networks in which nothing is as it was made: what a graph leaves out is missed."""
    env_id, info = MODELS[name]
    more = {
        "bfloat16": name == "pixels",
        "reward_potential": name == "potential",
        "reward_quadratic": name == "quadratic",
    }
    config = Config(env_id=env_id, normalize_obs=True, hidden_size=16, reward_hidden=16, **more)
    torch.manual_seed(3)
    agent = Agent(info, config)
    reward = new_reward_model(info, config, torch.device("cpu"), 1)
    with torch.no_grad():
        for parameter in [*agent.parameters(), *reward.parameters()]:
            parameter += 0.05 * torch.randn_like(parameter)
        reward.offset.copy_(torch.randn(3))
        reward.scale.copy_(torch.rand(3) + 0.5)
        reward.trust.fill_(0.4)
        if reward.potential is not None:
            reward.potential.weights.copy_(0.3 * torch.randn(reward.potential.weights.shape))
            reward.potential.usual.copy_(torch.randn(3))
            reward.potential.spread.copy_(torch.rand(reward.potential.spread.shape) + 0.5)
        assert agent.normalizer is not None
        seen = torch.randint(0, 256, (50, *info.obs_shape)).byte() if info.image else torch.randn(50, *info.obs_shape)
        agent.normalizer.update(seen if info.image else 2 + 3 * seen)
        reward.obs_mean.copy_(torch.randn(reward.obs_mean.shape))
        reward.obs_std.copy_(torch.rand(reward.obs_std.shape) + 0.5)
    return Snapshot(agent, reward, config, info, 1)


def observed(info: EnvInfo, count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    if info.image:
        return rng.integers(0, 256, (count, *info.obs_shape), np.uint8)
    return (5 * rng.standard_normal((count, *info.obs_shape))).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_onnx_graphs_say_what_the_networks_say(name: str, tmp_path: Path) -> None:
    import onnxruntime

    snapshot = snapshot_of(name)
    assert models.write_onnx(snapshot, tmp_path) == ["policy.onnx", "reward_model.onnx"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy.onnx", "reward_model.onnx"]  # one file each
    info, agent, reward = snapshot.info, snapshot.agent, snapshot.reward
    assert reward is not None
    policy_graph, reward_graph = (
        onnxruntime.InferenceSession(tmp_path / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        for graph in ("policy", "reward_model")
    )
    for count in (1, 2, 17):
        obs = observed(info, count)
        actions, policy = policy_graph.run(None, {"observations": obs})
        expected, _ = agent(torch.as_tensor(obs))
        np.testing.assert_allclose(policy, expected.numpy(), atol=1e-4)
        acted = agent.act(obs)
        assert actions.shape == acted.shape
        assert actions.dtype == acted.dtype
        if info.num_actions:
            assert np.array_equal(actions, acted)
        else:
            np.testing.assert_allclose(actions, acted, atol=1e-4)
        ended = np.arange(count) % 3 == 1
        fed = {"observations": obs, "actions": actions, "ended": ended}
        if reward.potential is not None:
            fed["beside"] = obs + observed(info, count + 1)[:count]
        (found,) = reward_graph.run(None, fed)
        given = [torch.as_tensor(x) for x in (obs, acted, *list(fed.values())[2:])]
        given[1] = agent.from_env(given[1])
        np.testing.assert_allclose(found, reward.reward(*given).numpy(), atol=1e-4)
        if count == 17:  # it looks at all three
            other = (actions + 1) % info.num_actions if info.num_actions else actions[::-1].copy()
            changed = {"actions": other, "ended": ~ended, "observations": obs[::-1].copy()}
            changed |= {"beside": obs} if "beside" in fed else {}
            for name_, value in changed.items():
                feed = {**fed, name_: value}
                assert np.abs(reward_graph.run(None, feed)[0] - found).max() > 1e-3
            hidden = obs.copy()
            for top, bottom, left, right in reward.regions:  # a score that is painted over
                hidden[..., top:bottom, left:right] = 255 - hidden[..., top:bottom, left:right]
            assert bool(reward.regions) == (hidden != obs).any() == info.image
            feed = {**fed, "observations": hidden}
            assert np.array_equal(reward_graph.run(None, feed)[0], found)


@pytest.mark.parametrize("name", MODELS)
def test_safetensors_build_the_same_networks_again(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    snapshot = snapshot_of(name)
    models.write_safetensors(snapshot, tmp_path)
    about = json.loads((tmp_path / "config.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    info, config = EnvInfo.from_json(about["info"]), from_json(json.dumps(about["settings"]))
    assert info == snapshot.info
    agent, reward = Agent(info, config), new_reward_model(info, config, torch.device("cpu"), 1)
    agent.load_state_dict(load_file(tmp_path / "policy.safetensors"))
    reward.load_state_dict(load_file(tmp_path / "reward_model.safetensors"))
    models.plain(Snapshot(agent, reward, config, info, 1))
    obs = torch.as_tensor(observed(info, 5))
    assert torch.equal(agent(obs)[0], snapshot.agent(obs)[0])
    actions = torch.as_tensor(agent.act(obs.numpy()))
    assert snapshot.reward is not None
    assert torch.equal(
        reward.reward(obs, agent.from_env(actions)), snapshot.reward.reward(obs, agent.from_env(actions))
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_architecture_is_enough_without_rlhf_gym(name: str, tmp_path: Path) -> None:
    """As somebody would who has nothing but config.json and the tensors."""
    from safetensors.numpy import load_file

    snapshot = snapshot_of(name)
    models.write_safetensors(snapshot, tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    obs = torch.as_tensor(observed(snapshot.info, 4)).float()
    w = {k: torch.as_tensor(v) for k, v in load_file(tmp_path / "policy.safetensors").items()}
    policy = about["policy"]
    mean, std = w["normalizer.mean"].float(), w["normalizer.var"].float().sqrt()
    x = {
        "clamp((observations - normalizer.mean) / sqrt(normalizer.var + 1e-8), -10, 10)": (obs - mean) / std,
        "clamp((observations / 255 - normalizer.mean) / max(sqrt(normalizer.var), 0.02), -10, 10)": (
            (obs / 255 - mean) / std.clamp_min(0.02)
        ),
    }[policy["inputs"]].clamp(-10, 10)
    for layer in policy["trunk"] + policy["actor"]:
        x = apply(layer, w, x)
    expected, _ = snapshot.agent(torch.as_tensor(observed(snapshot.info, 4)))
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-4)
    w = {k: torch.as_tensor(v) for k, v in load_file(tmp_path / "reward_model.safetensors").items()}
    model = about["reward_model"]
    seen = obs / 255 if model["inputs"].startswith("clamp((observations / 255 -") else obs
    x = ((seen - w["obs_mean"]) / w["obs_std"]).clamp(-10, 10)
    for top, bottom, left, right in model["painted_over"]:
        x[..., top:bottom, left:right] = 0
    for layer in model["convolutions"]:
        x = apply(layer, w, x)
    if model["convolutions"]:
        x = x.reshape(4, model["members"], -1).transpose(0, 1)
    else:
        x = x.expand(model["members"], -1, -1)
    numbers = snapshot.info.num_actions
    actions = torch.arange(4) % numbers if numbers else torch.linspace(-1, 1, 8).reshape(4, 2)
    a = torch.eye(numbers)[actions] if numbers else actions
    x = torch.cat([x, a.expand(model["members"], -1, -1)], -1)
    assert (model["products"] is not None) == (name == "quadratic")
    if name == "quadratic":
        assert "x_1 x_D, x_2 x_2" in model["products"]
        d = x.shape[-1]
        x = torch.cat([x, *(x[..., i : i + 1] * x[..., j : j + 1] for i in range(d) for j in range(i, d))], -1)
    for i, layer in enumerate(model["layers"]):
        assert w[f"weights.{i}"].shape == (model["members"], layer["inputs"], layer["outputs"])
        x = x @ w[f"weights.{i}"] + w[f"biases.{i}"]
        x = x.tanh() if i < len(model["layers"]) - 1 else x
    found = ((x[..., 0] - w["offset"][:, None]) * w["scale"][:, None]).mean(0)
    assert snapshot.reward is not None
    raw_obs = torch.as_tensor(observed(snapshot.info, 4))
    expected = snapshot.reward.reward(raw_obs, actions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (model["potential"] is not None) == (name == "potential")
    if name != "potential":
        return
    for part in ("x = clamp(o / s, -8, 8)", "a (v(beside) - v(o))", "b v(beside) + c"):
        assert part in model["potential"]
    assert model["ended"].startswith("potential.usual")
    beside, ended = obs.flip(0), torch.tensor([True, False, True, False])
    v = {}
    for key, o in (("o", obs), ("beside", beside)):
        scaled = (o / w["potential.spread"]).clamp(-8, 8)
        v[key] = torch.cat([scaled, scaled.abs()], 1)
    a, b, c = w["potential.weights"].split([v["o"].shape[1], v["o"].shape[1], 1], 1)
    raw = torch.where(
        ended, w["potential.usual"][:, None] + b @ v["beside"].T + c, x[..., 0] + a @ (v["beside"] - v["o"]).T
    )
    found = ((raw - w["offset"][:, None]) * w["scale"][:, None]).mean(0)
    expected = snapshot.reward.reward(raw_obs, actions, ended, beside)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def apply(layer: dict[str, Any], w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    kind = layer["layer"]
    if kind == "Linear":
        return torch.nn.functional.linear(x, w[f"{layer['tensors']}.weight"], w[f"{layer['tensors']}.bias"])
    if kind == "Conv2d":
        weight, bias = (w[f"{layer['tensors']}.{part}"] for part in ("weight", "bias"))
        return torch.nn.functional.conv2d(x, weight, bias, layer["stride"], layer["padding"], groups=layer["groups"])
    if kind == "LeakyReLU":
        return torch.nn.functional.leaky_relu(x, layer["slope"])
    return {"Tanh": torch.tanh, "ReLU": torch.relu, "Flatten": lambda x: x.flatten(1)}[kind](x)
