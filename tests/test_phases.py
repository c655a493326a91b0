"""The phases of training: who learns from what, going on bit for bit, and episodes that outlast checkpoints."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from labelings import CARTPOLE, CPU, IMAGE, VECTOR, one_thread_and_a_seed, random_labels, same

from rlhf_gym import envs, stretch, train
from rlhf_gym.config import Config
from rlhf_gym.envs import Envs
from rlhf_gym.retrain import TrueReward
from rlhf_gym.train import Agent, RewardModel

__all__ = ["one_thread_and_a_seed"]  # a fixture


def test_ppo_moves_nothing_in_the_reward_model_and_its_own_normaliser_alone():
    agent, model = Agent(VECTOR, CARTPOLE), RewardModel(VECTOR, CARTPOLE)
    train.train_reward(model, random_labels(10, members=3), CARTPOLE, CPU)
    assert not torch.equal(model.obs_std, torch.ones(4))  # it has statistics of its own
    before = copy.deepcopy(model.state_dict())
    done = train.train_agent(agent, model.score, CARTPOLE, CPU, steps=300, seed_path=(1, 0, 2))
    assert done == 384
    assert same(model.state_dict(), before)
    assert agent.normalizer.count == 384
    assert not torch.equal(agent.normalizer.mean, torch.zeros(4, dtype=torch.float64))


def test_a_reward_model_of_images_sees_what_differs_from_the_mean_picture():
    """Else a ball of two pixels is lost in what never moves (docs/benchmarks.md)."""
    labels, config = random_labels(6, members=2, info=IMAGE), Config(env_id="Dot", ensemble_size=2, reward_steps=3)
    model = RewardModel(IMAGE, config)
    train.train_reward(model, labels, config, CPU)
    mean, std = labels.moments()
    assert torch.equal(model.obs_mean, mean)
    assert torch.equal(model.obs_std, std)
    assert mean.shape == std.shape == IMAGE.obs_shape[1:]


def test_the_true_reward_does_not_reach_an_agent_that_learns_from_a_model():
    def trained(factor: float):
        class Changed(Envs):
            def step(self, actions):
                step = super().step(actions)
                return dataclasses.replace(step, rewards=step.rewards * factor)

        torch.manual_seed(3)
        agent, model = Agent(VECTOR, CARTPOLE), RewardModel(VECTOR, CARTPOLE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train, "Envs", Changed)
            train.train_agent(agent, model.score, CARTPOLE, CPU, steps=256, seed_path=(1, 0, 2))
        return agent.state_dict()

    assert same(trained(1.0), trained(math.nan))


@pytest.mark.parametrize("drawn", [0, 2])
@pytest.mark.parametrize(
    ("info", "potential"), [(VECTOR, False), (VECTOR, True), (IMAGE, False)], ids=["vector", "potential", "image"]
)
def test_training_the_reward_model_goes_on_bit_for_bit(info, potential, drawn):
    labels = random_labels(12, members=2, info=info, steps=3)
    config = Config(
        ensemble_size=2, reward_batch_pairs=5, reward_steps=9, reward_epochs=100, reward_clip_steps=drawn,
        reward_potential=potential,
    )  # fmt: skip

    def fresh() -> RewardModel:
        torch.manual_seed(4)
        return RewardModel(info, config)

    saved = []
    whole = fresh()
    metrics = train.train_reward(
        whole, labels, config, CPU, save=lambda state: saved.append(copy.deepcopy(state)), save_every=4
    )
    assert [s["step"] for s in saved] == [4, 8]
    alone = fresh()  # saving changes nothing
    assert train.train_reward(alone, labels, config, CPU) == metrics
    assert same(alone.state_dict(), whole.state_dict())
    for state in saved:
        resumed = RewardModel(info, config)  # other weights: all must come from the checkpoint
        assert train.train_reward(resumed, labels, config, CPU, state=state) == metrics
        assert same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "rlhf_gym/Dot-v0", "ALE/Pong-v5"])
@pytest.mark.parametrize("checkpoints", [8, 2, 1])
def test_training_the_agent_goes_on_bit_for_bit(env_id, checkpoints, monkeypatch):
    monkeypatch.setattr(stretch, "CHECKPOINTS", checkpoints)  # when the environments begin anew
    config = Config(
        env_id=env_id, num_envs=2, num_steps=16, update_epochs=2, checkpoint_iterations=2,
        normalize_obs=True, frame_stack=2,
    )  # fmt: skip
    vec = Envs(config, 1, (0,))
    info = vec.info
    vec.close()
    model = RewardModel(info, config)
    common = dict(steps=7 * 32, seed_path=(1, 3, 2), warmup=3)

    def fresh() -> Agent:
        torch.manual_seed(4)
        return Agent(info, config)

    saved, reports = [], []
    whole = fresh()
    done = train.train_agent(
        whole, model.score, config, CPU, **common,
        save=lambda state: saved.append(copy.deepcopy(state)), report=lambda *a: reports.append(a),
    )  # fmt: skip
    assert done == 224
    assert [s["iteration"] for s in saved] == [0, 2, 4, 6]
    assert [r[:2] for r in reports] == [(32 * i, 224) for i in range(1, 8)]
    alone = fresh()  # neither saving nor reporting changes anything
    train.train_agent(alone, model.score, config, CPU, **common)
    assert same(alone.state_dict(), whole.state_dict())
    for state in saved:
        again, resumed = [], Agent(info, config)
        train.train_agent(
            resumed, model.score, config, CPU, **common, state=state,
            save=lambda s, again=again: again.append(s["iteration"]),
        )  # fmt: skip
        assert same(resumed.state_dict(), whole.state_dict())
        assert again == [s["iteration"] for s in saved if s["iteration"] > state["iteration"]]


def test_an_episode_outlasts_checkpoints_killed_or_not():
    config = dataclasses.replace(
        CARTPOLE, env_id="Pendulum-v1", num_steps=32, update_epochs=1, num_minibatches=1, checkpoint_iterations=1
    )
    info = envs.describe(config)
    model, common = RewardModel(info, config), dict(steps=8 * 64, seed_path=(1,))

    def told(state=None, save=None) -> dict[str, float]:
        reports: list[dict[str, float]] = []
        train.train_agent(
            Agent(info, config), model.score, config, CPU, **common, state=state, save=save,
            report=lambda done, total, metrics: reports.append(metrics),
        )  # fmt: skip
        return {k: v for k, v in reports[-1].items() if k.startswith("charts/") and k != "charts/SPS"}

    saved: list[dict] = []
    torch.manual_seed(4)
    whole = told(save=lambda state: saved.append(copy.deepcopy(state)))
    assert whole["charts/episode_length"] == 200  # of 32 steps between two checkpoints
    assert len(saved) == 8
    assert told(saved[5]) == whole  # it knows what the first 160 steps brought


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("what", ["older version", "fewer environments", "more environments"])
def test_what_does_not_fit_goes_on_in_new_environments(what, number, monkeypatch):
    paths = []

    class Noted(Envs):
        def __init__(self, config, num_envs, seed_path):
            paths.append(seed_path)
            super().__init__(config, num_envs, seed_path)

    config = dataclasses.replace(CARTPOLE, num_envs=2, num_steps=16, num_minibatches=1, checkpoint_iterations=2)
    saved: list[dict] = []
    train.train_agent(
        Agent(VECTOR, config), TrueReward(config), config, CPU, steps=5 * 32, seed_path=(1,),
        save=lambda state: saved.append(copy.deepcopy(state)),
    )  # fmt: skip
    if what == "older version":
        del saved[number]["stretch"]
    config = dataclasses.replace(config, num_envs={"fewer environments": 1, "more environments": 4}.get(what, 2))
    monkeypatch.setattr(stretch, "Envs", Noted)
    agent = Agent(VECTOR, config)
    steps = 5 * 16 * config.num_envs
    done = train.train_agent(agent, TrueReward(config), config, CPU, steps=steps, seed_path=(1,), state=saved[number])
    assert done == steps
    assert paths == [(1, 2 * number)]
    assert any(not torch.equal(p, saved[number]["agent"][n]) for n, p in agent.state_dict().items())


def test_environments_that_cannot_begin_are_closed_all_the_same(monkeypatch):
    closed = []

    class Fails(Envs):
        def reset(self):
            raise OSError("no")

        def close(self):
            closed.append(self)
            super().close()

    monkeypatch.setattr(stretch, "Envs", Fails)
    with pytest.raises(OSError, match="no"):
        train.train_agent(Agent(VECTOR, CARTPOLE), TrueReward(CARTPOLE), CARTPOLE, CPU, steps=1, seed_path=(1,))
    assert len(closed) == 1


def test_a_step_size_given_at_a_resume_holds_at_once():
    config = dataclasses.replace(CARTPOLE, num_steps=16, checkpoint_iterations=2, anneal_lr=False)
    saved: list[dict] = []
    common = dict(steps=3 * 16 * config.num_envs, seed_path=(1,))
    train.train_agent(Agent(VECTOR, config), TrueReward(config), config, CPU, **common,
                      save=lambda state: saved.append(copy.deepcopy(state)))  # fmt: skip
    still = dataclasses.replace(config, learning_rate=1e-8)
    agent = Agent(VECTOR, still)
    train.train_agent(agent, TrueReward(still), still, CPU, **common, state=saved[1])
    before = saved[1]["agent"]
    assert all(torch.allclose(p, before[n], atol=1e-5) for n, p in agent.named_parameters())


def test_no_two_stretches_of_training_meet_the_same_episodes(monkeypatch):
    paths = []

    class Noted(Envs):
        def __init__(self, config, num_envs, seed_path):
            paths.append(seed_path)
            super().__init__(config, num_envs, seed_path)

    monkeypatch.setattr(stretch, "Envs", Noted)
    config = dataclasses.replace(CARTPOLE, num_steps=16, checkpoint_iterations=1)
    for path in ((1, 0, 2), (1, 1, 2)):
        train.train_agent(Agent(VECTOR, config), TrueReward(config), config, CPU, steps=17 * 32, seed_path=path)
    assert len(paths) == len(set(paths)) == 6


def test_a_report_can_end_the_training():
    agent = Agent(VECTOR, CARTPOLE)
    done = train.train_agent(
        agent, TrueReward(CARTPOLE), CARTPOLE, CPU, steps=10_000, seed_path=(1,),
        report=lambda done, total, metrics: done >= 256,
    )  # fmt: skip
    assert done == 256
