"""Checkpoints: what was saved comes back whole, what is damaged is told, and new networks depend on the seed alone."""

from __future__ import annotations

import dataclasses
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_gym import atari, checkpoints, envs
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, UserError, resolve
from rlhf_gym.envs import EnvInfo

CPU = torch.device("cpu")
SMALL = dict(num_envs=2, num_steps=8, hidden_size=16)
CONFIGS = {
    "vector": Config(env_id="CartPole-v1", normalize_obs=True, **SMALL),
    "torque": Config(env_id="Pendulum-v1", normalize_obs=True, **SMALL),
    "image": Config(env_id="rlhf_gym/Dot-v0", frame_stack=2, ensemble_size=2, **SMALL),
    "atari": Config(env_id="ALE/Pong-v5", frame_stack=2, image_size=42, env_kwargs={"frameskip": 8}, **SMALL),
}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_snapshot_comes_back_whole(name, tmp_path):
    config = CONFIGS[name]
    info = envs.describe(config)
    agent = checkpoints.new_agent(info, config, CPU)
    reward = checkpoints.new_reward_model(info, config, CPU, 3)
    reward.fit_scale(torch.randn(config.ensemble_size, 20) + 2, torch.ones(20), config.gamma)
    path = tmp_path / "r003.pt"
    Snapshot(agent, reward, config, info, 3, last_label_id=17, forgotten=5, global_step=4096).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["r003.pt"]  # nothing left aside

    torch.manual_seed(123)  # new weights would be others
    found = Snapshot.load(path)
    assert (found.round, found.last_label_id, found.forgotten, found.global_step) == (3, 17, 5, 4096)
    assert found.config == config
    assert found.info == info
    assert isinstance(found.info.obs_shape, tuple)
    assert same(found.agent, agent)
    assert same(found.reward, reward)
    assert found.reward.regions == atari.score_regions(config)
    assert bool(found.reward.regions) == (name == "atari")
    assert not found.reward.training
    obs = np.zeros((2, *info.obs_shape), np.uint8 if info.image else np.float32)
    assert np.array_equal(found.agent.act(obs), agent.act(obs))


def test_the_untrained_agent_has_no_reward_model(tmp_path):
    config = CONFIGS["vector"]
    info = envs.describe(config)
    Snapshot(checkpoints.new_agent(info, config, CPU), None, config, info, -1).save(tmp_path / "start.pt")
    found = Snapshot.load(tmp_path / "start.pt")
    assert found.reward is None
    assert found.round == -1


def test_new_networks_depend_on_the_seed_and_on_nothing_before():
    config = CONFIGS["vector"]
    info = envs.describe(config)
    torch.manual_seed(1)
    agent, reward = checkpoints.new_agent(info, config, CPU), checkpoints.new_reward_model(info, config, CPU, 2)
    torch.manual_seed(2)
    np.random.seed(2)
    assert same(checkpoints.new_agent(info, config, CPU), agent)
    assert same(checkpoints.new_reward_model(info, config, CPU, 2), reward)
    assert not same(checkpoints.new_reward_model(info, config, CPU, 3), reward)  # each round begins afresh
    other = dataclasses.replace(config, seed=2)
    assert not same(checkpoints.new_agent(info, other, CPU), agent)
    assert agent.normalizer.count == 16  # the statistics of its own first steps
    assert checkpoints.new_agent(info, dataclasses.replace(config, normalize_obs=False), CPU).normalizer is None


def damaged(path: Path, how: str) -> None:
    checkpoints.save_state(path, {"agent": {"w": torch.ones(1000)}})
    whole = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "torn":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "a text":
            path.write_text("hello")
        case "a list":
            torch.save([1, 2], path)
        case "code":
            path.write_bytes(pickle.dumps(print, protocol=2))
        case "another dict":
            torch.save({"weights": 1}, path)
        case "other shapes":
            config = CONFIGS["vector"]
            info = envs.describe(config)
            agent = checkpoints.new_agent(info, dataclasses.replace(config, hidden_size=8), CPU)
            Snapshot(agent, None, config, info, 0).save(path)


DAMAGES = ["missing", "torn", "empty", "a text", "a list", "code", "another dict", "other shapes"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_told_in_one_sentence(how, tmp_path):
    path = tmp_path / "r000.pt"
    damaged(path, how)
    with pytest.raises(UserError, match=r"r000\.pt") as caught:
        Snapshot.load(path)
    assert "\n" not in str(caught.value)


def test_states_hold_nested_tensors_and_survive_a_failed_write(tmp_path):
    path = tmp_path / "r000.train_agent.pt"
    state = {"training": {"iteration": 4, "w": torch.arange(3)}, "last_label_id": 9, "reward": {}}
    checkpoints.save_state(path, state)
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever torch says: a lambda cannot be saved)
        checkpoints.save_state(path, {"w": lambda: 0})
    found = checkpoints.load_state(path)
    assert torch.equal(found["training"].pop("w"), torch.arange(3))
    assert found == {"training": {"iteration": 4}, "last_label_id": 9, "reward": {}}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_device_that_is_not_there_is_told(monkeypatch):
    info = envs.describe(CONFIGS["vector"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for device in ("cuda", "mps"):
            with pytest.raises(UserError, match=f"--device {device} is not on this machine"):
                checkpoints.pick_device(Config(env_id="CartPole-v1", device=device), info)
        assert checkpoints.pick_device(Config(env_id="CartPole-v1"), info) == CPU
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("ends", "trust"), [(12, 0.0), (0, 1.0), (None, 0.0)])
def test_a_reward_model_of_before_says_what_it_said(ends: int | None, trust: float) -> None:
    """Then an end was worth one number, and none as long as no clip had ended; older ones did not count them."""
    info = envs.describe(Config(env_id="CartPole-v1"))
    config = resolve({"env_id": "CartPole-v1"}, info.kind)
    model = checkpoints.new_reward_model(info, config, CPU, 0)
    old = {k: v.clone() for k, v in model.state_dict().items() if k != "trust"}
    old["absorbing"], old["biases.2"] = torch.tensor([1.0, -2.0, 3.0]), torch.full((3, 1, 1), 0.5)
    if ends is not None:
        old["ends"] = torch.tensor(ends)
    state = checkpoints.upgraded({"last_label_id": 4, "reward": old, "training": {"iteration": 3}})
    assert state["training"] == {"iteration": 3}  # of the agent: it can go on
    model.load_state_dict(state["reward"])
    assert float(model.trust) == trust
    obs, actions, over = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.bool)
    with torch.no_grad():
        found = model(obs, actions, over)
        if trust == 0:
            assert torch.allclose(found, old["absorbing"][:, None].expand(3, 6), atol=1e-6)
        else:
            mean = (model(obs, actions) + model(obs, 1 - actions)) / 2
            assert torch.allclose(found, mean, atol=0.2)  # all actions alike: the mean but for two layers of tanh
    half = checkpoints.upgraded({"last_label_id": 4, "training": {"model": old, "step": 40}})
    assert half == {"last_label_id": 4}  # of the reward model: it begins again
    now = {"reward": model.state_dict(), "training": {"model": model.state_dict()}}
    assert checkpoints.upgraded(now) is now


def test_a_reward_model_of_images_of_before_sees_what_it_saw() -> None:
    """Then images were not standardised."""
    info = EnvInfo("pixels", (2, 36, 36), True, 3, (), None, None, 15.0, 50)
    config = Config(env_id="rlhf_gym/Dot-v0", ensemble_size=2)
    one, other = (checkpoints.new_reward_model(info, config, CPU, n) for n in (0, 1))
    old = {k: v for k, v in one.state_dict().items() if k not in ("obs_mean", "obs_std")}
    checkpoints.load_reward(other, old)
    obs, actions = torch.randint(0, 256, (3, 2, 36, 36), dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(one(obs, actions), other(obs, actions))
    assert not checkpoints.may_go_on(other)  # new weights: these know other inputs
    other.obs_std *= 0.5
    assert checkpoints.may_go_on(other)
    half = checkpoints.upgraded({"last_label_id": 4, "training": {"model": old, "step": 40}})
    assert half == {"last_label_id": 4}  # of the reward model: it begins again


def test_open_sides_of_actions_come_back_from_json():
    info = EnvInfo.from_json({
        "kind": "classic-continuous", "obs_shape": [3], "image": False, "num_actions": None, "action_shape": [2],
        "action_low": [None, -1.0], "action_high": [3.0, None], "fps": 20.0, "max_episode_steps": None,
    })  # fmt: skip
    assert info.action_low == (-math.inf, -1.0)
    assert info.action_high == (3.0, math.inf)
    assert info.action_bounds()[0].tolist() == [1.0, -1.0]
