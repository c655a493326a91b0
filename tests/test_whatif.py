"""A replay trains the rounds of a session anew: to the same bits where nothing is another, and compares."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from compare import same_tensors
from processes import TINY, Kill, Spawned, command, refused

from rlhf_gym import catalog, whatif
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import FIXED, UserError
from rlhf_gym.steer import steer
from rlhf_gym.store import Session

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks its processes")

Open = Callable[[str], Session]
SAME = (
    "SELECT * FROM clip", "SELECT * FROM pair", "SELECT id, uid, pair, choice, strength, labeler, created FROM label",
    # Some are stored once a second, but for a phase's last.
    "SELECT * FROM metric WHERE phase IN ('train_reward', 'record') AND (round, phase, step) IN"
    " (SELECT round, phase, max(step) FROM metric GROUP BY round, phase) ORDER BY 1, 2, 3, 4",
    "SELECT * FROM metric WHERE phase = 'collect' ORDER BY 1, 2, 3, 4", "SELECT * FROM opinion",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished session `one` of two rounds; not to be changed."""
    cwd = tmp_path_factory.mktemp("made")
    result = command("run", "CartPole-v1", "--session", "one", *TINY, cwd=cwd)
    assert result.status == 0, result.err
    return cwd


@pytest.fixture
def cwd(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that change something."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def replayed(cwd: Path, *args: object, **options: Any) -> str:
    """Replays the session `one`; returns what was printed."""
    result = command("replay", "one", *args, cwd=cwd, **options)
    assert result.status == 0, result.err
    return result.out


def compared(cwd: Path, *args: object) -> list[dict[str, Any]]:
    found = json.loads(replayed(cwd, "--json", *args))
    assert found["original"] == "one"
    rounds: list[dict[str, Any]] = found["rounds"]
    return rounds


def table(cwd: Path, name: str, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(cwd / "data" / name / "session.db")) as db:
        return db.execute(query).fetchall()


def same_weights(cwd: Path, name: str, rounds: int, ignore: tuple[str, ...] = ()) -> None:
    for file in ["start.pt", *(f"r{n:03d}.pt" for n in range(rounds))]:
        paths = [cwd / "data" / session / "checkpoints" / file for session in ("one", name)]
        assert same_tensors(*paths, ignore=ignore) >= 8


# ---------------------------------------------------------------------------------------------- nothing is another


def test_with_the_same_settings_and_labels_the_same_comes_out(cwd: Path, opened: Open) -> None:
    out = replayed(cwd)
    same_weights(cwd, "one-replay", 2)
    for query in SAME:
        assert table(cwd, "one", query) == table(cwd, "one-replay", query), query
    assert any(row[8] is not None for row in table(cwd, "one-replay", "SELECT * FROM pair"))  # foreseen by its own
    lines = out.splitlines()
    assert re.split(r"  +", lines[0].strip()) == [
        "round", "session", "labels", "held-out accuracy", "prequential accuracy", "true return", "predicted return",
    ]  # fmt: skip
    assert [line.split()[-6:-5] for line in lines[1:5]] == [["one"], ["one-replay"]] * 2
    assert lines[1].split()[2:] == lines[2].split()[1:]
    assert lines[3].split()[2:] == lines[4].split()[1:]
    assert lines[5] == "Replayed with the same settings and labels."
    two = opened("one-replay")
    assert two.where().phase == "finished"
    assert two.true_returns() == opened("one").true_returns()


def test_it_is_a_session_like_any(cwd: Path, opened: Open) -> None:
    replayed(cwd, "--name", "two")
    assert command("evaluate", "two", "--episodes", "2", "--no-baselines", cwd=cwd).status == 0
    assert command("export", "two", "out", "--format", "jsonl", cwd=cwd).status == 0
    assert command("watch", "two", "--no-open", cwd=cwd).status == 0
    result = command("resume", "two", "--rounds", "3", cwd=cwd)
    assert result.status == 0, result.err
    assert "round 2 label 6/6" in result.err  # that one is collected and labeled
    assert command("resume", "one", "--rounds", "3", cwd=cwd).status == 0
    same_weights(cwd, "two", 3)
    one, two = opened("one"), opened("two")
    assert [p.id for p in two.pairs()] == [p.id for p in one.pairs()]
    assert command("resume", "two", "--gamma", "0.5", "--rounds", "3", cwd=cwd).status == 0  # it has gone on since
    out = replayed(cwd, "--name", "two", "--rounds", "2", "--gamma", str(one.config.gamma), "--goal", "Be still")
    assert out.endswith("Replayed with the same settings and labels.\n")


def test_the_course_of_a_session_is_taken_again(cwd: Path, opened: Open) -> None:
    """Going back, practice, training longer, another batch, labels that are forgotten, taken back or changed."""
    one = opened("one")
    one.forget(1)  # of both rounds
    one.add_label("changed", 3, "equal")  # which counts again
    steer(one, "back", -1)  # round 2 begins with the untrained agent
    assert command("resume", "one", "--rounds", "3", cwd=cwd).status == 0
    one.add_event("rounds", 3, rounds=4)
    steer(one, "anew")  # round 3 is practice
    assert command("resume", "one", cwd=cwd).status == 0
    one.add_event("longer", 4)
    one.add_event("clips", 4, attempt=0, longer=False, differ=True)  # a batch that is never collected gives way
    one.add_label("back", 4, None)
    assert command("resume", "one", "--rounds", "5", cwd=cwd).status == 0
    assert one.trained_rounds() == [-1, 0, 1, 2, 3, 4]
    rounds = compared(cwd)
    same_weights(cwd, "one-replay", 5, ignore=("meta",))
    assert [r["original"] for r in rounds] == [r["replay"] for r in rounds]
    assert [r["replay"]["labels"] for r in rounds] == [6, 12, 7, 7, 13]
    mine = opened("one-replay")
    assert mine.wishes().forgotten == one.wishes().forgotten == 12
    assert [p.choice for p in mine.pairs()] == [p.choice for p in one.pairs()]


# ---------------------------------------------------------------------------------------------- something is another


def test_labels_that_are_left_out_are_not_learned_from(cwd: Path, opened: Open) -> None:
    result = command("replay", "one", "--without", "2-3,8", "--json", cwd=cwd)
    assert result.status == 0, result.err
    rounds = json.loads(result.out)["rounds"]
    assert [r["original"]["labels"] for r in rounds] == [6, 12]
    assert [r["replay"]["labels"] for r in rounds] == [4, 9]
    two = opened("one-replay")
    assert [p.id for p in two.pairs() if p.choice is None] == [2, 3, 8]
    assert len(two.pairs()) == 12
    with pytest.raises(AssertionError, match="r000"):
        same_weights(cwd, "one-replay", 2, ignore=("meta",))
    assert replayed(cwd, "--name", "one-replay", "--without", "2-3,8").endswith(
        "\nReplayed without the labels of pairs 2-3, 8.\n"
    )


def test_without_any_label_of_a_round_the_agent_stays_as_it_is(cwd: Path) -> None:
    result = command("replay", "one", "--without", "1-6", cwd=cwd)
    assert result.status == 0, result.err
    assert "round 0 train_reward" in result.err
    assert "No label says better or worse yet" in result.err
    assert "round 1 train_agent 128/128" in result.err


def test_the_parts_of_the_networks_may_change(cwd: Path, opened: Open) -> None:
    args = ("--ensemble-size", "5", "--reward-hidden", "16", "--hidden-size", "16", "--normalize-obs", "--seed", "7",
            "--no-reward-sees-action", "--reward-potential", "--learning-rate", "0.002")  # fmt: skip
    before = opened("one").config
    out = replayed(cwd, *args)
    two = opened("one-replay")
    changed = {n for n in before.__dataclass_fields__ if getattr(before, n) != getattr(two.config, n)}
    assert changed >= {"ensemble_size", "reward_hidden", "hidden_size", "reward_sees_action", "seed", "learning_rate"}
    assert "reward_potential" in changed
    assert all(f"{name} {getattr(before, name)!r} -> {getattr(two.config, name)!r}" in out for name in changed)
    newest = Snapshot.load(two.checkpoint(1))
    assert newest.reward is not None
    assert newest.reward.scale.shape == (5,)
    assert newest.reward.potential is not None
    assert [p.choice for p in two.pairs()] == [p.choice for p in opened("one").pairs()]
    assert command("resume", "one-replay", "--rounds", "3", cwd=cwd).status == 0


def test_fewer_rounds(cwd: Path) -> None:
    assert [r["round"] for r in compared(cwd, "--rounds", "1")] == [0]
    same_weights(cwd, "one-replay", 1, ignore=("meta",))


def test_names_are_numbered(cwd: Path) -> None:
    for _ in range(2):
        replayed(cwd, "--rounds", "1", "--reward-steps", "5")
    assert catalog.session_names(cwd / "data") == ["one-replay-2", "one-replay", "one"]


def test_settings_that_were_others_once_are_told(cwd: Path) -> None:
    assert command("resume", "one", "--rounds", "3", "--gamma", "0.5", cwd=cwd).status == 0
    result = command("replay", "one", "--clip-seconds", "1", "--name", "two", cwd=cwd)
    assert "--gamma was another in round 0, 1 of session 'one': all are replayed with 0.5." in result.err
    assert "--clip-seconds says how clips and labels are made" in result.err
    result = command("replay", "one", "--gamma", "0.9", cwd=cwd)
    assert "was another" not in result.err


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["none"], 'No session "none" in data/. Sessions: one.'),
        (["../one"], "Session name '../one' is not allowed"),
        (["one", "--name", "../two"], "Session name '../two' is not allowed"),
        (["one", "--name", "one"], "Session 'one' is there already and no replay of 'one'"),
        (["one", "--name", "dir"], "data/dir exists already: choose another name."),
        (["one", "--without", "all"], "--without 'all' names no pairs: write their numbers like 13-18,24."),
        (["one", "--without", "3-"], "--without '3-' names no pairs"),
        (
            ["one", "--without", "5,13"],
            "--without 13: no such pair has a label. Labeled pairs: 1 to 6 in round 0, 7 to 12 in round 1.",
        ),
        (["one", "--without", "6-5"], "--without 6-5: no such pair"),
        (["one", "--rounds", "3"], "--rounds 3 is out of range: session 'one' has trained 2 rounds."),
        (["one", "--rounds", "0"], "--rounds 0 is out of range"),
        (["one", "--env-kwargs", '{"sutton_barto_reward": true}'], "--env-kwargs cannot change from {} to"),
        (["one", "--pixels"], "--pixels cannot change from False to True in a replay: the clips"),
        (["one", "--episode-ends", "hide"], "--episode-ends cannot change"),
        (["one", "--frameskip", "2"], "--frameskip cannot change"),
        (["one", "--frame-stack", "2"], "--frame-stack cannot change"),
        (["one", "--image-size", "64"], "--image-size cannot change"),
        (["one", "--repeat-action-probability", "0"], "--repeat-action-probability cannot change"),
        (["one", "--ensemble-size", "0"], "--ensemble-size 0 is out of range"),
        (["one", "--score", "nowhere:f"], "cannot import 'nowhere'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(cwd: Path, args: list[str], says: str) -> None:
    (cwd / "data" / "dir").mkdir()
    assert says in refused(command("replay", *args, cwd=cwd))
    assert sorted(p.name for p in (cwd / "data").iterdir()) == ["dir", "one"]


def test_every_fixed_setting_may_change_or_is_refused() -> None:
    assert set(whatif.OF_LABELED_CLIPS) == {
        "env_id", "env_kwargs", "pixels", "episode_ends", "frameskip", "repeat_action_probability", "frame_stack", "image_size",
    }  # fmt: skip
    assert set(whatif.MAY_CHANGE) < set(FIXED)


def test_a_session_without_a_trained_round_or_with_one_missing(cwd: Path) -> None:
    checkpoints = cwd / "data" / "one" / "checkpoints"
    (checkpoints / "r000.pt").rename(cwd / "r000.pt")
    assert "no checkpoint of round 0" in refused(command("replay", "one", cwd=cwd))
    (checkpoints / "r001.pt").unlink()
    assert "has no trained round to replay" in refused(command("replay", "one", cwd=cwd))


def test_a_strangers_session_is_confirmed_first(cwd: Path) -> None:
    (cwd / "scores.py").write_text("open('ran', 'w').close()\ndef left(clip):\n    return 1.0\n")
    path = cwd / "data" / "one" / "config.json"
    header = json.loads(path.read_text())
    header["config"]["score"] = "scores:left"
    path.write_text(json.dumps(header))
    assert "confirm it with --trust" in refused(command("replay", "one", cwd=cwd))
    assert not (cwd / "ran").exists()
    assert command("replay", "one", "--trust", cwd=cwd).status == 0
    assert command("resume", "one-replay", "--rounds", "3", cwd=cwd).status == 0  # without a question


@pytest.mark.parametrize(
    "header",
    [{}, {"session": "../one", "until": [6], "without": []}, 5, {"session": "one", "until": ["x"], "without": []}],
    ids=repr,
)
def test_a_header_of_strangers(cwd: Path, opened: Open, header: Any) -> None:
    one = opened("one")
    one.write_config(one.config, replay_of=header)
    with pytest.raises(UserError):
        whatif.original_of(one)


def test_a_replay_of_a_stranger_is_confirmed_first(cwd: Path) -> None:
    (cwd / "scores.py").write_text("open('ran', 'w').close()\ndef left(clip):\n    return 1.0\n")
    assert command("replay", "one", "--name", "two", cwd=cwd, kill=Kill("rlhf_gym.whatif:recall", 1)).status == -9
    path = cwd / "data" / "two" / "config.json"
    header = json.loads(path.read_text())
    for name, value, says in (
        ("score", "scores:left", "confirm it with --trust"),
        ("env_id", "x:y", "no replay of 'one'"),
    ):
        path.write_text(json.dumps(header | {"config": header["config"] | {name: value}}))
        assert says in refused(command("replay", "one", "--name", "two", cwd=cwd))
    assert not (cwd / "ran").exists()


def test_what_a_person_labeled(cwd: Path, opened: Open) -> None:
    """Clips with pictures, and films of the agents."""
    result = command("run", "CartPole-v1", "--session", "seen", *TINY, "--render", cwd=cwd)
    assert result.status == 0, result.err
    seen = opened("seen")
    seen.write_config(dataclasses.replace(seen.config, labeler="human", render=False))
    result = command("replay", "seen", cwd=cwd)
    assert result.status == 0, result.err
    two = opened("seen-replay")
    for number in (0, 1):
        same_tensors(seen.checkpoint(number), two.checkpoint(number), ignore=("meta",))
    assert all(two.file(c.path) and two.file(c.sheet or "") for c in two.clips().values())
    assert {p.name for p in (two.path / "videos").glob("r*.mp4")} == {"r000.mp4", "r001.mp4"}
    assert two.verdict(1).is_file()


# ---------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize(
    "kill",
    [Kill("rlhf_gym.whatif:put", 1), Kill("rlhf_gym.store:Session.write_config", 1, before=True),
     Kill("rlhf_gym.whatif:copy_clip", 3), Kill("rlhf_gym.whatif:put", 3), Kill("rlhf_gym.whatif:recall", 1),
     Kill("rlhf_gym.train:update", 3)],
    ids=str,
)  # fmt: skip
def test_a_replay_that_was_killed_goes_on(cwd: Path, kill: Kill) -> None:
    assert command("replay", "one", cwd=cwd, kill=kill).status == -9
    listed = json.loads(command("list", "--json", cwd=cwd).out)["sessions"]
    assert [s for s in listed if "error" in s] == []
    begun = "one-replay" in {s["name"] for s in listed}
    assert replayed(cwd, "--name", "one-replay").endswith("Replayed with the same settings and labels.\n")
    same_weights(cwd, "one-replay", 2)
    for query in SAME:
        assert table(cwd, "one", query) == table(cwd, "one-replay", query), query
    assert begun == (
        str(kill) not in ("after call 1 of rlhf_gym.whatif:put", "before call 1 of rlhf_gym.store:Session.write_config")
    )
    assert sorted(p.name for p in (cwd / "data").iterdir()) == ["one", "one-replay"]


def test_resume_goes_on_with_a_replay_too_and_labels_given_meanwhile_count(cwd: Path, opened: Open) -> None:
    kill = Kill("rlhf_gym.loop:record", 1)  # of the untrained agent: the first labels are there
    assert command("replay", "one", "--name", "two", cwd=cwd, kill=kill).status == -9
    two = opened("two")
    assert (two.trained_rounds(), two.last_label_id()) == ([-1], 6)
    two.add_label("mine", 1, "equal")
    result = command("resume", "two", cwd=cwd)
    assert result.status == 0, result.err
    assert "Session two goes on in round" in result.err
    assert two.where().phase == "finished"
    assert [two.pairs(ids=[1])[0].choice, len(two.pairs())] == ["equal", 12]
    assert [p.choice for p in two.pairs(1)] == [p.choice for p in opened("one").pairs(1)]
    assert two.last_label_id() == 13


def test_another_replay_of_the_name_is_refused(cwd: Path) -> None:
    replayed(cwd, "--name", "two", "--gamma", "0.5", "--rounds", "1")
    says = "The replay 'two' was begun with another"
    for args in (["--gamma", "0.6", "--rounds", "1"], ["--without", "1", "--rounds", "1"], ["--rounds", "2"]):
        assert says in refused(command("replay", "one", "--name", "two", *args, cwd=cwd))


def test_an_original_that_is_gone_is_told(cwd: Path) -> None:
    kill = Kill("rlhf_gym.whatif:recall", 1)
    assert command("replay", "one", cwd=cwd, kill=kill).status == -9
    (cwd / "data" / "one").rename(cwd / "elsewhere")
    result = command("resume", "one-replay", cwd=cwd)
    assert result.status == 1
    last = result.err.splitlines()[-1]
    assert "replays 'one', which is not in" in last
    (cwd / "elsewhere").rename(cwd / "data" / "one")
    assert command("resume", "one-replay", cwd=cwd).status == 0
    same_weights(cwd, "one-replay", 2)


def test_ctrl_c(cwd: Path) -> None:
    with Spawned("replay", "one", "--agent-steps-per-round", "1000000", cwd=cwd) as run:
        run.wait_for_phase("train_agent", "one-replay")
        status, _ = run.interrupt()
        assert status == 130
        assert re.search(r"Go on with: \S.* resume one-replay", run.text())
        assert "Traceback" not in run.text()
