"""From one round's agent to the next: where it begins, and which of the two is kept."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from rlhf_gym import catalog, envs, loop, succession, train
from rlhf_gym.checkpoints import Snapshot, new_agent, new_reward_model, save_state
from rlhf_gym.config import Config, resolve
from rlhf_gym.control import Control
from rlhf_gym.envs import EnvInfo
from rlhf_gym.monitor import Monitor
from rlhf_gym.store import START, Session, Where

CPU = torch.device("cpu")


def agent_and_config(env_id: str) -> tuple[train.Agent, Config, EnvInfo]:
    info = envs.describe(Config(env_id=env_id))
    config = resolve({"env_id": env_id, "seed": 1, "normalize_obs": False}, info.kind)
    return new_agent(info, config, CPU), config, info


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "rlhf_gym/Dot-v0"])
def test_a_softened_policy_tries_more_and_its_value_stays(env_id: str) -> None:
    agent, _, info = agent_and_config(env_id)
    torch.manual_seed(1)
    with torch.no_grad():
        last: Any = agent.actor if info.image else agent.actor[-1]
        last.bias[0] = 2.0
        if not agent.discrete:
            agent.log_std.fill_(-2.0)
    obs = (
        torch.randint(0, 256, (5, *info.obs_shape), dtype=torch.uint8)
        if info.image
        else torch.randn(5, *info.obs_shape)
    )
    policy, value = agent(obs)
    entropy = agent.log_prob(policy, agent.sample(policy, None))[1]
    succession.soften(agent, 1.0)
    assert torch.equal(agent(obs)[0], policy)
    succession.soften(agent, 0.1)
    found, same_value = agent(obs)
    assert torch.allclose(found, 0.1 * policy)
    assert torch.equal(same_value, value)
    assert (agent.log_prob(found, agent.sample(found, None))[1] > entropy).all()
    if not agent.discrete:
        assert agent.log_std.tolist() == [0.0]


def balancer(agent: train.Agent) -> train.Agent:
    """Keeps the pole up: it pushes to where the pole leans."""
    agent = copy.deepcopy(agent)
    first, second, third = (m for m in agent.actor if isinstance(m, nn.Linear))
    with torch.no_grad():
        first.weight[0] = torch.tensor([0.05, 0.1, 1.0, 0.4])
        second.weight[0] = torch.eye(len(second.weight))[0]
        third.weight.zero_()
        third.weight[:, 0] = torch.tensor([-5.0, 5.0])
    return agent


def turned_round(agent: train.Agent) -> None:
    """It pushes the other way, and the pole falls."""
    last: Any = agent.actor[-1]
    with torch.no_grad():
        last.weight *= -1


def judge(info: EnvInfo, config: Config) -> train.RewardModel:
    """A live step gives 2, one after the end -3, whatever is seen."""
    model = new_reward_model(info, config, CPU, 0)
    with torch.no_grad():
        model.weights[-1].zero_()
        model.biases[-1].fill_(2.0)
        model.absorbing.fill_(-5.0 / train.END_SPEED)
    return model


def test_the_worth_of_an_episode_counts_what_comes_after_its_end() -> None:
    agent, config, info = agent_and_config("CartPole-v1")
    model, up = judge(info, config), balancer(agent)
    assert succession.worth(up, model, config, 0).tolist() == pytest.approx([2.0] * succession.EPISODES)
    turned_round(up)
    worth = succession.worth(up, model, config, 0)
    lengths = (worth + 3) / 5 * succession.STEPS
    assert ((lengths > 7.5) & (lengths < 12)).all()
    assert torch.allclose(lengths, lengths.round(), atol=1e-2)
    assert succession.worth(up, model, Config(**{**vars(config), "episode_ends": "hide"}), 0).mean() == pytest.approx(2)


def test_an_episode_that_was_cut_off_counts_as_far_as_it_went() -> None:
    agent, config, info = agent_and_config("Pendulum-v1")
    assert succession.worth(agent, judge(info, config), config, 0).tolist() == pytest.approx([2.0] * 16)


@pytest.mark.parametrize(("shift", "keeps"), [(0.5, True), (0.0, True), (-0.4, True), (-0.6, False)])
def test_the_agent_of_before_is_kept_only_where_it_is_clearly_liked_better(shift: float, keeps: bool) -> None:
    before = torch.linspace(-1, 1, 16)
    assert succession.kept(before + shift, before) == keeps
    assert succession.kept(torch.ones(16), torch.ones(16))


@pytest.fixture
def at_round_one(tmp_path: Path) -> Iterator[tuple[Session, loop.Loop, io.StringIO]]:
    """A session whose agent keeps the pole up, before its second training; its reward model likes that."""
    agent, config, info = agent_and_config("CartPole-v1")
    config = Config(**{**vars(config), "agent_steps_per_round": 1024, "checkpoint_iterations": 1, "soften_policy": 0.1})
    session = catalog.create_session(tmp_path, "one", config)
    model = judge(info, config)
    for number in (START, 0):
        Snapshot(balancer(agent), model, config, info, number).save(session.checkpoint(number))
    save_state(session.partial(1, "train_agent"), {"last_label_id": 3, "reward": model.state_dict()})
    out = io.StringIO()
    monitor = Monitor(session, Console(file=out, width=1000))
    yield session, loop.Loop(session, config, info, CPU, monitor, Control(session, None), None), out
    monitor.close()
    session.close()


@pytest.mark.parametrize("worse", [True, False])
def test_a_round_that_makes_the_agent_worse_keeps_the_one_of_before_and_says_so(
    worse: bool, at_round_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, whole, out = at_round_one
    started = []

    def trained(agent: train.Agent, *args: Any, **named: Any) -> int:
        started.append(float(agent.actor[-1].weight.detach().abs().max()))
        if worse:
            turned_round(agent)
        return 1024

    monkeypatch.setattr(loop, "train_agent", trained)
    loop.fit_agent(whole, Where(1, 0, "train_agent", 0, 0))
    assert started == [pytest.approx(0.5)]  # softened: it was 5
    found = Snapshot.load(session.checkpoint(1))
    assert (found.round, found.last_label_id, found.global_step) == (1, 3, 1024)
    assert float(found.agent.actor[-1].weight.detach().abs().max()) == pytest.approx(5.0 if worse else 0.5)
    assert ("that one is kept" in out.getvalue()) == worse
    worth, before = (session.metrics(f"charts/{name}", "train_agent")[0]["value"] for name in ("worth", "worth_before"))
    assert before == pytest.approx(2.0)
    assert (worth < -2) == worse


def test_an_agent_is_softened_once_however_often_its_round_is_taken_up(
    at_round_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, _ = at_round_one
    train_agent, seen = train.train_agent, []

    def killed(agent: train.Agent, *args: Any, **named: Any) -> int:
        report = named["report"]

        def stop(done: int, total: int, metrics: dict[str, float]) -> None:
            report(done, total, metrics)
            if len(seen) < 1:
                seen.append(copy.deepcopy(agent.state_dict()))
                raise KeyboardInterrupt

        return train_agent(agent, *args, **{**named, "report": stop})

    monkeypatch.setattr(loop, "train_agent", killed)
    where = Where(1, 0, "train_agent", 0, 0)
    with pytest.raises(KeyboardInterrupt):
        loop.fit_agent(whole, where)
    soft: list[float] = []
    monkeypatch.setattr(succession, "soften", lambda agent, factor: soft.append(factor))
    loop.fit_agent(whole, where)
    assert soft == []  # what the checkpoint holds goes on
