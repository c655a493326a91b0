"""The value when the reward has changed under it."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_gym import envs, train, values
from rlhf_gym.checkpoints import new_agent
from rlhf_gym.config import Config, UserError, resolve
from rlhf_gym.team import Team
from scripts.bench import carried

CPU = torch.device("cpu")


def agent_and_config(env_id: str, **settings: Any) -> tuple[train.Agent, Config]:
    info = envs.describe(Config(env_id=env_id))
    config = resolve({"env_id": env_id, "seed": 1, "normalize_obs": False, **settings}, info.kind)
    torch.manual_seed(1)
    return new_agent(info, config, CPU), config


def walk(config: Config, ends: bool) -> tuple[train.Rollout, Tensor]:
    """A rollout of (200, 3) through twenty states in turn, and what each of its steps is truly worth.

    Each state has a reward of its own; with `ends` every last one ends the episode, and gives -2 for ever after.
    """
    rewards = torch.linspace(-1, 1, 20).square()
    at = (torch.arange(200)[:, None] + torch.tensor([0, 7, 11])) % 20
    worth = torch.full((20,), -2 / (1 - config.gamma)) if ends else torch.zeros(20)
    for _ in range(1 if ends else 400):
        for s in reversed(range(20)):
            after = -2 / (1 - config.gamma) if ends and s == 19 else worth[(s + 1) % 20]
            worth[s] = rewards[s] + config.gamma * after
    over = (at == 19) & ends
    obs = torch.randn(200, 3, 4)
    return train.Rollout(
        obs=obs, actions=torch.zeros(200, 3), log_probs=torch.zeros(200, 3), values=torch.zeros(200, 3),
        next_values=worth[(at + 1) % 20], rewards=rewards[at], absorbing=torch.where(over, -2.0, 0.0),
        ends=over.nonzero(), finals=obs[over], terminated=over, truncated=torch.zeros_like(over), last=obs[0],
    ), worth[at]  # fmt: skip


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (1.0, 35.0), (1.7, -20.0), (0.2, 4.0), (0.0, 9.0)])
def test_rewards_on_another_scale_and_with_another_zero_put_the_value_there_too(a: float, b: float, ends: bool) -> None:
    agent, config = agent_and_config("CartPole-v1")
    roll, worth = walk(config, ends)
    roll.values = worth.clone()  # right, by the rewards of before
    for rewards in (roll.rewards, roll.absorbing):
        rewards.mul_(a).add_(b * (1 - config.gamma))  # b in each step, for ever
    with torch.no_grad():
        agent.critic[-1].bias.fill_(3.0)  # type: ignore[index]
    before = agent(roll.obs.flatten(0, 1))[1]
    values.rescale(agent, roll, config, Team())
    assert torch.allclose(roll.values, a * worth + b, atol=2e-3)
    assert torch.allclose(agent(roll.obs.flatten(0, 1))[1], a * before + b, atol=2e-3)
    advantages, _ = train.gae(roll, config)
    assert advantages.abs().max() < 2e-2  # 2 to 200 where the value stays as it was and anything changed


def test_where_resets_are_hidden_an_end_is_a_step_like_any_other() -> None:
    agent, config = agent_and_config("CartPole-v1", episode_ends="hide")
    roll, worth = walk(config, ends=False)
    roll.values = worth.clone()
    roll.rewards += 1
    roll.terminated = torch.rand(200, 3) < 0.1
    values.rescale(agent, roll, config, Team())
    assert torch.allclose(roll.values, worth + 1 / (1 - config.gamma), atol=2e-3)


def test_what_does_not_differ_or_goes_the_wrong_way_is_not_blown_up() -> None:
    agent, config = agent_and_config("CartPole-v1")
    roll, worth = walk(config, ends=False)
    roll.values, roll.next_values = 3 + 1e-4 * torch.randn(2, *worth.shape)
    before = agent.critic[-1].weight.clone()  # type: ignore[index]
    values.rescale(agent, roll, config, Team())
    mean = float(roll.rewards.mean()) / (1 - config.gamma)
    assert torch.allclose(roll.values, torch.tensor(mean), rtol=1e-3)
    assert torch.equal(agent.critic[-1].weight, before)  # type: ignore[index]

    roll.values, roll.next_values = worth.clone(), worth.roll(-1, 0)
    roll.rewards *= 5
    values.rescale(agent, roll, config, Team())
    assert torch.equal(agent.critic[-1].weight, values.MOST * before)  # type: ignore[index]
    roll.rewards /= 5

    roll.values, roll.next_values = worth.clone(), worth.roll(-1, 0)
    roll.rewards *= -1  # what was good is bad
    values.rescale(agent, roll, config, Team())
    assert torch.allclose(roll.values, torch.tensor(-mean), rtol=0.05)
    assert torch.equal(agent.critic[-1].weight, 0 * before)  # type: ignore[index]


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "rlhf_gym/Dot-v0"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_rounds_training_begins_with_a_value_on_the_rewards_scale(env_id: str, fast: bool) -> None:
    settings: dict[str, Any] = dict(num_envs=2, num_steps=32, num_minibatches=2, learning_rate=1e-8, fast=fast)
    agent, config = agent_and_config(env_id, **settings)
    info = envs.describe(config)
    obs = torch.zeros(1, *info.obs_shape, dtype=torch.uint8 if info.image else torch.float32)
    before = agent(obs)[1].item()

    def score(roll: train.Rollout, _true: Any) -> None:
        roll.rewards = torch.full_like(roll.values, 5.0)
        roll.absorbing = torch.full_like(roll.values, 5.0)  # to end or not is all the same

    def trained(warmup: int) -> float:
        train.train_agent(agent, score, config, CPU, steps=5 * 64, seed_path=(1, 2), warmup=warmup)
        return agent(obs)[1].item()

    assert trained(warmup=0) == pytest.approx(before, abs=1e-3)
    assert trained(warmup=2) == pytest.approx(5 / (1 - config.gamma), rel=0.02)
    assert trained(warmup=9) == pytest.approx(5 / (1 - config.gamma), rel=0.02)


@pytest.mark.parametrize("processes", [1, 2])
def test_means_beyond_the_bounds_are_brought_back_and_others_left(processes: int) -> None:
    agent, _ = agent_and_config("HalfCheetah-v5")
    with torch.no_grad():
        agent.actor[-1].weight.mul_(0).add_(torch.randn(6, 64))  # type: ignore[index]
        agent.actor[-1].bias.copy_(torch.tensor([-30.0, 0.0, 0.0, 0.0, 0.0, 30.0]))  # type: ignore[index]
        for part in (agent.actor[-1].weight, agent.actor[-1].bias):  # type: ignore[index]
            part[1] *= 1e-3  # this one stays well within
    config = Config(num_envs=2, num_steps=50, normalize_obs=False)
    obs = torch.randn(50, 2, 17)
    roll, _ = walk(config, ends=False)
    roll.obs = obs
    before, value = agent(obs.flatten(0, 1))

    class Several(Team):
        def all_gather(self, rows: Tensor) -> Tensor:  # all of them found the same
            return rows.repeat(processes, 1)

    values.bound(agent, roll, Several())
    after, same = agent(obs.flatten(0, 1))
    assert torch.equal(after[:, 1], before[:, 1])
    others = [0, 2, 3, 4, 5]
    assert (before[:, others].square().mean(0) > 2).all()
    assert torch.allclose(after[:, others].square().mean(0), torch.ones(5), rtol=1e-4)
    assert torch.allclose(after / after.square().mean(0).sqrt(), before / before.square().mean(0).sqrt(), atol=1e-4)
    assert torch.equal(same, value)


@pytest.mark.parametrize(("round_std", "warmup", "bounded"), [(0.5, 2, True), (0.0, 2, False), (0.5, 0, False)])
@pytest.mark.parametrize("fast", [False, True])
def test_a_round_with_a_standard_deviation_brings_means_back_to_the_bounds(
    round_std: float, warmup: int, bounded: bool, fast: bool
) -> None:
    settings: dict[str, Any] = dict(num_envs=2, num_steps=32, num_minibatches=2, learning_rate=1e-8, fast=fast)
    agent, config = agent_and_config("Pendulum-v1", round_std=round_std, **settings)
    with torch.no_grad():
        agent.actor[-1].bias.fill_(3.0)  # type: ignore[index]

    def score(roll: train.Rollout, _true: Any) -> None:
        roll.rewards = torch.full_like(roll.values, 0.1)

    train.train_agent(agent, score, config, CPU, steps=9 * 64, seed_path=(1, 2), warmup=warmup)
    assert agent(torch.zeros(1, 3))[0].item() == pytest.approx(1.0 if bounded else 3.0, abs=0.1)


# scripts/bench/carried.py

SHORT = (
    "--pairs-per-round", "4", "--clip-seconds", "0.5", "--agent-steps-per-round", "200", "--num-envs", "2",
    "--num-steps", "32", "--num-minibatches", "2", "--update-epochs", "1", "--ensemble-size", "2", "--reward-steps", "5",
    "--eval-episodes", "1",
)  # fmt: skip


def test_the_benchmark_of_the_carried_value_has_a_row_for_each_later_round(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["carried.py", "cartpole", "--rounds", "3", *SHORT])
    monkeypatch.setattr(carried, "COUNTED", 20)
    monkeypatch.setattr(carried, "BEYOND", 20)
    carried.main()
    head, _, *rows = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines())
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(len(row) == len(head) == 9 for row in rows)
    numbers = [float(part) for row in rows for cell in row[1:] for part in cell.split(" ± ")]
    assert all(math.isfinite(number) for number in numbers)
    assert all(row[3:6] != row[6:9] for row in rows)  # as it was, and rescaled


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["cartpol"], "no task 'cartpol'"),
        (["dot"], "dot is of images"),
        (["cartpole", "--rounds", "1"], "give 2 or more"),
        (["cartpole", "--value-warmup-iterations", "0"], "nothing is rescaled"),
    ],
)
def test_what_the_benchmark_of_the_carried_value_cannot_do_is_told(
    args: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["carried.py", *args])
    with pytest.raises(UserError, match=says):
        carried.main()
