"""The command line: what each command prints, what each mistake gets told, and what Ctrl-C does."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from processes import TINY, Result, Spawned, command

from rlhf_gym import catalog
from rlhf_gym.config import Config
from rlhf_gym.store import START, Session

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks its processes")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished session `one` of one round."""
    cwd = tmp_path_factory.mktemp("made")
    settings = [*TINY, "--rounds", "1", "--goal", "Keep the pole up."]
    result = command("run", "CartPole-v1", "--session", "one", *settings, cwd=cwd)
    assert result.status == 0, result.err
    return cwd


@pytest.fixture
def cwd(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that change something."""
    shutil.copytree(made / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture
def session(cwd: Path) -> Iterator[Session]:
    opened = catalog.open_session(cwd / "data", "one")
    yield opened
    opened.close()


def files_in(directory: Path) -> dict[str, bytes]:
    """Every file but SQLite's shared memory, which whoever opens the database writes to, and a log with nothing in it."""
    files = [p for p in directory.rglob("*") if p.is_file() and not p.name.endswith("-shm")]
    files = [p for p in files if p.stat().st_size or not p.name.endswith("-wal")]
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def refused(result: Result, *patterns: str) -> str:
    """Asserts that a user's mistake got one line on stderr and an exit status of its own; returns the line."""
    assert result.status == 1, result
    assert result.out == ""
    assert re.fullmatch(r"rlhf-gym: [^\n]*\n", result.err), result.err
    for pattern in patterns:
        assert re.search(pattern, result.err), (pattern, result.err)
    return result.err


# ---------------------------------------------------------------------------------------------- mistakes

ODD = """
import gymnasium
import numpy as np
from gymnasium import spaces

class Odd(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    action_space = spaces.Discrete(2)

    def __init__(self, space=None, render_mode=None):
        self.observation_space, self.render_mode = space, render_mode

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 1.0, False, False, {}

    def render(self):
        return np.zeros((20, 30, 3), np.uint8)

class Blind(Odd):
    metadata = {}

class Strange(Odd):
    action_space = spaces.MultiDiscrete([2, 2])

class Brittle(Odd):
    def step(self, action):
        self.steps = getattr(self, "steps", 0) + 1
        return (*super().step(action)[:4], None if self.steps == 30 else {})

class Broken(Odd):
    def reset(self, seed=None, options=None):
        raise RuntimeError("the reactor\\nis gone")

BOX = spaces.Box(-1, 1, (3,), np.float32)
DICT = spaces.Dict(a=BOX, b=BOX)
for name, entry, space in (
    ("Dict-v0", Odd, DICT), ("Text-v0", Odd, spaces.Text(5)), ("Blind-v0", Blind, BOX),
    ("Strange-v0", Strange, BOX), ("Broken-v0", Broken, BOX),
    ("Brittle-v0", Brittle, BOX), ("Wide-v0", Odd, spaces.Box(-1, 1, (200,), np.float32)),
):
    gymnasium.register(name, entry_point=entry, max_episode_steps=10, kwargs={"space": space})
"""

SYNTHETIC = ("--labeler", "synthetic", "--rounds", "1")
HUMAN = ("--no-browser",)


@pytest.mark.parametrize(
    ("args", "patterns"),
    [
        # what cannot work
        (["CartPol-v1", *SYNTHETIC], ["'CartPol-v1': did you mean CartPole-v"]),
        (["ALE/Pnog-v5", *SYNTHETIC], ["did you mean .*ALE/Pong-v5"]),
        (["Cartpole", *SYNTHETIC], ["did you mean CartPole-v1"]),
        (["Pong", *SYNTHETIC], [r"did you mean ALE/Pong-v5\?$"]),
        (["Nothing-like-it-v7", *SYNTHETIC], ["write it like CartPole-v1"]),
        (["", *SYNTHETIC], ["give a Gymnasium id"]),
        (["odd:Dict-v0", *SYNTHETIC], ["Dict observations", "FlattenObservation .*--pixels"]),
        (["odd:Text-v0", *SYNTHETIC], ["Text observations"]),
        (["odd:Strange-v0", *SYNTHETIC], ["MultiDiscrete actions"]),
        (["odd:Broken-v0", *SYNTHETIC], ["failed in reset.*the reactor"]),
        (["odd:Blind-v0", *HUMAN], ["no rgb_array among its render_modes"]),
        (["odd:Blind-v0", *SYNTHETIC, "--render"], ["no rgb_array"]),
        (["odd:Blind-v0", *SYNTHETIC, "--pixels"], ["no rgb_array"]),
        (["nowhere:Any-v0", *SYNTHETIC], ["needs the module 'nowhere', which cannot be imported"]),
        # --env-kwargs
        (["CartPole-v1", *SYNTHETIC, "--env-kwargs", "{gravity: 12}"], ["--env-kwargs '{gravity: 12}' is not a JSON obj"]),
        (["CartPole-v1", *SYNTHETIC, "--env-kwargs", "[1]"], [r"--env-kwargs \[1\] is not a JSON object"]),
        (["CartPole-v1", *SYNTHETIC, "--env-kwargs", "5"], ["--env-kwargs 5 is not a JSON object"]),
        (["CartPole-v1", *SYNTHETIC, "--env-kwargs", '{"g": NaN}'], ["is not a JSON object"]),
        (["CartPole-v1", *SYNTHETIC, "--env-kwargs", '{"moon": 1}'], ["could not be made with --env-kwargs .*moon"]),
        (["CartPole-v1", *SYNTHETIC, "--env-kwargs", '{"render_mode": "human"}'], ["render_mode.*leave it out"]),
        # out-of-range settings
        (["CartPole-v1", *SYNTHETIC, "--pairs-per-round", "0"], ["--pairs-per-round 0 is out of range: .*1 to 10000"]),
        (["CartPole-v1", *SYNTHETIC, "--mistake-rate", "0.6"], ["--mistake-rate 0.6 is out of range"]),
        (["CartPole-v1", *SYNTHETIC, "--mistake-rate", "nan"], ["--mistake-rate nan is out of range"]),
        (["CartPole-v1", *SYNTHETIC, "--seed", "-1"], ["--seed -1 is out of range"]),
        (["CartPole-v1", *SYNTHETIC, "--gamma", "1"], ["--gamma 1.0 is out of range"]),
        (["CartPole-v1", *SYNTHETIC, "--tie-threshold", "inf"], ["--tie-threshold inf is out of range"]),
        (["CartPole-v1", *SYNTHETIC, "--skip-threshold", "inf"], ["--skip-threshold inf is out of range"]),
        (["CartPole-v1", *SYNTHETIC, "--pixels", "--image-size", "0"], ["--image-size 0 is out of range"]),
        (["CartPole-v1", *SYNTHETIC, "--num-minibatches", "9999"], ["--num-minibatches 9999 is more than the 1024 steps"]),
        (["CartPole-v1", *SYNTHETIC, "--rounds", "-1"], ["--rounds -1 is out of range"]),
        (["CartPole-v1", *HUMAN, "--port", "99999"], ["--port 99999 is out of range"]),
        (["CartPole-v1", *HUMAN, "--host", "not an address"], ["--host"]),
        (["CartPole-v1", *SYNTHETIC, "--goal", "x" * 501], ["--goal has 501 characters"]),
        # settings that ask too much, or that do not go together
        (["odd:Wide-v0", *SYNTHETIC, "--reward-quadratic"], [r"20\d of odd:Wide-v0 are too many .*\(128 at most\)"]),
        (["LunarLander-v3", *SYNTHETIC, "--reward-quadratic"], ["do not go together: add --no-reward-potential"]),
        # the session's name
        (["CartPole-v1", *SYNTHETIC, "--session", "../x"], ["Session name '../x' is not allowed"]),
        (["CartPole-v1", *SYNTHETIC, "--session", "/tmp/x"], ["is not allowed"]),
        (["CartPole-v1", *SYNTHETIC, "--session", "A b"], ["is not allowed"]),
        # the score
        (["CartPole-v1", *SYNTHETIC, "--score", "upright"], ["--score 'upright' is not MODULE:FUNCTION"]),
        (["CartPole-v1", *SYNTHETIC, "--score", "nowhere:upright"], ["cannot import 'nowhere'"]),
        (["CartPole-v1", *SYNTHETIC, "--score", "odd:upright"], ["'odd' has no function 'upright'"]),
        (["CartPole-v1", *SYNTHETIC, "--score", "odd:BOX"], ["'BOX' is not a function"]),
        (["CartPole-v1", *SYNTHETIC, "--score", ":upright"], ["cannot import ''"]),
        # the data directory
        (["CartPole-v1", *SYNTHETIC, "--data-dir", "odd.py"], ["Cannot write to odd.py .*--data-dir"]),
        (["CartPole-v1", *HUMAN, "--data-dir", "odd.py"], ["Cannot write to odd.py .*--data-dir"]),
        (["CartPole-v1", *SYNTHETIC, "--device", "mps"], ["--device mps is not on this machine"]),
    ],
    ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "",
)  # fmt: skip
def test_a_mistake_gets_one_line_and_leaves_nothing(tmp_path: Path, args: list[str], patterns: list[str]) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    refused(command("run", *args, cwd=tmp_path), *patterns)
    shutil.rmtree(tmp_path / ".config", ignore_errors=True)  # the pages' token, which belongs to no session
    assert list(files_in(tmp_path)) == ["odd.py"]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("env_id", "package", "remedy"),
    [
        ("LunarLander-v3", "Box2D", r'pip install "rlhf-gym\[box2d\]"'),
        ("Hopper-v5", "mujoco", r'pip install "rlhf-gym\[mujoco\]"'),
        ("ALE/Pong-v5", "ale_py", "ale-py, which is not installed: pip install"),
    ],
)
def test_a_missing_extra_names_the_package(tmp_path: Path, env_id: str, package: str, remedy: str) -> None:
    refused(command("run", env_id, *SYNTHETIC, cwd=tmp_path, missing=[package]), env_id, remedy)
    assert files_in(tmp_path) == {}


def test_an_environment_that_nobody_can_see_does_with_a_synthetic_labeler(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    few = ("--rounds", "1", "--pairs-per-round", "2", "--reward-steps", "5")
    result = command("run", "odd:Blind-v0", *TINY, *few, cwd=tmp_path)
    assert result.status == 0, result.err
    assert (tmp_path / "data" / "blind-1" / "checkpoints" / "r000.pt").exists()


def test_an_environment_that_fails_later_costs_the_session_nothing(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    result = command("run", "odd:Brittle-v0", *SYNTHETIC, "--num-envs", "1", cwd=tmp_path)
    assert (result.status, result.err.splitlines()[1:]) == (
        1,
        [
            "rlhf-gym: odd:Brittle-v0 gave an info that is no dict but NoneType. Nothing of the session is lost: mend the "
            "environment, then resume."
        ],
    )
    assert (tmp_path / "data" / "brittle-1" / "config.json").exists()


def test_rounds_that_are_done_end_with_what_to_do_next(tmp_path: Path) -> None:
    few = ("--rounds", "1", "--pairs-per-round", "2", "--reward-steps", "5")
    result = command("run", "CartPole-v1", *TINY, *few, cwd=tmp_path)
    assert result.err.splitlines()[-1] == "All rounds are done. See the agent: rlhf-gym watch cartpole-1"


def test_a_port_in_use_is_told_before_a_session_is_made(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        refused(command("run", "CartPole-v1", *HUMAN, "--port", port, cwd=tmp_path), f"Port {port} .* cannot be used")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["resume", "watch", "evaluate"])
@pytest.mark.parametrize(
    ("session", "says"), [("two", 'No session "two" in data/. Sessions: one. Start one'), ("../one", "is not allowed")]
)
def test_an_unknown_session(made: Path, name: str, session: str, says: str) -> None:
    before = files_in(made)
    assert says in refused(command(name, session, cwd=made))
    assert files_in(made) == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["evaluate", "one", "--round", "7"], "no round 7. Rounds with an agent: -1, 0"),
        (["watch", "one", "--round", "-2"], "no round -2"),
        (["watch", "one", "--episodes", "0"], "--episodes 0"),
        (["watch", "one", "--episodes", "17"], "--episodes 17 is too many"),
        (["watch", "one", "--all-rounds", "--round", "0"], "leave out --round"),
        (["watch", "one", "--seconds", "0"], "--seconds 0 is out of range"),
        (["watch", "one", "--out", "film.avi"], "neither .mp4 nor .gif"),
        (["evaluate", "one", "--ceiling", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["evaluate", "one", "--episodes", "0"], "--episodes 0 is out of range"),
        (["evaluate", "one", "--greedy", "--sampled"], "exclude each other"),
        (["evaluate", "one", "--score", "nowhere:f"], "cannot import 'nowhere'"),
        (["evaluate", "one", "--json", "--score", "nothing"], "MODULE:FUNCTION"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_mistakes_about_a_session(made: Path, args: list[str], says: str) -> None:
    assert says in refused(command(*args, cwd=made))


def test_a_session_without_an_agent(tmp_path: Path) -> None:
    catalog.create_session(tmp_path / "data", "new", Config(env_id="CartPole-v1")).close()
    for name in ("watch", "evaluate"):
        refused(command(name, "new", cwd=tmp_path), r"has no agent yet: run it first \(rlhf-gym resume new\)")


@pytest.mark.parametrize("name", ["resume", "watch", "evaluate"])
def test_damaged_files_of_a_session_are_one_sentence(cwd: Path, name: str) -> None:
    for file, says in (("session.db", "database of .* cannot be read"), ("config.json", "no readable config.json")):
        for side in cwd.glob("data/one/session.db-*"):
            side.unlink()
        (cwd / "data" / "one" / file).write_bytes(b"damaged " * 1000)
        refused(command(name, "one", cwd=cwd), says)


# ---------------------------------------------------------------------------------------------- run and resume


def test_sessions_are_numbered(made: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        args = ("--pairs-per-round", "2", "--reward-steps", "5", "--data-dir", "my sessions", "--rounds", "1")
        result = command("run", "CartPole-v1", *TINY, *args, cwd=tmp_path)
        assert result.status == 0, result.err
        assert result.out == ""  # logs go to stderr
        assert result.err.startswith(f"Session cartpole-{number} in my sessions/cartpole-{number}\n")
    assert not (tmp_path / "data").exists()


def test_presets_and_explicit_settings_stand_in_config_json(made: Path) -> None:
    config = json.loads((made / "data" / "one" / "config.json").read_text())["config"]
    assert set(config) == {f.name for f in dataclasses.fields(Config)}
    assert config["learning_rate"] == 1e-3  # the preset of classic control
    assert config["update_epochs"] == 1  # said explicitly, against the preset
    assert config["goal"] == "Keep the pole up."


@pytest.mark.parametrize(
    "setting",
    [("--seed", "2"), ("--pixels",), ("--episode-ends", "hide"), ("--env-kwargs", '{"sutton_barto_reward": true}'),
     ("--hidden-size", "16"), ("--ensemble-size", "5"), ("--reward-hidden", "16")],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_change_is_refused(made: Path, setting: tuple[str, ...]) -> None:
    before = files_in(made)
    refused(command("resume", "one", "--rounds", "2", *setting, cwd=made), f"{setting[0]} cannot change from ")
    assert files_in(made) == before


def test_another_environment_than_the_sessions_own_is_refused(made: Path) -> None:
    before = files_in(made)
    result = command("run", "Acrobot-v1", "--session", "one", *SYNTHETIC, cwd=made)
    refused(result, "--env-id cannot change from 'CartPole-v1' to 'Acrobot-v1'")
    assert files_in(made) == before


def test_resume_prints_what_changed_and_keeps_it(cwd: Path, session: Session) -> None:
    gamma = session.config.gamma
    result = command("resume", "one", "--goal", "Keep it up!", "--gamma", "0.9", "--rounds", "1", cwd=cwd)
    assert result.status == 0, result.err
    assert result.err.splitlines() == [
        f"gamma: {gamma} -> 0.9", "goal: 'Keep the pole up.' -> 'Keep it up!'",
        "Session one has done its 1 rounds. To teach it further: rlhf-gym resume one --rounds 2",
    ]  # fmt: skip
    assert (session.config.gamma, session.config.goal) == (0.9, "Keep it up!")
    assert session.config.update_epochs == 1  # presets do not come back
    again = command("resume", "one", "--gamma", "0.9", cwd=cwd)
    assert (again.status, again.out) == (0, "")
    assert "gamma" not in again.err


def test_another_preset_does_not_stand_in_the_way_of_going_on_but_another_environment_does(
    cwd: Path, session: Session
) -> None:
    path = session.path / "config.json"
    whole = json.loads(path.read_text())
    resume = ("resume", "one", "--rounds", "1")
    path.write_text(json.dumps(whole | {"info": whole["info"] | {"kind": "box2d"}}))
    assert command(*resume, cwd=cwd).status == 0
    path.write_text(json.dumps(whole | {"info": whole["info"] | {"fps": 12.0}}))
    refused(command(*resume, cwd=cwd), "CartPole-v1 is no longer what session 'one' was made with")


def test_a_goal_given_at_resume_wins_over_the_pages(cwd: Path, session: Session) -> None:
    session.add_event("goal", 0, text="set on the page")
    result = command("resume", "one", "--goal", "Keep the pole up.", cwd=cwd)
    assert "goal: 'set on the page' -> 'Keep the pole up.'" in result.err
    assert session.goal() == "Keep the pole up."


def test_run_goes_on_with_a_session_that_exists(cwd: Path, session: Session) -> None:
    few = ("--rounds", "2", "--reward-steps", "5")
    result = command("run", "CartPole-v1", "--session", "one", *few, cwd=cwd)
    assert result.status == 0, result.err
    assert "rounds: 1 -> 2" in result.err
    assert session.trained_rounds() == [START, 0, 1]
    assert os.listdir(cwd / "data") == ["one"]


def test_a_second_loop_is_refused(cwd: Path, session: Session) -> None:
    with session.lock():
        session.write_progress(phase="label")
        before = (session.path / "config.json").read_bytes()
        said = rf"Session 'one' is already running \(process {os.getpid()}\).*rlhf-gym serve"
        refused(command("resume", "one", "--rounds", "2", cwd=cwd), said)
        refused(command("run", "CartPole-v1", "--session", "one", "--rounds", "2", cwd=cwd), said)
        assert (session.path / "config.json").read_bytes() == before
    assert command("resume", "one", cwd=cwd).status == 0


def test_synthetic_starts_no_server(made: Path) -> None:
    """No page, so no token either."""
    assert not (made / ".config").exists()
    assert list((made / "data" / "one" / "videos").iterdir()) == []


# ---------------------------------------------------------------------------------------------- the others


def test_list_prints_one_json_object(cwd: Path) -> None:
    catalog.create_session(cwd / "data", "new", Config(env_id="Acrobot-v1")).close()
    result = command("list", "--json", cwd=cwd)
    assert (result.status, result.err) == (0, "")
    assert result.out.count("\n") == 1
    (new, one) = json.loads(result.out)["sessions"]
    assert (new["name"], new["phase"], new["round"], new["labels"]) == ("new", "collect", 0, 0)
    keys = {"name", "env_id", "round", "phase", "labels", "last_activity", "true_returns", "disk_bytes", "running"}
    assert keys <= set(one)
    assert (one["env_id"], one["phase"], one["labels"], one["running"]) == ("CartPole-v1", "finished", 6, False)
    assert [r["round"] for r in one["true_returns"]] == [START, 0]
    assert all(r["mean"] > 0 for r in one["true_returns"])
    assert one["disk_bytes"] > 10_000


def test_list_without_sessions(tmp_path: Path) -> None:
    assert json.loads(command("list", "--json", cwd=tmp_path).out) == {"sessions": []}
    result = command("list", cwd=tmp_path)
    assert result.out == "No sessions in data/, which does not exist. Start one: rlhf-gym run CartPole-v1\n"
    result = command("list", "--data-dir", tmp_path, cwd=tmp_path)
    assert result.out == f"No sessions in {tmp_path}/. Start one: rlhf-gym run CartPole-v1 --data-dir {tmp_path}\n"
    assert files_in(tmp_path) == {}


def test_list_is_a_table(made: Path) -> None:
    lines = command("list", cwd=made).out.splitlines()
    assert len(lines) == 2
    for word in ("one", "CartPole-v1", "finished", "6", "MB", "→"):
        assert word in lines[1]


def test_list_shows_titles_and_leaves_the_archive_out(cwd: Path) -> None:
    for name in ("kept", "put-away"):
        made = catalog.create_session(cwd / "data", name, Config(env_id="Acrobot-v1"))
        made.add_event("title", 0, text=f"[b]Title of {name}")
        made.add_event("archived", 0, archived=name == "put-away")
        made.close()
    result = command("list", cwd=cwd)
    assert re.search(r"^ *kept +\[b\]Title of kept +Acrobot-v1", result.out, re.M), result.out
    assert "put-away" not in result.out
    assert result.err == "1 in the archive: rlhf-gym list --all shows it, too.\n"
    everything = command("list", "--all", cwd=cwd)
    assert "put-away" in everything.out
    assert everything.err == ""
    rows = {s["name"]: s for s in json.loads(command("list", "--json", cwd=cwd).out)["sessions"]}
    assert [rows[n]["archived"] for n in ("one", "kept", "put-away")] == [False, False, True]
    assert rows["put-away"]["title"] == "[b]Title of put-away"
    assert rows["one"]["title"] == ""


def test_a_session_that_cannot_be_read_does_not_hide_the_others(cwd: Path) -> None:
    shutil.copytree(cwd / "data" / "one", cwd / "data" / "torn")
    (cwd / "data" / "torn" / "config.json").write_text("{")
    result = command("list", "--json", cwd=cwd)
    by_name = {s["name"]: s for s in json.loads(result.out)["sessions"]}
    assert by_name["one"]["labels"] == 6
    assert "no readable config.json" in by_name["torn"]["error"]
    table = command("list", cwd=cwd)
    assert table.status == 0
    assert "CartPole-v1" in table.out
    assert "no readable config.json" in table.err


def evaluated(cwd: Path, *args: object) -> dict[str, Any]:
    result = command("evaluate", "one", "--json", "--episodes", 3, *args, cwd=cwd)
    assert (result.status, result.err) == (0, "")
    assert result.out.count("\n") == 1
    return dict(json.loads(result.out, parse_constant=pytest.fail))


def test_evaluate_prints_one_json_object(made: Path) -> None:
    values = evaluated(made)
    alone = {"mean", "std", "min", "max", "mean_length", "episodes", "round", "greedy", "capped", "interval"}
    assert set(values) == alone | {"untrained", "random", "verdicts"}
    assert set(values["untrained"]) == set(values["random"]) == alone
    assert values["interval"][0] <= values["mean"] <= values["interval"][1]
    assert [s.count("untrained agent") for s in values["verdicts"]] == [1, 0]
    assert set(evaluated(made, "--no-baselines")) == alone | {"verdicts"}
    assert (values["episodes"], values["round"], values["greedy"], values["capped"]) == (3, 0, True, 0)
    assert values["min"] <= values["mean"] <= values["max"]
    assert values["mean"] == values["mean_length"]  # CartPole's reward is 1 a step
    assert values["std"] >= 0
    assert evaluated(made) == values  # the same episodes each time


def test_evaluate_another_round_and_other_actions(made: Path) -> None:
    start = evaluated(made, "--round", -1)
    assert (start["round"], start["greedy"]) == (START, True)
    sampled = evaluated(made, "--round", -1, "--sampled")
    assert sampled["greedy"] is False
    assert sampled["mean"] != start["mean"]
    assert evaluated(made, "--greedy")["greedy"] is True


def test_evaluate_with_a_score_gets_whole_episodes(cwd: Path) -> None:
    (cwd / "my_scores.py").write_text(
        "def length(clip):\n    assert not clip.absorbing.any()\n    return len(clip.rewards) / 2\n"
    )
    values = evaluated(cwd, "--score", "my_scores:length")
    assert values["score_mean"] == pytest.approx(values["mean_length"] / 2)
    assert values["score_std"] == pytest.approx(values["std"] / 2)


def test_evaluate_reads_well(made: Path) -> None:
    result = command("evaluate", "one", "--episodes", 3, cwd=made)
    assert re.match(
        r"round 0: true return [\d.]+ ± [\d.]+ over 3 episodes of \d+ steps, likeliest actions\n", result.out
    )
    for row in ("round 0", "untrained agent", "random agent"):
        assert re.search(rf"\n *{row} +[\d.]+ +[\d.]+ to [\d.]+ .* 3 *\n", result.out), row
    assert re.search(r"It is (better|worse|not clearly different).* untrained agent \(difference", result.out)


def test_watch_writes_a_video_and_says_where(cwd: Path) -> None:
    result = command("watch", "one", "--round", -1, "--episodes", 2, "--no-open", cwd=cwd)
    assert (result.status, result.err) == (0, "")
    path = cwd / result.out.strip()
    assert path == cwd / "data" / "one" / "videos" / "watch-start.mp4"
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25  # every second of CartPole's 50 a second
    assert len(frames) > 10
    assert frames[0].shape[1] > 900  # two episodes side by side
    assert frames[0].std() > 5  # something is to be seen
    assert any((frames[0] != frame).any() for frame in frames[1:])  # and it moves
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.full
@pytest.mark.parametrize("args", [("serve", "--no-browser"), ("evaluate", "one", "--episodes", "100000")])
def test_ctrl_c_in_other_commands(cwd: Path, args: tuple[str, ...]) -> None:
    with Spawned(*args, cwd=cwd) as run:
        if args[0] == "serve":
            run.client().close()
        else:
            time.sleep(5)
        status, seconds = run.interrupt()
        assert status == 130
        assert seconds < 2
        assert "Traceback" not in run.text()
