"""Learning: PPO on the true reward, and the whole loop with a synthetic labeler.

The fast tests take one seed each; with --full, three, of which two at least must do.
"""

from __future__ import annotations

import io
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from rlhf_gym import catalog, dot, envs, loop, retrain
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, resolve
from rlhf_gym.evaluate import evaluate
from rlhf_gym.labelers import ScoredClip
from rlhf_gym.monitor import Monitor
from rlhf_gym.segments import load_segment
from rlhf_gym.store import START, Session

pytestmark = pytest.mark.usefixtures("one_thread")


def train_alone(monkeypatch: pytest.MonkeyPatch, *args: object) -> None:
    """python -m rlhf_gym.train …"""
    monkeypatch.setattr(sys, "argv", ["rlhf_gym.train", *map(str, args)])
    retrain.main()


def true_return(path: Path, episodes: int = 20) -> float:
    found = Snapshot.load(path)
    return evaluate(found.agent, found.config, found.info, 0, episodes)["mean"]


def run_loop(data_dir: Path, name: str, env_id: str, **settings) -> Session:
    """A whole session, in this process, with nobody there."""
    given = {"env_id": env_id, "labeler": "synthetic", **settings}
    info = envs.describe(Config(**given))
    config = resolve(given, info.kind)
    session = catalog.create_session(data_dir, name, config)
    loop.run(session, config, info, Monitor(session, Console(file=io.StringIO())))
    return session


def lengths(session: Session) -> dict[int, float]:
    """Mean length of an episode after each round."""
    return {m["round"]: m["value"] for m in session.metrics("eval/mean_length", "record")}


def falls(clip: ScoredClip) -> float:
    """Likes what is over soon."""
    return float(clip.absorbing.sum())


# ---------------------------------------------------------------------------------------------- plain PPO


def test_plain_ppo_keeps_the_pole_up(tmp_path, monkeypatch, capsys):
    out = tmp_path / "agent.pt"
    env = ("--env-id", "CartPole-v1", "--reward", "env", "--steps", 100_000, "--stop-at", 475)
    train_alone(monkeypatch, *env, "--out", out)
    assert true_return(out) >= 475
    assert 10_000 < Snapshot.load(out).global_step <= 101_000
    said = capsys.readouterr().out
    assert "trained" in said
    assert str(out) in said


def test_an_evaluation_that_fails_costs_no_training(tmp_path, monkeypatch):
    def fails(*args, **named):
        raise KeyboardInterrupt

    out = tmp_path / "agent.pt"
    monkeypatch.setattr(retrain, "evaluate", fails)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train_alone(monkeypatch, "--env-id", "CartPole-v1", "--reward", "env", "--steps", 1024, "--out", out)
    assert Snapshot.load(out).global_step == 1024


@pytest.mark.full
@pytest.mark.parametrize(
    ("env_id", "steps", "enough"),
    [("CartPole-v1", 100_000, 475), ("Pendulum-v1", 200_000, -300), ("rlhf_gym/Dot-v0", 100_000, dot.SOLVED_RETURN)],
)
def test_plain_ppo_on_three_seeds(env_id, steps, enough, tmp_path, monkeypatch):
    reached = []
    for seed in (1, 2, 3):
        out = tmp_path / f"{seed}.pt"
        env = ("--env-id", env_id, "--reward", "env", "--steps", steps, "--seed", seed)
        train_alone(monkeypatch, *env, "--out", out)
        assert Snapshot.load(out).global_step <= steps * 1.05
        reached.append(true_return(out, 40))
    assert sum(r >= enough for r in reached) >= 2, reached


# ---------------------------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def stays_up(tmp_path_factory):
    """CartPole taught to stay up in two rounds of 20 labels."""
    settings = dict(seed=2, rounds=2, pairs_per_round=20, agent_steps_per_round=20_000)
    session = run_loop(tmp_path_factory.mktemp("data"), "up-1", "CartPole-v1", **settings)
    yield session
    session.close()


def test_the_loop_teaches_cartpole_to_stay_up(stays_up):
    assert lengths(stays_up)[START] < 60
    assert lengths(stays_up)[1] >= 400
    assert stays_up.true_returns()[1] >= 400
    assert len(stays_up.pairs()) == 40
    assert all(p.choice is not None for p in stays_up.pairs())


def test_the_honest_numbers_are_in_the_metric_table(stays_up):
    values = {(m["round"], m["name"]): m["value"] for m in stays_up.metrics(phase="train_reward")}
    for name in ("log_loss", "calibration_error", "accuracy", "loss"):
        assert all(math.isfinite(values[n, f"reward/held_out_{name}"]) for n in (0, 1))
    assert 0 <= values[1, "reward/held_out_calibration_error"] < 1
    assert (1, "labels/mistake_rate") not in values  # of one repeat at most
    together = [m["value"] for m in stays_up.metrics("charts/return_correlation", "train_agent")]
    assert len(together) > 2
    assert all(-1 <= value <= 1 for value in together)
    assert max(together) > 0.5


def test_what_was_foreseen_of_clips_is_what_the_reward_model_gave_them(stays_up):
    """A reward model that learned to stay up, and the clips of an agent that fell."""
    before, batch = Snapshot.load(stays_up.checkpoint(1)), stays_up.pairs(0)
    found = loop.clips_foreseen(stays_up, before, batch)["reward/prequential_correlation"]
    clips, predicted = stays_up.clips({i for p in batch for i in (p.left_clip, p.right_clip)}), []
    for clip in clips.values():
        segment = load_segment(stays_up.path / clip.path)
        obs, actions, ended, count = (torch.as_tensor(x) for x in segment.rows())
        predicted.append(float((before.reward.reward(obs, actions, ended) * count).sum()))
    assert found == pytest.approx(np.corrcoef(predicted, [c.true_return for c in clips.values()])[0, 1], abs=1e-4)
    assert found > 0.5
    others = [replace(p, kind="disagreement") for p in batch]
    assert loop.clips_foreseen(stays_up, before, others) == {}
    assert loop.clips_foreseen(stays_up, Snapshot.load(stays_up.checkpoint(START)), batch) == {}


def test_clips_are_foreseen_from_the_second_round_on(tmp_path):
    session = run_loop(tmp_path, "one", "Pendulum-v1", **{**TINY, "pairs_per_round": 16})
    for name in ("correlation", "log_loss", "accuracy"):
        assert [m["round"] for m in session.metrics(f"reward/prequential_{name}", "train_reward")] == [1]
    session.close()


def test_the_same_loop_teaches_it_to_fall(tmp_path):
    settings = dict(seed=2, rounds=1, pairs_per_round=20, agent_steps_per_round=10_000)
    session = run_loop(tmp_path, "fall-1", "CartPole-v1", score=f"{__name__}:falls", **settings)
    assert lengths(session)[START] > 15
    assert lengths(session)[0] <= 15
    session.close()


def test_retraining_needs_the_labels_alone_and_changes_nothing(stays_up, tmp_path, monkeypatch, capsys):
    def files() -> dict[str, bytes]:
        found = (f for f in stays_up.path.rglob("*") if f.is_file() and f.suffix not in (".db-wal", ".db-shm"))
        return {str(f): f.read_bytes() for f in found}

    before, out = files(), tmp_path / "agent.pt"
    where = (stays_up.name, "--data-dir", stays_up.path.parent, "--out", out)
    train_alone(monkeypatch, *where, "--steps", 30_000, "--seed", 7)
    assert "train_reward 40 labels" in capsys.readouterr().out
    assert true_return(out) >= 400
    assert Snapshot.load(out).reward is not None
    assert files() == before


@pytest.mark.full
@pytest.mark.parametrize(("score", "up"), [("", True), (f"{__name__}:falls", False)], ids=["stays up", "falls"])
def test_the_loop_on_three_seeds(score, up, tmp_path):
    found = []
    for seed in (1, 2, 3):
        session = run_loop(
            tmp_path, f"cartpole-{seed}", "CartPole-v1", seed=seed, rounds=3, pairs_per_round=20, score=score,
            mistake_rate=0.05,
        )  # fmt: skip
        found.append(lengths(session)[2])
        session.close()
    assert sum(length >= 400 if up else length <= 15 for length in found) >= 2, found


TINY = dict(
    rounds=2, pairs_per_round=4, clip_seconds=0.5, repeat_fraction=0.25, agent_steps_per_round=200, num_envs=2,
    num_steps=32, num_minibatches=2, update_epochs=1, ensemble_size=2, reward_steps=5, eval_episodes=1,
    checkpoint_iterations=2, keep_better=False,  # so little training seldom gives a better agent
)  # fmt: skip
ENVIRONMENTS = {
    "CartPole-v1": {}, "Pendulum-v1": {}, "rlhf_gym/Dot-v0": {}, "Hopper-v5": {}, "LunarLander-v3": {},
    "ALE/Pong-v5": dict(env_kwargs={"max_num_frames_per_episode": 300}, noop_max=5, image_size=42),
}  # fmt: skip


@pytest.mark.parametrize("env_id", list(ENVIRONMENTS))
def test_two_rounds_on_every_kind_of_environment(env_id, tmp_path):
    # a score that seldom ties, as Pong's true reward over half a second mostly does
    score = f"{__name__}:looks"
    session = run_loop(tmp_path, "one", env_id, **TINY, score=score, **ENVIRONMENTS[env_id])
    assert session.where().phase == "finished"
    assert session.trained_rounds() == [START, 0, 1]
    pairs = session.pairs()
    assert [p.round for p in pairs] == [0] * 4 + [1] * 4
    assert sorted(p.kind for p in pairs[4:]) == ["disagreement"] * 2 + ["repeat"] + ["uniform"]
    assert all(p.choice in ("left", "right") for p in pairs)
    (repeat,) = (p for p in pairs if p.kind == "repeat")
    assert {repeat.choice, next(p.choice for p in pairs if p.id == repeat.repeat_of)} == {"left", "right"}
    assert all((session.path / c.path).exists() and c.sheet is None for c in session.clips().values())
    agents = [Snapshot.load(session.checkpoint(n)) for n in (START, 0, 1)]
    assert [a.global_step for a in agents] == [0, 256, 512]
    assert [a.last_label_id for a in agents] == [0, 4, 8]
    assert agents[0].reward is None
    for a, b in ((0, 1), (1, 2)):  # each round moved the agent
        one, two = agents[a].agent.state_dict(), agents[b].agent.state_dict()
        assert any(not torch.equal(one[k], two[k]) for k in one if k.startswith("actor"))
    values = {(m["round"], m["name"]): m["value"] for m in session.metrics()}
    for name in ("reward/loss", "charts/predicted_reward", "losses/policy_loss", "eval/mean", "eval/score_mean"):
        assert math.isfinite(values[1, name])
    assert (1, "reward/prequential_accuracy") in values
    assert values[1, "labels/consistency"] == 1
    left = {p.name for p in (session.path / "checkpoints").iterdir()}
    assert left == {"start.pt", "r000.pt", "r001.pt"}
    session.close()


def looks(clip: ScoredClip) -> float:
    """A taste that hardly two clips meet equally: where in the observation there is most."""
    flat = clip.observations.reshape(len(clip.observations), -1).astype(np.float64)
    return float((flat @ np.linspace(1, 2, flat.shape[1])).sum() + clip.absorbing.sum())


@pytest.mark.parametrize("ends", ["absorb", "hide"])
def test_hidden_ends_go_through_the_loop(ends, tmp_path):
    session = run_loop(tmp_path, "one", "CartPole-v1", **TINY, score=f"{__name__}:looks", episode_ends=ends)
    clips = [load_segment(session.path / c.path) for c in session.clips().values()]
    assert any(s.absorbing.any() for s in clips) == (ends == "absorb")
    session.close()


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "name a session"),
        (["--reward", "env"], "--env-id CartPole-v1"),
        (["nothing-1"], 'No session "nothing-1"'),
        (["--reward", "env", "--env-id", "CartPol-v1"], "did you mean CartPole-v1"),
        (["--reward", "env", "--env-id", "CartPole-v1", "--gamma", "1.5"], "--gamma 1.5 is out of range"),
        (["--reward", "env", "--env-id", "CartPole-v1", "--steps", "-3"], "--steps -3"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(args, says, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        train_alone(monkeypatch, *args, "--data-dir", tmp_path)
    said = capsys.readouterr()
    assert left.value.code == 1
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_retraining_settings_are_checked_too(stays_up, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        train_alone(monkeypatch, stays_up.name, "--data-dir", stays_up.path.parent, "--ensemble-size", "0")
    assert "--ensemble-size 0 is out of range" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--pixels",), "--pixels cannot change from False to True when labels are learned from anew"),
        (("--env-kwargs", '{"sutton_barto_reward": true}'), "--env-kwargs cannot change from {} to"),
        (("--episode-ends", "hide"), "--episode-ends cannot change from 'absorb' to 'hide'"),
        (("--env-id", "Pendulum-v1"), "--env-id Pendulum-v1 is for --reward env: the labels of"),
        (("--out", "."), "--out . is a directory: name the file to write"),
        (("--out", "/dev/null/agent.pt"), "Cannot write to /dev/null ("),
        (("--out", "/proc/agent.pt"), "Cannot write to /proc ("),
        (("--out", "a" * 300), "Cannot write to . (File name too long)"),
    ],
)
def test_what_the_labels_do_not_fit_is_told_before_anything_is_trained(more, says, stays_up, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        train_alone(monkeypatch, stays_up.name, "--data-dir", stays_up.path.parent, *more)
    said = capsys.readouterr()
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_retraining_says_which_clips_are_damaged_and_learns_nothing_of_labels_that_tell_nothing(
    stays_up, tmp_path, monkeypatch, capsys
):
    shutil.copytree(stays_up.path, tmp_path / "data" / "one")
    session = catalog.open_session(tmp_path / "data", "one")
    damaged = session.path / next(iter(session.clips().values())).path
    damaged.write_bytes(b"no clip")

    def tells_nothing(model, *args, **named):
        model.scale.zero_()
        return {}

    monkeypatch.setattr(retrain, "train_reward", tells_nothing)
    with pytest.raises(SystemExit):
        train_alone(monkeypatch, "one", "--data-dir", tmp_path / "data")
    said = capsys.readouterr()
    assert f"{damaged.name}" in said.out
    assert "Its pairs are left out." in said.out
    assert said.err == "rlhf-gym: The labels of session 'one' tell no clip from another: label more pairs first.\n"
    session.close()


def test_a_session_without_a_decided_label_cannot_be_retrained(tmp_path, monkeypatch, capsys):
    info = envs.describe(Config(env_id="CartPole-v1"))
    config = resolve({"env_id": "CartPole-v1"}, info.kind)
    catalog.create_session(tmp_path, "new-1", config).close()
    with pytest.raises(SystemExit):
        train_alone(monkeypatch, "new-1", "--data-dir", tmp_path)
    assert "'new-1' has no label that says better or worse" in capsys.readouterr().err
