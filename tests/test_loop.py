"""The loop: one command does it all, the same seed gives the same agent, and no crash costs more than a moment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from compare import NAMES, run, same_session, same_tensors, session_in, without
from processes import Kill, Spawned, command

from rlhf_gym import loop, store
from rlhf_gym.checkpoints import load_state
from rlhf_gym.config import Config, resolve
from rlhf_gym.envs import describe
from rlhf_gym.segments import load_segment
from rlhf_gym.store import START

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, and SIGKILLs, its processes")


# ---------------------------------------------------------------------------------------------- undisturbed


def test_two_rounds_leave_everything_behind(whole: Path) -> None:
    session = session_in(whole)
    assert session.where().phase == "finished"
    assert session.trained_rounds() == [START, 0, 1]
    for number in (0, 1):
        batch = session.pairs(number)
        assert len(batch) == 6
        assert all(p.choice in store.CHOICES for p in batch)
        for clip in session.clips([c for p in batch for c in (p.left_clip, p.right_clip)]).values():
            segment = load_segment(session.path / clip.path)
            assert len(segment.rewards) == clip.steps == 20  # 0.4 s at 50 a second
            assert clip.sheet is None  # nobody looks
            assert clip.true_return == segment.rewards.sum()
    assert sum(p.kind == "repeat" for p in session.pairs(1)) == 2  # a third of six
    assert set(session.true_returns()) == {START, 0, 1}
    names = {m["name"] for m in session.metrics()}
    assert {"eval/mean", "eval/mean_length", "reward/loss", "reward/held_out_accuracy", "charts/true_return"} <= names
    assert {"reward/prequential_accuracy", "losses/value_loss", "charts/predicted_reward", "charts/SPS"} <= names
    assert session.config.checkpoint_iterations == 2
    assert list(session.path.glob("videos/*")) == []
    assert list(session.path.glob("tb/events*"))
    assert session.progress()["phase"] == "finished"
    header = session.header()
    assert header["versions"]["torch"] == torch.__version__
    assert header["info"]["obs_shape"] == [4]
    session.close()


def test_checkpoints_say_what_made_them(whole: Path) -> None:
    session = session_in(whole)
    metas = [json.loads(load_state(session.checkpoint(n))["meta"]) for n in (START, 0, 1)]
    assert [m["round"] for m in metas] == [START, 0, 1]
    assert [m["global_step"] for m in metas] == [0, 128, 256]
    assert [m["last_label_id"] for m in metas] == [0, 6, 12]
    assert json.loads(metas[1]["config"])["reward_steps"] == 400
    steps = {m["step"] for m in session.metrics("losses/value_loss", "train_agent") if m["round"] == 1}
    assert steps <= {160, 192, 224, 256}  # those of round 0 go before
    assert max(steps) == 256
    session.close()


def test_one_seed_gives_one_agent(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path).status == 0
    same_session(whole, tmp_path)


def test_another_seed_gives_another_agent(whole: Path, tmp_path: Path) -> None:
    """Else the comparisons here would prove nothing."""
    assert run(tmp_path, "--seed", "2", "--rounds", "1").status == 0
    paths = [cwd / "data" / "one" / "checkpoints" / "r000.pt" for cwd in (whole, tmp_path)]
    with pytest.raises(AssertionError, match="/agent/"):
        same_tensors(*paths, ignore=("meta",))


def test_where_it_may_resume_does_not_show(tmp_path: Path, whole: Path) -> None:
    """The environments go on past in-phase checkpoints, so that their interval makes no other agent in a short round."""
    assert run(tmp_path, "--checkpoint-iterations", "3", "--rounds", "1").status == 0
    paths = [cwd / "data" / "one" / "checkpoints" / "r000.pt" for cwd in (whole, tmp_path)]
    assert same_tensors(*paths, ignore=("meta",)) > 10


def test_clips_and_videos_of_a_synthetic_session_on_request(tmp_path: Path) -> None:
    result = run(tmp_path, "--render", "--rounds", "1", "--reward-steps", "5", "--pairs-per-round", "2")
    assert result.status == 0, result.err
    session = session_in(tmp_path)
    for clip in session.clips().values():
        assert clip.sheet is not None
        assert (session.path / clip.sheet).read_bytes().startswith(b"\x89PNG")
        assert clip.frames is not None
        assert 1 <= clip.frames <= 20
    videos = {f"{name}.{kind}" for name in ("start", "r000") for kind in ("mp4", "npz", "json")}
    assert {p.name for p in session.path.glob("videos/*")} == videos
    session.close()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "rlhf_gym/Dot-v0", "ALE/Pong-v5"])
def test_an_iteration_is_measured_with_minibatches_of_the_size_trained_with(
    env_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = describe(Config(env_id=env_id))
    config = resolve({"env_id": env_id, "num_envs": 8, "num_steps": 128, "num_minibatches": 8}, info.kind)
    measured: list[Config] = []

    def noted(_agent: Any, _score: Any, given: Config, *_args: Any, report: Any, **_more: Any) -> None:
        measured.append(given)
        report(1, 1, {"charts/SPS": 512.0})

    monkeypatch.setattr(loop, "train_agent", noted)
    seconds = loop.measure_iteration(SimpleNamespace(config=config, info=info, device=torch.device("cpu")))  # type: ignore[arg-type]
    assert seconds == 2.0  # 1,024 steps
    assert measured[0].num_steps == (16 if info.image else 128)
    assert measured[0].num_envs * measured[0].num_steps / measured[0].num_minibatches == 128


def test_settings_not_given_are_measured_once(tmp_path: Path) -> None:
    result = run(tmp_path, "--checkpoint-iterations", "0", "--rounds", "1", "--reward-steps", "5")
    assert result.status == 0
    assert re.search(r"CartPole-v1 on cpu: about \d+ s of agent training a round, ", result.err)
    assert "6 pairs to label" in result.err
    session = session_in(tmp_path)
    measured = session.config.checkpoint_iterations
    assert measured > 1
    assert session.header()["seconds_per_iteration"] > 0
    assert json.loads(load_state(session.checkpoint(0))["meta"])["config"].count(f'"checkpoint_iterations": {measured}')
    again = command("resume", "one", "--rounds", "2", cwd=tmp_path)
    assert again.status == 0
    assert "about" not in again.err
    assert session.config.checkpoint_iterations == measured
    session.close()


# ---------------------------------------------------------------------------------------------- the true reward

TWINS = """
import gymnasium, numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class NaN(CartPoleEnv):
    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, float("nan"), *rest

for name, entry in (("Plain-v0", CartPoleEnv), ("NaN-v0", NaN)):
    gymnasium.register(name, entry_point=entry, max_episode_steps=500)

def upright(clip):
    return -np.abs(clip.observations[:, 2]).sum()
"""


def test_the_true_reward_never_reaches_the_learner(tmp_path: Path) -> None:
    for name in ("Plain-v0", "NaN-v0"):
        cwd = tmp_path / name
        cwd.mkdir()
        (cwd / "twins.py").write_text(TWINS)
        result = run(cwd, "--score", "twins:upright", env_id=f"twins:{name}")
        assert result.status == 0, result.err
    for name in NAMES:
        plain, nan = (tmp_path / n / "data" / "one" / "checkpoints" / name for n in ("Plain-v0", "NaN-v0"))
        assert same_tensors(plain, nan, ignore=("meta",)) >= 8  # meta names the environment
    session = session_in(tmp_path / "NaN-v0")
    assert session.where().phase == "finished"
    assert session.true_returns() == {}
    assert all(clip.true_return is None for clip in session.clips().values())
    assert [m["round"] for m in session.metrics("eval/mean_length")] == [START, 0, 1]
    labels = {p.choice for p in session.pairs()}
    assert {"left", "right"} <= labels
    session.close()


def test_a_true_return_that_is_nan_cannot_label(tmp_path: Path) -> None:
    (tmp_path / "twins.py").write_text(TWINS)
    result = run(tmp_path, env_id="twins:NaN-v0")
    assert result.status == 1
    assert result.err.splitlines()[-1].startswith("rlhf-gym: The true return of a clip is NaN")


# ---------------------------------------------------------------------------------------------- SIGKILL

KILLS = [
    # collect
    Kill("rlhf_gym.collect:save_segment", 5),  # some files of the batch are there
    Kill("rlhf_gym.rows:_insert", 9),  # half of the transaction
    Kill("rlhf_gym.store:Session.add_batch", 2, before=True),  # round 1: all files, no rows
    Kill("rlhf_gym.store:Session.add_batch", 1),
    # label
    Kill("rlhf_gym.store:Session.add_label", 3),
    Kill("rlhf_gym.store:Session.add_label", 10),  # round 1
    # train_reward: its labels fixed, its checkpoint at step 200 and at the end, the reward model done
    Kill("rlhf_gym.loop:save_state", 1),
    Kill("rlhf_gym.loop:save_state", 2),
    Kill("rlhf_gym.loop:save_state", 3),
    Kill("rlhf_gym.loop:save_state", 4),
    # train_agent: before its first iteration, between checkpoints, and when its checkpoint is all but done
    Kill("rlhf_gym.loop:save_state", 5),
    Kill("rlhf_gym.train:update", 4),
    Kill("rlhf_gym.train:update", 7),  # round 1
    Kill("rlhf_gym.checkpoints:Snapshot.save", 2, before=True),
    Kill("rlhf_gym.checkpoints:Snapshot.save", 3),  # round 1 is trained, its partial checkpoint not yet gone
    # record
    Kill("rlhf_gym.evaluate:evaluate", 2),  # played, not yet stored
    Kill("rlhf_gym.monitor:Monitor.put", 1),  # the untrained agent
    # anywhere: the file is written, and not yet renamed into its place
    Kill("os:replace", 20, before=True),
]
FEW = ("collect:save_segment", "Session.add_label", "loop:save_state", "train:update", "evaluate:evaluate")


def few(kill: Kill) -> bool:
    """Whether the fast tests have it: one in each phase; the two rounds of each run share what is slow."""
    return kill in (KILLS[0], KILLS[4], KILLS[7], KILLS[12], KILLS[15])


@pytest.mark.parametrize("kill", [pytest.param(k, id=str(k), marks=[] if few(k) else pytest.mark.full) for k in KILLS])
def test_a_killed_session_ends_like_one_that_was_not(whole: Path, tmp_path: Path, kill: Kill) -> None:
    killed = run(tmp_path, kill=kill)
    assert killed.status == -signal.SIGKILL, f"{kill} was never made:\n{killed.err}"
    session = session_in(tmp_path)
    labels = {p.id: p.choice for p in session.pairs() if p.choice is not None}
    rounds = session.trained_rounds()
    assert session.where().phase != "finished"
    session.close()
    resumed = command("resume", "one", cwd=tmp_path)
    assert resumed.status == 0, resumed.err
    again = {p.id: p.choice for p in session.pairs()}
    assert {p: again[p] for p in labels} == labels
    for number in rounds:
        assert f"round {number} train_agent" not in resumed.err
    same_session(whole, tmp_path)


@pytest.mark.parametrize(
    ("kill", "more"),
    [
        # Two rounds of four iterations; killed at the fourth, the checkpoint before the third is the last.
        (Kill("rlhf_gym.train:update", 4), Kill("rlhf_gym.train:update", 2 + 4 + 1)),
        # Two rounds of 400 steps and a few evaluations; killed at step 200 of the first.
        (Kill("rlhf_gym.loop:save_state", 2), Kill("rlhf_gym.train:label_loss", 200 + 400 + 50)),
    ],
    ids=["train_agent", "train_reward"],
)
def test_a_killed_phase_goes_on_from_its_last_checkpoint(tmp_path: Path, kill: Kill, more: Kill) -> None:
    assert run(tmp_path, kill=kill).status == -signal.SIGKILL
    assert command("resume", "one", cwd=tmp_path, kill=more).status == 0, "work was done again"


def test_a_label_pressed_while_the_reward_model_trains_waits_for_the_next_round(whole: Path, tmp_path: Path) -> None:
    """What a round learns from is fixed before it learns, so that a kill does not change it."""
    assert run(tmp_path, kill=Kill("rlhf_gym.loop:save_state", 2)).status == -signal.SIGKILL
    session = session_in(tmp_path)
    pair = next(p for p in session.pairs(0) if p.choice in ("left", "right"))
    late = session.add_label("late", pair.id, "left" if pair.choice == "right" else "right", strength="strong")
    assert command("resume", "one", "--rounds", "1", cwd=tmp_path).status == 0
    assert same_tensors(session_in(whole).checkpoint(0), session.checkpoint(0), ignore=("meta",)) >= 8
    assert json.loads(load_state(session.checkpoint(0))["meta"])["last_label_id"] == late - 1
    session.close()


def test_a_session_killed_again_and_again(whole: Path, tmp_path: Path) -> None:
    """Each process dies a little later than the one before it, in whatever phase that is."""
    assert run(tmp_path, kill=Kill("rlhf_gym.store:Session.add_label", 2)).status == -signal.SIGKILL
    for kill, phase in (
        (Kill("rlhf_gym.loop:save_state", 2), "train_reward"),
        (Kill("rlhf_gym.train:update", 3), "train_agent"),
        (Kill("rlhf_gym.rows:_insert", 3), "collect"),
        (Kill("rlhf_gym.evaluate:evaluate", 1), "label"),  # round 0 is recorded while round 1 could be labeled
        (Kill("rlhf_gym.train:update", 1), "train_agent"),
    ):
        assert command("resume", "one", cwd=tmp_path, kill=kill).status == -signal.SIGKILL, kill
        session = session_in(tmp_path)
        assert session.where().phase == phase
        session.close()
    assert command("resume", "one", cwd=tmp_path).status == 0
    same_session(whole, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("phase", ["collect", "label", "train_reward", "train_agent", "record"])
def test_a_kill_from_outside(tmp_path: Path, phase: str) -> None:
    """SIGKILL to a plain `python -m rlhf_gym`, at whatever moment of the phase it strikes."""
    settings = ("--pairs-per-round", "40", "--reward-steps", "2000", "--reward-epochs", "2000",
                "--agent-steps-per-round", "2048", "--eval-episodes", "20")  # fmt: skip
    for name in ("straight", "struck"):
        (tmp_path / name).mkdir()
    assert run(tmp_path / "straight", *settings).status == 0
    with Spawned(
        "run", "CartPole-v1", "--session", "one", *without(settings), *settings, cwd=tmp_path / "struck"
    ) as one:
        one.wait_for_phase(phase, "one")
        one.process.kill()
        assert one.process.wait(10) == -signal.SIGKILL
    assert command("resume", "one", cwd=tmp_path / "struck").status == 0
    same_session(tmp_path / "straight", tmp_path / "struck")


SMALL = ("--reward-steps", "210", "--reward-batch-pairs", "1", "--clip-seconds", "0.5")


@pytest.mark.full
@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("Pendulum-v1", ()),
        ("rlhf_gym/Dot-v0", SMALL),
        ("ALE/Pong-v5", (*SMALL, "--eval-episodes", "1")),
        ("CartPole-v1", ("--episode-ends", "hide", "--score", "scores:leaning")),
    ],
    ids=["continuous", "pixels", "atari", "hide"],
)
def test_every_kind_of_environment_survives_a_kill(tmp_path: Path, env_id: str, settings: tuple[str, ...]) -> None:
    names = ("straight", "killed")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.py").write_text("def leaning(clip):\n    return clip.observations[:, 2].sum()\n")
    assert run(tmp_path / "straight", *settings, env_id=env_id).status == 0
    assert run(tmp_path / "killed", *settings, env_id=env_id, kill=Kill("rlhf_gym.train:update", 7)).status == -9
    assert command("resume", "one", cwd=tmp_path / "killed", kill=Kill("rlhf_gym.evaluate:evaluate", 1)).status == -9
    assert command("resume", "one", cwd=tmp_path / "killed").status == 0
    same_session(*(tmp_path / name for name in names))


def test_no_acknowledged_label_is_lost(tmp_path: Path) -> None:
    """A person labels over the pages' API; the process dies the moment the third label is acknowledged."""
    human = [*without(("--labeler", "--rounds")), "--rounds", "1", "--no-browser"]
    acknowledged: dict[int, str] = {}

    def label(one: Spawned, count: int) -> None:
        client = one.client()
        for _ in range(count):
            (pair,) = client.get("/api/s/one/pairs", params={"limit": 1}).json()["pairs"]
            choice = ("left", "right", "equal")[pair["id"] % 3]
            body = {"id": f"label-{pair['id']}", "pair": pair["id"], "choice": choice}
            answer = client.post("/api/s/one/labels", json=body)
            assert answer.status_code == 201, answer.text
            acknowledged[pair["id"]] = choice
        client.close()

    with Spawned("run", "CartPole-v1", "--session", "one", *human, cwd=tmp_path) as one:
        one.wait_for_phase("label", "one")
        label(one, 3)
        one.process.kill()
    session = session_in(tmp_path)
    assert len(acknowledged) == 3
    assert {p.id: p.choice for p in session.pairs() if p.choice} == acknowledged
    with Spawned("resume", "one", "--no-browser", cwd=tmp_path) as one:
        one.wait_for_phase("label", "one")
        label(one, 3)
        one.wait_for("All rounds are done")
        assert session.where().phase == "finished"
        status, _ = one.interrupt()
        assert status == 0
    assert {p.id: p.choice for p in session.pairs()} == acknowledged
    assert session.last_label_id() == 6
    session.close()


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


def flip(file: Path) -> None:
    """One bit, in the middle of the weights."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [tear, flip])
def test_a_damaged_checkpoint_is_made_again_bit_for_bit(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Told in one sentence and kept under another name; no label is asked for again."""
    shutil.copytree(whole / "data", tmp_path / "data")
    checkpoints = tmp_path / "data" / "one" / "checkpoints"
    damage(checkpoints / "r001.pt")
    told = command("evaluate", "one", "--episodes", "1", cwd=tmp_path)
    assert (told.status, told.err.startswith("rlhf-gym: Checkpoint data/one/checkpoints/r001.pt cannot")) == (1, True)
    result = command("resume", "one", "--rounds", "3", cwd=tmp_path)
    assert result.status == 0, result.err
    assert "Checkpoint data/one/checkpoints/r001.pt cannot be read" in result.err
    assert "kept as r001.pt.damaged" in result.err
    for each in NAMES:
        assert same_tensors(checkpoints / each, whole / "data" / "one" / "checkpoints" / each, ("/meta",)) > 5
    assert (checkpoints / "r002.pt").exists()


@pytest.mark.parametrize("name", ["start", "r000"])
def test_an_early_checkpoint_that_is_damaged_costs_what_came_of_it(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    checkpoints = tmp_path / "data" / "one" / "checkpoints"
    for later in NAMES[NAMES.index(f"{name}.pt") + 1 :]:
        (checkpoints / later).unlink()
    flip(checkpoints / f"{name}.pt")
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err
    assert f"kept as {name}.pt.damaged" in result.err
    assert all(load_state(checkpoints / each) for each in NAMES)


def test_a_damaged_checkpoint_in_the_middle_of_a_phase_costs_that_phase(whole: Path, tmp_path: Path) -> None:
    result = run(tmp_path, kill=Kill("rlhf_gym.train:update", 4))
    assert result.status == -signal.SIGKILL
    checkpoints = tmp_path / "data" / "one" / "checkpoints"
    flip(checkpoints / "r000.train_agent.pt")
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err
    assert "r000.train_agent.pt cannot be read (its checksum is wrong)" in result.err
    for each in NAMES:
        same_tensors(checkpoints / each, whole / "data" / "one" / "checkpoints" / each)


def test_a_damaged_clip_costs_its_pairs(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    session = session_in(tmp_path)
    session.checkpoint(1).unlink()
    tear(session.path / next(iter(session.clips().values())).path)
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err
    assert re.search(r"Clip \S+0000\.npz cannot be read \(.*\)\. Its pairs are left out\.", result.err)
    assert session.where().phase == "finished"
    session.close()


# ---------------------------------------------------------------------------------------------- nothing to learn from


def test_a_batch_of_ties_is_collected_again_once_with_longer_clips(tmp_path: Path) -> None:
    result = run(tmp_path, "--tie-threshold", "1e9")
    assert result.status == 0, result.err
    session = session_in(tmp_path)
    batches = [(n, a) for n in (0, 1) for a in (0, 1)]
    assert sorted({(p.round, p.attempt) for p in session.pairs()}) == batches  # no third attempt
    assert [len(session.pairs(*b)) for b in batches] == [6] * 4
    assert {(c.round, c.attempt, c.steps) for c in session.clips().values()} == {
        (n, a, 20 * (a + 1)) for n, a in batches
    }
    assert {p.choice for p in session.pairs()} == {"equal"}
    assert result.err.count("Nothing to learn from in that batch") == 2
    assert result.err.count("No label says better or worse yet") == 2
    start, *others = [session.checkpoint(n) for n in (START, 0, 1)]
    for other in others:
        assert same_tensors(start, other, ignore=("meta",)) >= 8  # no reward model, the agent as it was
    assert [json.loads(load_state(p)["meta"])["global_step"] for p in others] == [0, 0]
    session.close()


def test_a_batch_of_skips_is_collected_again_once(tmp_path: Path) -> None:
    assert run(tmp_path, "--skip-threshold", "1e9", "--rounds", "1").status == 0
    session = session_in(tmp_path)
    assert [(p.attempt, p.choice) for p in session.pairs()] == [(0, "skip")] * 6 + [(1, "skip")] * 6
    assert session.where().phase == "finished"
    session.close()


def test_a_later_batch_of_ties_is_trained_on_with_the_labels_of_before(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    result = command("resume", "one", "--rounds", "3", "--tie-threshold", "1e9", cwd=tmp_path)
    assert result.status == 0, result.err
    assert result.err.count("Nothing to learn from in that batch") == 1
    assert "No label says" not in result.err
    session = session_in(tmp_path)
    meta = json.loads(load_state(session.checkpoint(2))["meta"])
    assert (meta["last_label_id"], meta["global_step"]) == (24, 384)
    session.close()


@pytest.mark.full
def test_killed_again_and_again_while_somebody_labels(tmp_path: Path) -> None:
    """The benchmark, in short: nothing lost, nothing left over, the same weights."""
    bench = Path(__file__).parents[1] / "scripts" / "bench" / "crash.py"
    done = subprocess.run([sys.executable, str(bench), "--kills", "10"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "| acknowledged labels lost | 0 |" in done.stdout
