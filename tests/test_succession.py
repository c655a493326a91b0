"""From one round's agent to the next: where it begins, and which of the two is kept."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from dataclasses import replace
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
    config = resolve({"env_id": env_id, "seed": 1, "normalize_obs": False, "bfloat16": False}, info.kind)
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
    was = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
    succession.soften(agent, 1.0, 0.0)
    assert all(torch.equal(tensor, was[name]) for name, tensor in agent.state_dict().items())
    succession.soften(agent, 1.0, 0.2)  # the standard deviation alone
    assert torch.equal(agent(obs)[0], policy)
    if not agent.discrete:
        assert agent.log_std.exp().item() == pytest.approx(0.2)
    succession.soften(agent, 0.1, 0.5)
    found, same_value = agent(obs)
    assert torch.allclose(found, 0.1 * policy)
    assert torch.equal(same_value, value)
    assert (agent.log_prob(found, agent.sample(found, None))[1] > entropy).all()
    if not agent.discrete:
        assert agent.log_std.exp().item() == pytest.approx(0.5)
        succession.soften(agent, 1.0, 0.2)  # at least
        assert agent.log_std.exp().item() == pytest.approx(0.5)


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
    model, up, looks = judge(info, config), balancer(agent), list[int]()
    [found] = succession.worth([up], model, config, 0, lambda: looks.append(1))
    assert found.tolist() == pytest.approx([2.0] * succession.EPISODES)
    assert len(looks) == succession.STEPS / succession.CHUNK
    turned_round(up)
    looks.clear()
    [worth] = succession.worth([up], model, config, 0, lambda: looks.append(1))
    assert len(looks) == 1  # all over: the rest is known
    lengths = (worth + 3) / 5 * succession.STEPS
    assert ((lengths > 7.5) & (lengths < 12)).all()
    assert torch.allclose(lengths, lengths.round(), atol=1e-2)
    assert succession.worth([up], model, replace(config, episode_ends="hide"), 0)[0].mean() == pytest.approx(2)


def test_an_episode_that_was_cut_off_counts_as_far_as_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, config, info = agent_and_config("Pendulum-v1")
    every = pytest.approx([2.0] * succession.EPISODES)
    assert succession.worth([agent], judge(info, config), config, 0)[0].tolist() == every
    monkeypatch.setattr(succession, "SECONDS", 0.0)
    looks: list[int] = []
    assert succession.worth([agent], judge(info, config), config, 0, lambda: looks.append(1))[0].tolist() == every
    assert len(looks) == 1


def test_where_time_is_short_both_agents_are_judged_over_the_same_steps_and_a_pause_does_not_count() -> None:
    agent, config, info = agent_and_config("Pendulum-v1")
    seconds, looks = 0.0, list[int]()

    def heed() -> None:  # a look takes a third of the time
        nonlocal seconds
        seconds += succession.SECONDS / 3 + 1
        looks.append(1)

    model = new_reward_model(info, config, CPU, 0)
    first, second = succession.worth([agent, agent], model, config, 0, heed, lambda: seconds)
    assert len(looks) == 4
    assert torch.equal(first, second)
    assert not torch.equal(first, succession.worth([agent], model, config, 0, clock=lambda: 0.0)[0])  # to the end


def test_whoever_is_all_over_waits_for_the_other() -> None:
    agent, config, info = agent_and_config("CartPole-v1")
    up, down, looks = balancer(agent), balancer(agent), list[int]()
    turned_round(down)
    one, other = succession.worth([down, up], judge(info, config), config, 0, lambda: looks.append(1), lambda: 0.0)
    assert len(looks) == 1 + succession.STEPS / succession.CHUNK
    assert one.max() < other.min()


def test_what_the_person_asks_for_breaks_a_comparison_off_and_closes_its_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent, config, info = agent_and_config("CartPole-v1")
    closed: list[bool] = []

    class Closing(envs.Envs):
        def close(self) -> None:
            closed.append(True)
            super().close()

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(succession, "Envs", Closing)
    with pytest.raises(KeyboardInterrupt):
        succession.worth([agent, agent], judge(info, config), config, 0, stop)
    assert closed == [True, True]


@pytest.mark.parametrize(("shift", "keeps"), [(0.5, True), (0.0, True), (-0.4, True), (-0.6, False)])
def test_the_agent_of_before_is_kept_only_where_it_is_clearly_liked_better(shift: float, keeps: bool) -> None:
    before = torch.linspace(-1, 1, 16)
    assert succession.kept(before + shift, before) == keeps
    assert succession.kept(torch.ones(16), torch.ones(16))


@pytest.fixture
def at_round_one(tmp_path: Path) -> Iterator[tuple[Session, loop.Loop, io.StringIO]]:
    """A session whose agent keeps the pole up, before its second training; its reward model likes that."""
    agent, config, info = agent_and_config("CartPole-v1")
    config = replace(
        config, agent_steps_per_round=1024, num_envs=4, num_steps=64, checkpoint_iterations=1, soften_policy=0.1,
        initial_std=0.5,
    )  # fmt: skip
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


class Seen:
    """Stands for train_agent: notes how sure the agent is that it gets, and turns it round where it is to get worse."""

    def __init__(self, worse: bool) -> None:
        self.worse, self.largest = worse, list[float]()

    def __call__(self, agent: train.Agent, *args: Any, **named: Any) -> int:
        self.largest.append(largest(agent))
        if self.worse:
            turned_round(agent)
        return 1024


def largest(agent: train.Agent) -> float:
    """Weight of the policy's last layer; 5 of the one that keeps the pole up."""
    last: Any = agent.actor[-1]
    return float(last.weight.detach().abs().max())


@pytest.mark.parametrize("worse", [True, False])
def test_a_round_that_makes_the_agent_worse_keeps_the_one_of_before_and_says_so(
    worse: bool, at_round_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, whole, out = at_round_one
    seen = Seen(worse)
    monkeypatch.setattr(loop, "train_agent", seen)
    loop.fit_agent(whole, Where(1, 0, "train_agent", 0, 0))
    assert seen.largest == [pytest.approx(0.5)]
    found = Snapshot.load(session.checkpoint(1))
    assert (found.round, found.last_label_id, found.global_step) == (1, 3, 1024)
    assert largest(found.agent) == pytest.approx(5.0 if worse else 0.5)
    assert ("that one is kept" in out.getvalue()) == worse
    names = ("worth", "worth_before", "kept")
    worth, before, kept = (session.metrics(f"charts/{name}", "train_agent")[-1] for name in names)
    assert (worth["step"], kept["value"], before["value"]) == (1024, float(not worse), pytest.approx(2.0))
    assert (worth["value"] < -2) == worse


@pytest.mark.parametrize("case", ["setting", "longer", "plan", "practice"])
def test_where_the_person_wants_it_so_what_was_trained_is_taken(
    case: str, at_round_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, whole, _ = at_round_one
    if case == "setting":
        whole.config = replace(whole.config, keep_better=False)
    elif case == "longer":
        session.add_event("longer", 1)
    elif case == "plan":
        session.add_event("plan", 1, agent=START, practice=False)
    else:
        session.partial(1, "train_agent").unlink()
        session.add_event("plan", 1, agent=0, practice=True)
    whole.control.next_turn()
    session.put_metrics(1, "train_agent", 1024, {"charts/kept": 0.0})  # killed after a comparison, before its end
    seen = Seen(worse=True)
    monkeypatch.setattr(loop, "train_agent", seen)
    loop.fit_agent(whole, Where(1, 0, "train_agent", 0, 0))
    firm = 5.0 if case == "practice" else 0.5  # more of the same reward: nothing to begin anew for
    assert seen.largest == [pytest.approx(firm)] * (2 if case == "longer" else 1)
    assert largest(Snapshot.load(session.checkpoint(1)).agent) == pytest.approx(firm)
    assert session.metrics("charts/kept", "train_agent") == []


def test_longer_asked_for_while_both_are_compared_is_heard(at_round_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session, whole, _ = at_round_one
    seen, worth = Seen(worse=False), succession.worth

    def asked(*args: Any) -> list[torch.Tensor]:
        if not session.wishes().longer(1):
            session.add_event("longer", 1)
        return worth(*args)

    monkeypatch.setattr(loop, "train_agent", seen)
    monkeypatch.setattr(succession, "worth", asked)
    loop.fit_agent(whole, Where(1, 0, "train_agent", 0, 0))
    assert len(seen.largest) == 2
    assert Snapshot.load(session.checkpoint(1)).global_step == 2048
    assert session.metrics("charts/kept") == []  # what was compared is not what was taken


@pytest.mark.parametrize(("fades", "factors"), [(False, [0.1, 0.1, 0.1]), (True, [0.1, 0.1**0.5, 0.1**0.25])])
def test_softening_fades_from_round_to_round(fades: bool, factors: list[float]) -> None:
    config = Config(soften_policy=0.1, soften_fades=fades)
    assert [succession.softness(config, number)[0] for number in (1, 2, 4)] == pytest.approx(factors)


@pytest.mark.parametrize(
    ("factor", "round_std", "expected"), [(1.0, 0.0, 0.0), (1.0, 0.3, 0.3), (0.1, 0.3, 0.5), (0.1, 0.7, 0.7)]
)
def test_a_round_begins_with_a_standard_deviation(factor: float, round_std: float, expected: float) -> None:
    config = Config(soften_policy=factor, round_std=round_std, initial_std=0.5)
    assert succession.softness(config, 3) == (factor, expected)


def test_a_round_is_softened_by_as_much_as_its_number_says(at_round_one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole, _ = at_round_one
    given: list[tuple[float, float]] = []
    monkeypatch.setattr(succession, "softness", lambda config, number: (0.1 + number, 0.5))
    monkeypatch.setattr(succession, "soften", lambda agent, *how: given.append(how))
    loop.fit_agent(whole, Where(1, 0, "train_agent", 0, 0))
    assert given == [(1.1, 0.5)]


def test_a_softened_round_that_was_killed_ends_as_one_that_was_not(
    at_round_one: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, whole, _ = at_round_one
    where, begun = Where(1, 0, "train_agent", 0, 0), session.partial(1, "train_agent").read_bytes()
    loop.fit_agent(whole, where)
    expected = Snapshot.load(session.checkpoint(1)).agent.state_dict()
    session.checkpoint(1).unlink()
    session.partial(1, "train_agent").write_bytes(begun)
    heed, calls = Monitor.heed, list[int]()

    def kill(monitor: Monitor) -> None:
        calls.append(1)
        if len(calls) in (2, 5):  # in training, and while the agents are compared
            raise KeyboardInterrupt
        heed(monitor)

    monkeypatch.setattr(Monitor, "heed", kill)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            loop.fit_agent(whole, where)
    loop.fit_agent(whole, where)
    found = Snapshot.load(session.checkpoint(1)).agent.state_dict()
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert len(calls) > 5
