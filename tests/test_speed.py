"""Where the time goes, and that what makes it shorter changes no result."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from rlhf_gym import catalog, checkpoints, config, envs, episodes, running, train
from rlhf_gym.config import Config, UserError, resolve
from rlhf_gym.monitor import Monitor
from rlhf_gym.store import Session, Where
from rlhf_gym.train import Agent, Rollout

CPU = torch.device("cpu")


def test_the_shares_of_the_time_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 3.5, 7.5, 8.0])
    monkeypatch.setattr(episodes.time, "perf_counter", lambda: next(now))
    watch = episodes.Stopwatch()
    for part in ("inference", "environment", "inference", "update", "reward"):
        watch.lap(part)
    assert watch.shares() == {
        "time/environment": 2 / 8, "time/inference": 1.5 / 8, "time/reward": 0.5 / 8, "time/update": 4 / 8,
    }  # fmt: skip
    monkeypatch.undo()
    assert set(episodes.Stopwatch().shares().values()) == {0.0}


def test_training_tells_where_its_time_goes() -> None:
    config = resolve({"env_id": "CartPole-v1", "num_envs": 2, "num_steps": 16, "num_minibatches": 2}, "classic")
    info = envs.describe(config)
    told: list[dict[str, float]] = []
    agent = Agent(info, config)

    def score(roll: Rollout, true_rewards: np.ndarray) -> None:
        time.sleep(0.2)  # a reward model that takes its time
        roll.rewards = torch.as_tensor(true_rewards)

    train.train_agent(agent, score, config, CPU, steps=64, seed_path=(1,), report=lambda d, t, m: told.append(m))
    for metrics in told:
        shares = [metrics[f"time/{part}"] for part in episodes.PARTS]
        assert sum(shares) == pytest.approx(1.0)
        assert min(shares) > 0
    assert told[-1]["time/reward"] > 0.1  # the first one loads parts of torch as well


def test_line_and_page_show_where_the_time_goes(tmp_path: Path) -> None:
    session = catalog.create_session(tmp_path, "one", Config(env_id="CartPole-v1"))
    text = io.StringIO()
    monitor = Monitor(session, Console(file=text, width=200))
    shares = {"time/environment": 0.25, "time/update": 0.75}
    with monitor.phase(0, "train_agent", "steps") as report:
        report(1, 10, shares)
        assert monitor.line().endswith("environment 25%, update 75%")
        monitor.page()
        assert session.progress()["parts"] == {"environment": 0.25, "update": 0.75}
        report(10, 10, shares)
    assert "environment" not in text.getvalue()  # once it is over
    with monitor.phase(1, "collect", "clips"):
        assert session.progress()["parts"] == {}
    monitor.close()
    session.close()


def test_the_time_left_counts_neither_what_came_before_the_first_report_nor_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = catalog.create_session(tmp_path, "one", Config(env_id="CartPole-v1"))
    monitor = Monitor(session, Console(file=io.StringIO()))
    now = 100.0
    monkeypatch.setattr("rlhf_gym.monitor.time.monotonic", lambda: now)
    with monitor.phase(0, "train_agent", "steps") as report:
        now += 5  # environments are made, torch is warmed up: the first iteration is slow
        report(1000, 10_000)
        assert monitor.eta() is None
        for done in (2000, 3000):
            now += 2
            report(done, 10_000)
        assert monitor.speed() == pytest.approx(500)
        assert monitor.eta() == pytest.approx(14)
        now += 60
        monitor.began += 60  # what `heed` does for a pause of a minute
        assert monitor.eta() == pytest.approx(14)
    monkeypatch.undo()
    monitor.close()
    session.close()


@pytest.mark.parametrize("phase", ["train_reward", "train_agent", "label"])
def test_fast_stays_as_it_is_in_the_middle_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """The optimizer's memory is laid out otherwise."""
    before = resolve({"env_id": "CartPole-v1"}, "classic")
    session = catalog.create_session(tmp_path, "one", before)
    monkeypatch.setattr(Session, "where", lambda self: Where(0, 0, phase, 1, 1))
    after, changes = config.changed(before, {"fast": False})
    info = envs.describe(before)
    if phase == "label":
        running.check_change(session, after, info, changes)
    else:
        with pytest.raises(UserError, match="--fast cannot change in the middle of training"):
            running.check_change(session, after, info, changes)
    session.close()


def test_a_checkpoint_is_used_as_its_session_wants_it(tmp_path: Path) -> None:
    made = resolve({"env_id": "rlhf_gym/Dot-v0", "image_size": 36, "frame_stack": 2}, "pixels")
    info = envs.describe(made)
    agent, reward = checkpoints.new_agent(info, made, CPU), checkpoints.new_reward_model(info, made, CPU, 0)
    checkpoints.Snapshot(agent, reward, made, info, 0).save(tmp_path / "r000.pt")
    for wanted in (True, False):
        loaded = checkpoints.Snapshot.load(tmp_path / "r000.pt", of=dataclasses.replace(made, fast=wanted))
        assert loaded.reward is not None
        assert loaded.agent.fast == loaded.reward.fast == loaded.config.fast == wanted
