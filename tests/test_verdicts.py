"""What the pages show of the reward model, and the films of an agent in training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import TINY, command
from videos import read_video

from rlhf_gym import catalog, verdicts
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import describe
from rlhf_gym.labels import load_labels
from rlhf_gym.live import SHARE, Live
from rlhf_gym.segments import load_segment
from rlhf_gym.train import pair_logits, train_agent

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of two tiny rounds with videos."""
    cwd = tmp_path_factory.mktemp("rendered")
    result = command("run", "CartPole-v1", "--session", "one", *TINY, "--render", cwd=cwd)
    assert result.status == 0, result.err
    return cwd


def test_every_video_is_judged_by_the_newest_reward_model(rendered: Path) -> None:
    session = catalog.open_session(rendered / "data", "one")
    newest = Snapshot.load(session.checkpoint(1))
    assert newest.reward is not None
    found = {n: json.loads(session.verdict(n).read_text()) for n in (-1, 0, 1)}
    episodes = {n: load_segment(session.episode(n)) for n in found}
    longest = max(len(e.rewards) for e in episodes.values())
    for n, verdict in found.items():
        episode, live = episodes[n], ~episodes[n].absorbing
        assert verdict["judge"] == 1
        steps = int(live.sum())
        frames = read_video(session.video(n))
        stride = round(50 / verdict["fps"])  # CartPole runs at 50 steps a second
        assert len(frames) == len(range(0, steps + 1, stride))
        obs, actions = (torch.as_tensor(x[live]) for x in (episode.observations, episode.actions))
        by_step = newest.reward.reward(obs, actions).numpy()
        by_frame = [by_step[i : i + stride].mean() for i in range(0, steps, stride)]
        assert np.allclose(verdict["predicted"], by_frame, atol=1e-6)
        assert verdict["true"] == [1.0] * len(by_frame)
        assert verdict["ended"] == bool(episode.absorbing.any())
        if verdict["ended"]:
            last = torch.as_tensor(episode.observations[steps:][:1])
            after = float(newest.reward.reward(last, torch.zeros(1), torch.tensor([True])))
            total = by_step.sum() + (longest - steps) * after
            assert verdict["mean"] == pytest.approx(total / longest, abs=1e-6)
    session.close()


def test_opinions_are_of_the_members_that_did_not_learn_from_the_pair(rendered: Path) -> None:
    session = catalog.open_session(rendered / "data", "one")
    snapshot = Snapshot.load(session.checkpoint(1))
    labels = load_labels(session, snapshot.agent.from_env, session.config.seed, session.config.ensemble_size)
    assert labels is not None
    assert snapshot.reward is not None
    with torch.no_grad():
        p = torch.sigmoid(pair_logits(snapshot.reward, labels, torch.arange(len(labels.pairs)), CPU))
    stored = session.opinions()
    assert set(stored) == {pair.id for pair in labels.pairs}
    for i, pair in enumerate(labels.pairs):
        unseen = labels.weight[:, i] == 0
        asked = p[unseen, i] if unseen.any() else p[:, i]
        assert stored[pair.id].p_left == pytest.approx(float(asked.mean()), abs=1e-6)
        assert stored[pair.id].members == int(unseen.sum())
    session.close()


def test_a_damaged_episode_costs_its_verdict_alone(rendered: Path, tmp_path: Path) -> None:
    shutil.copytree(rendered / "data", tmp_path / "data")
    session = catalog.open_session(tmp_path / "data", "one")
    session.episode(0).write_bytes(b"torn")
    snapshot = Snapshot.load(session.checkpoint(1))
    assert snapshot.reward is not None
    verdicts.judge_videos(session, snapshot.reward, snapshot.agent, snapshot.info, 7)
    assert not session.verdict(0).exists()
    assert json.loads(session.verdict(1).read_text())["judge"] == 7
    session.close()


def test_values_that_are_no_numbers_are_left_out() -> None:
    assert verdicts.shown(np.array([1.0, 3.0, 5.0]), 2) == [2.0, 5.0]
    assert verdicts.shown(np.array([1.0, np.nan]), 1) is None


# ---------------------------------------------------------------------------------------------- films in training


def trained(rendered: Path, directory: Path, filmed: bool, **settings: Any) -> tuple[dict[str, Any], Live]:
    """An agent of the session trained on, with or without films; its weights."""
    source = catalog.open_session(rendered / "data", "one")
    snapshot = Snapshot.load(source.checkpoint(0))
    source.close()
    assert snapshot.reward is not None
    config = Config(**{**vars(snapshot.config), **settings})
    session = catalog.create_session(directory, "film", config)
    live = Live(session, config, snapshot.info)

    def report(_done: int, _total: int, _metrics: dict[str, float]) -> None:
        if filmed:
            live.maybe(snapshot.agent, 1000.0)  # a slow machine: plenty of time is saved up

    train_agent(snapshot.agent, snapshot.reward.score, config, CPU, steps=256, seed_path=(1, 2), report=report)
    session.close()
    return snapshot.agent.state_dict(), live


def test_films_take_nothing_from_the_training(rendered: Path, tmp_path: Path) -> None:
    plain, _ = trained(rendered, tmp_path / "a", False)
    filmed, live = trained(rendered, tmp_path / "b", True)
    assert live.films >= 2
    assert live.spent > 0
    assert all(torch.equal(plain[k], filmed[k]) for k in plain)
    video = read_video(tmp_path / "b" / "film" / "videos" / "live.mp4")
    assert video.ndim == 4
    assert len(video) > 1


def test_films_take_at_most_their_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: each film takes longer than it was given, by half a second more or less."""
    config = Config(env_id="CartPole-v1")
    session = catalog.create_session(tmp_path, "one", config)
    now = [0.0]
    given: list[float] = []
    overheads = (0.5, 0.3, 0.8, 0.4)

    def film(*_args: Any, max_seconds: float, **_more: Any) -> None:
        given.append(max_seconds)
        now[0] += max_seconds + overheads[len(given) % len(overheads)]
        live.session.live_video().write_bytes(b"film")

    monkeypatch.setattr("rlhf_gym.live.record_video", film)
    monkeypatch.setattr("rlhf_gym.live.time.monotonic", lambda: now[0])
    live = Live(session, config, describe(config))
    live.calibrate(None)  # type: ignore[arg-type]
    assert live.spent == 0
    assert not session.live_video().exists()
    for _ in range(10_000):
        live.maybe(None, 1.0)  # type: ignore[arg-type]
        assert live.share <= SHARE
    assert live.films > 10
    assert live.share > SHARE / 4
    session.close()


def test_a_film_that_cannot_be_written_stops_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(env_id="CartPole-v1")
    session = catalog.create_session(tmp_path, "one", config)
    calls: list[int] = []

    def fail(*_args: Any, **_more: Any) -> None:
        calls.append(1)
        raise UserError("Cannot write the video live.mp4 (No space left on device).")

    monkeypatch.setattr("rlhf_gym.live.record_video", fail)
    live = Live(session, config, describe(config))
    for _ in range(5):
        live.maybe(None, 1000.0)  # type: ignore[arg-type]
    assert len(calls) == 1
    assert "No space left" in live.broken
    session.close()


def test_an_opinion_that_is_no_number_is_none(rendered: Path) -> None:
    session = catalog.open_session(rendered / "data", "one")
    snapshot = Snapshot.load(session.checkpoint(1))
    labels = load_labels(session, snapshot.agent.from_env, session.config.seed, session.config.ensemble_size)
    assert labels is not None
    labels.logits = torch.full(labels.weight.shape, float("nan"))
    assert verdicts.opinions(labels, 1) == []
    session.close()
