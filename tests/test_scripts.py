"""scripts/run.py, scripts/test.py, benchmarks, the pins, and `rlhf-gym doctor`. Nothing here touches the network."""

import importlib.util
import inspect
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import venv
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from processes import TINY

from rlhf_gym import doctor
from rlhf_gym.config import UserError, resolve
from rlhf_gym.envs import EnvInfo
from rlhf_gym.train import RewardModel

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("scripts/run.py", "pyproject.toml", "requirements.txt", "requirements-dev.txt")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"scripts_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the installer reads, in a directory with a space in its name."""
    root = tmp_path / "a clone"
    for name in COPIED:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture
def installer(checkout, monkeypatch):
    """run.py of that copy, with its install steps recorded in `.steps` rather than run."""
    run = load(checkout / "scripts" / "run.py")
    run.steps = []
    monkeypatch.setattr(run, "make_venv", lambda: venv.create(run.VENV))
    monkeypatch.setattr(run, "run_step", lambda what, command: run.steps.append(command))
    return run


@pytest.fixture
def checker(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = load(ROOT / "scripts" / "test.py")
    monkeypatch.delitem(sys.modules, "run")
    return module


# scripts/run.py


def test_an_old_python_is_told_so(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, and this is 3\.9"):
        runpy.run_path(str(ROOT / "scripts" / "run.py"))


def test_torch_is_installed_first_then_the_rest_then_this_checkout(installer):
    installer.ensure(installer.ROOT / "requirements.txt")
    torch, rest, itself = installer.steps
    assert installer.torch_pin() in torch
    assert "--requirement" not in torch
    assert rest[-2:] == ["--requirement", str(installer.ROOT / "requirements.txt")]
    assert itself[-2:] == ["--editable", str(installer.ROOT)]


def test_nothing_is_installed_twice(installer):
    installer.ensure(installer.ROOT / "requirements.txt")
    installer.steps.clear()
    assert installer.ensure(installer.ROOT / "requirements.txt") == installer.venv_python()
    assert installer.steps == []


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt", "pyproject.toml"])
def test_a_changed_pin_installs_again(installer, name):
    requirements = installer.ROOT / "requirements-dev.txt"
    installer.ensure(requirements)
    with (installer.ROOT / name).open("a") as file:
        file.write("\n# changed\n")
    assert not installer.installed(requirements)


def test_the_two_sets_of_requirements_have_stamps_of_their_own(installer):
    installer.ensure(installer.ROOT / "requirements.txt")
    assert not installer.installed(installer.ROOT / "requirements-dev.txt")


def test_a_moved_checkout_installs_again(installer, tmp_path):
    installer.ensure(installer.ROOT / "requirements.txt")
    moved = installer.ROOT.rename(tmp_path / "moved")
    assert not load(moved / "scripts" / "run.py").installed(moved / "requirements.txt")


def test_an_interrupted_install_goes_on(installer, monkeypatch):
    requirements = installer.ROOT / "requirements.txt"
    installer.ensure(requirements)
    (installer.ROOT / "pyproject.toml").write_text("# changed")

    def interrupted(what, command):
        raise SystemExit(130)

    with monkeypatch.context() as patch:
        patch.setattr(installer, "run_step", interrupted)
        with pytest.raises(SystemExit):
            installer.ensure(requirements)
    assert not installer.installed(requirements)
    installer.steps.clear()
    installer.ensure(requirements)
    assert len(installer.steps) == 3
    assert installer.installed(requirements)


def test_a_half_made_venv_is_made_anew(installer):
    installer.VENV.mkdir()
    installer.venv_python().parent.mkdir()
    installer.venv_python().symlink_to(installer.ROOT / "gone")  # as after an upgrade of the system's Python
    made = []
    installer.make_venv = lambda: made.append(True) or shutil.rmtree(installer.VENV) or venv.create(installer.VENV)
    installer.ensure(installer.ROOT / "requirements.txt")
    assert made


@pytest.mark.parametrize(
    ("pip_says", "remedy"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "free some disk space"),
        ("ERROR: No matching distribution found for torch==2.13.0", "64-bit Python"),
        ("ERROR: Connection refused", "internet connection"),
    ],
)
def test_a_failed_install_is_one_sentence_with_the_remedy(checkout, pip_says, remedy):
    run = load(checkout / "scripts" / "run.py")
    run.VENV.mkdir()
    with pytest.raises(SystemExit) as stopped:
        run.run_step("Installing", [sys.executable, "-c", f"import sys; print({pip_says!r}); sys.exit(1)"])
    assert remedy in str(stopped.value)
    assert pip_says in str(stopped.value)
    assert "\n" not in str(stopped.value)


@pytest.fixture
def fake_program(checkout):
    """The copy with a finished install whose rlhf_gym only tells what it was given."""
    run = load(checkout / "scripts" / "run.py")
    venv.create(run.VENV)
    run.stamp(run.ROOT / "requirements.txt").write_text(run.fingerprint(run.ROOT / "requirements.txt"))
    (checkout / "rlhf_gym").mkdir()
    return checkout


@pytest.mark.parametrize(
    ("given", "received"),
    [
        ([], ["run", "CartPole-v1"]),
        (["--help"], ["--help"]),
        (
            ["run", "ALE/Pong-v5", "--goal", "win it"],
            ["run", "ALE/Pong-v5", "--goal", "win it"],
        ),
    ],
)
def test_arguments_and_exit_status_are_passed_on(fake_program, given, received):
    (fake_program / "rlhf_gym" / "__main__.py").write_text(
        "import json, sys\nprint(json.dumps(sys.argv[1:]))\nsys.exit(7)"
    )
    command = [sys.executable, "scripts/run.py", *given]
    result = subprocess.run(command, cwd=fake_program, capture_output=True, text=True, timeout=60)
    assert json.loads(result.stdout) == received  # and no word besides: a second start is silent
    assert result.returncode == 7


@pytest.mark.skipif(os.name == "nt", reason="Windows has no process groups to send Ctrl-C to from a test")
def test_ctrl_c_reaches_the_program_exactly_once(fake_program):
    (fake_program / "rlhf_gym" / "__main__.py").write_text(
        "import signal, sys, time\n"
        "count = 0\n"
        "def on_interrupt(*_):\n"
        "    global count\n"
        "    count += 1\n"
        "signal.signal(signal.SIGINT, on_interrupt)\n"
        "print('ready', flush=True)\n"
        "end = time.monotonic() + 1\n"
        "while time.monotonic() < end: time.sleep(0.05)\n"
        "print(count)\n"
        "sys.exit(3)\n"
    )
    command = [sys.executable, "scripts/run.py"]
    with subprocess.Popen(command, cwd=fake_program, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        os.killpg(run.pid, signal.SIGINT)
        assert run.stdout.read() == "1\n"
    assert run.returncode == 3


# scripts/test.py


def test_pytest_is_given_the_chromium(checker):
    assert checker.pytest_arguments(True, "/usr/bin/chromium", ["-k", "x"], 1) == [
        "--full", "-o", "faulthandler_timeout=7200", "--chromium=/usr/bin/chromium", "-k", "x",
    ]  # fmt: skip
    assert checker.pytest_arguments(False, None, [], 1) == ["-m", "not browser"]


@pytest.mark.parametrize(
    ("full", "rest", "cores", "shared"),
    [(False, [], 2, True), (False, [], 1, False), (True, [], 2, False), (False, ["-s"], 2, False)],
)
def test_two_processes_share_the_tests_where_nothing_is_asked_for(checker, full, rest, cores, shared):
    given = checker.pytest_arguments(full, None, rest, cores)
    assert ("--numprocesses=2" in given) == shared
    assert checker.count_cores() >= 1


def test_ci_fails_without_chromium(checker, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["test.py"])
    monkeypatch.setattr(checker, "ensure", lambda requirements: Path(sys.executable))
    monkeypatch.setattr(checker, "prepare_system", lambda python: None)
    monkeypatch.setenv("CI", "true")
    assert checker.main() == 1
    assert "No Chromium" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 1])
def test_one_failed_part_fails_the_whole(checker, monkeypatch, capsys, code):
    def finish(command, **_):
        return subprocess.CompletedProcess(command, code if "mypy" in command else 0)

    monkeypatch.setattr(sys, "argv", ["test.py"])
    monkeypatch.setattr(checker, "ensure", lambda requirements: Path(sys.executable))
    monkeypatch.setattr(checker, "prepare_system", lambda python: "/usr/bin/chromium")
    monkeypatch.setattr(checker.subprocess, "run", finish)
    assert checker.main() == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("failed: mypy" if code else "all passed")


# scripts/bench/store.py


def test_the_benchmark_of_a_large_session_measures(tmp_path, capsys):
    bench = load(ROOT / "scripts" / "bench" / "store.py")
    assert bench.main(["--pairs", "2000", "--times", "3", "--data-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("2,000 pairs, 6,000 label rows")
    rows = [line.split(" | ") for line in printed[4:]]
    assert len(rows) == 17
    assert all(float(median) > 0 for _, _, median, *_ in rows)
    assert list(tmp_path.iterdir()) == []  # nothing stays


# scripts/bench/speed.py

BENCH = ROOT / "scripts" / "bench"
FAKE_CLEANRL = """
import sys
import gymnasium as gym
import numpy as np

class Endless(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        return np.full(2, self.t / 10, np.float32), 1.0, self.t == 5, False, {}

def make_env(i):
    env = gym.wrappers.RecordEpisodeStatistics(Endless())
    return gym.wrappers.TransformObservation(env, lambda obs: obs * 2)  # no observation space: as in gymnasium 0.29

if __name__ == "__main__":
    assert sys.argv[1:] == ["--seed", "3", "--no-cuda"], sys.argv
    envs = gym.vector.SyncVectorEnv([lambda i=i: make_env(i) for i in range(4)])
    envs.reset(seed=3)
    for step in range(1, 201):
        obs, rewards, terminated, truncated, infos = envs.step(np.zeros(4, int))
        assert terminated.all() == (step % 5 == 0)
        assert ("final_info" in infos) == terminated.any()
        for info in infos.get("final_info", []):
            assert info["episode"]["r"] == info["episode"]["l"] == 5
        assert (obs == (0 if terminated.any() else step % 5 / 5)).all()  # reset at once
    envs.close()
"""


@pytest.fixture
def speed():
    return load(BENCH / "speed.py")


@pytest.fixture
def cleanrl(tmp_path):
    """A checkout whose one program takes 200 steps in four environments, with episodes that return 5."""
    (tmp_path / "cleanrl").mkdir()
    (tmp_path / "cleanrl" / "ppo.py").write_text(FAKE_CLEANRL)
    return tmp_path


def test_the_benchmark_of_speed_measures(speed, capsys):
    assert speed.main(["--quick", "--only", "stepping", "cli"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("load ")
    lines = [line.strip("| ").split(" | ") for line in printed[4:]]
    assert [(what, who) for what, who, *_ in lines] == [
        ("Pong, 8 environments: steps/s", "rlhf-gym"), ("Pong, 16 environments: steps/s", "rlhf-gym"),
        ("`rlhf-gym --help`: seconds", "rlhf-gym"), ("`rlhf-gym list`: seconds", "rlhf-gym"),
    ]  # fmt: skip
    assert all(float(median.replace(",", "")) > 0 for _, _, _, median, *_ in lines)


@pytest.mark.parametrize(
    ("side", "settings"),
    [
        ("atari", {"iterations": 2, "num_steps": 2, "device": "cpu"}),
        ("reward", {"pairs": 2, "device": "cpu"}),
        ("collect", {"env_id": "CartPole-v1", "pairs": 2, "pool_factor": 2.0}),
    ],
)
def test_our_sides_measure(side, settings):
    ours = load(BENCH / "sides" / "ours.py")
    assert all(value > 0 for value in ours.SIDES[side](seed=1, **settings).values())


def test_every_side_is_there(speed):
    ours, peers = load(BENCH / "sides" / "ours.py"), load(BENCH / "sides" / "peers.py")
    races = [race for made in speed.BENCHMARKS.values() for race in made(speed.parse([]))]
    assert all(race.sides[0].who == speed.OURS for race in races)
    for side in (side for race in races for side in race.sides):
        function = (ours if side.who == speed.OURS else peers).SIDES[side.function]
        known = {**side.settings, "seed": 1} | ({"cleanrl": ""} if side.who == speed.CLEANRL else {})
        inspect.signature(function).bind(**known)  # raises TypeError where it takes others


def test_sides_run_in_turn_and_ratios_are_of_neighbours(speed, capsys):
    seconds = {"rlhf-gym": [1.0, 2.0, 4.0], "CleanRL": [3.0, 10.0, 8.0]}
    order = []

    def run(side, seed):
        order.append((side.who, seed))
        return {"seconds": seconds[side.who][seed - 1], "steps/s": 100.0 * seed, "true return": -5.0}

    sides = [speed.Side(who, "", {}) for who in seconds]
    race = speed.Race("it", ("seconds", "steps/s", "true return"), sides)
    results = speed.run_race(race, 3, run)
    assert order == [(who, seed) for seed in (1, 2, 3) for who in seconds]
    assert speed.rows(race, results) == [
        "| it: seconds | rlhf-gym | 3 | 2.00 | 1.00 to 4.00 |  |",
        "| it: seconds | CleanRL | 3 | 8.00 | 3.00 to 10.0 | 3.00 (2.00 to 5.00) |",
        "| it: steps/s | rlhf-gym | 3 | 200 | 100 to 300 |  |",
        "| it: steps/s | CleanRL | 3 | 200 | 100 to 300 | 1.00 (1.00 to 1.00) |",
        "| it: true return | rlhf-gym | 3 | -5.00 | -5.00 to -5.00 |  |",
        "| it: true return | CleanRL | 3 | -5.00 | -5.00 to -5.00 |  |",
    ]


def test_more_steps_a_second_are_faster(speed):
    ours, peer = {1: {"steps/s": 600.0}, 2: {"steps/s": 500.0}}, {2: {"steps/s": 250.0}}
    assert speed.ratios("steps/s", ours, peer) == [2.0]  # of the run that both have


def test_a_peer_that_fails_is_told_and_left_out(speed, capsys):
    def run(side, seed):
        if side.who == speed.CLEANRL and seed == 2:
            raise speed.Failed("RuntimeError: no more")
        return {"seconds": float(seed)}

    race = speed.Race("it", ("seconds",), [speed.Side(who, "", {}) for who in (speed.OURS, speed.CLEANRL)])
    results = speed.run_race(race, 3, run)
    assert {who: list(runs) for who, runs in results.items()} == {"rlhf-gym": [1, 2, 3], "CleanRL": [1]}
    assert "CleanRL is left out of it: it failed (RuntimeError: no more)." in capsys.readouterr().err
    assert len(speed.rows(race, results)) == 2


@pytest.mark.parametrize(
    ("who", "lacks", "said"),
    [
        ("CleanRL", "checkout", "CleanRL is left out: give --cleanrl a checkout of vwxyzjn/cleanrl."),
        ("CleanRL", "file", "CleanRL is left out: there is no .*ppo_atari.py; give --cleanrl a checkout of vwxyzjn/cleanrl."),
        ("CleanRL", "tyro", "CleanRL is left out: py has no tyro; give --peers-python an interpreter that has."),
        ("Stable-Baselines3", "stable_baselines3", "Stable-Baselines3 is left out: py has no stable_baselines3; give .*"),
        ("rlhf-gym", "torch", ""),
    ],
)  # fmt: skip
def test_a_missing_peer_is_one_sentence(speed, cleanrl, who, lacks, said):
    modules = {"torch", "gymnasium", "stable_baselines3", "tyro", "tensorboard"} - {lacks}
    peers = speed.Peers(None if lacks == "checkout" else cleanrl, "py", dict.fromkeys(modules, ""))
    side = speed.Side(who, "", {}, file="ppo_atari.py" if lacks == "file" else "ppo.py")
    assert re.fullmatch(said, speed.missing(side, peers))


def test_an_interpreter_is_asked_what_it_has(speed, tmp_path):
    assert speed.find_peers(None, None).versions["torch"] == version("torch")
    with pytest.raises(SystemExit, match="give --peers-python one that does"):
        speed.find_peers(None, tmp_path / "python")


def test_a_cleanrl_program_sees_the_gymnasium_it_was_written_for(speed, cleanrl):
    peers = speed.Peers(cleanrl, sys.executable, {})
    endless = speed.Side("CleanRL", "cleanrl_cartpole", {"stop_at": 6.0})
    run = speed.run_side(endless, 3, peers, 1, cleanrl)
    assert run["note"] == "not reached, 5 at the end"
    assert run["steps"] == 800
    assert 0 < run["training, s"] < run["whole process, s"]
    solved = speed.run_side(speed.Side("CleanRL", "cleanrl_cartpole", {"stop_at": 5.0}), 3, peers, 1, cleanrl)
    assert "note" not in solved
    assert solved["steps"] == 4 * 5 * 25  # the 100th episode
    with pytest.raises(speed.Failed, match="AssertionError"):
        speed.run_side(endless, 4, peers, 1, cleanrl)


def test_the_peer_is_given_the_same_reward_model():
    peers = load(BENCH / "sides" / "peers.py")
    config = resolve({"env_id": "ALE/Pong-v5", "mask_score": False, "reward_sees_action": True}, "atari")
    ours = RewardModel(EnvInfo("atari", (4, 84, 84), True, 6, (), None, None, 15.0, None), config)
    theirs = peers.RewardEnsemble(6)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if k in theirs.state_dict()})
    obs, actions = torch.randint(0, 256, (8, 4, 84, 84), dtype=torch.uint8), torch.arange(8) % 6
    with torch.no_grad():
        assert torch.allclose(ours(obs, actions).float(), theirs(obs, actions), atol=0.05)


def test_what_plain_ppo_says_is_read():
    ours = load(BENCH / "sides" / "ours.py")
    printed = (
        "train_agent 1,024/300,032 | reward 0.1 | 9,000 steps/s | 0.1 s\n"
        "train_agent 40,960/300,032 | true 476.2 | reward 0.1 | 9,000 steps/s | 5.3 s\n"
        "trained 40,960 steps in 5.3 s\ntrue return -499.5 ± 1.2 over 20 episodes\n"
    )
    said = {"steps": 40960, "training, s": 5.3, "true return": -499.5, "wanted": 300032, "lately": 476.2}
    assert ours.read_training(printed) == said
    with pytest.raises(SystemExit, match="no longer says"):
        ours.read_training("trained")


# scripts/bench/whole.py


@pytest.fixture
def whole_bench():
    return load(ROOT / "scripts" / "bench" / "whole.py")


def test_a_wait_is_split_by_the_phases_that_were_announced(whole_bench):
    phases = [(1, "collect", 0), (5, "record", -1), (7, "label", 0), (31, "train_reward", 0), (33, "train_agent", 0),
              (43, "collect", 1), (48, "record", 0)]  # fmt: skip
    stored = [4.75, 47.5]
    nothing = dict.fromkeys(whole_bench.PARTS, 0.0)
    first = whole_bench.split(phases, stored, 0.0, 5.5)
    assert first == nothing | {"start": 1.0, "collect": 3.75, "screen": 0.75}
    later = whole_bench.split(phases, stored, 30.0, 48.25)
    parts = {"label": 1.0, "train_reward": 2.0, "train_agent": 10.0, "collect": 4.5, "screen": 0.75}
    assert later == nothing | parts
    hasty = whole_bench.split(phases, stored, 6.0, 48.25)
    assert hasty == nothing | parts | {"record": 1.0, "label": 24.0}
    assert sum(hasty.values()) == 42.25


def test_what_comes_after_two_dashes_is_for_the_command(whole_bench):
    args = whole_bench.parse(["between", "--seeds", "1", "2", "--", "--pairs-per-round", "3"])
    assert (args.seeds, args.more, args.rounds) == ([1, 2], ["--pairs-per-round", "3"], 3)
    assert whole_bench.parse(["person"]).more == []


def test_a_scripted_person_gets_to_an_agent(browser, request):
    chromium = request.config.getoption("--chromium") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on the PATH: name it with --chromium PATH")
    command = [sys.executable, "scripts/bench/whole.py", "person", "--until", "1", "--pace", "0.2"]
    tiny = [*TINY[TINY.index("--pairs-per-round") :], "--pairs-per-round", "3"]  # a person labels
    result = subprocess.run(
        [*command, "--chromium", chromium, "--", *tiny], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    header, _, row = (line.strip("| ").split(" | ") for line in result.stdout.splitlines()[2:5])
    found = dict(zip(header, row, strict=True))
    wall, *parts = (float(found[n]) for n in ("wall s", "person s", *header[5:-1]))
    assert wall == pytest.approx(sum(parts), abs=0.6)  # each is rounded
    assert found["labels"].startswith("3")
    untrained, taught = map(float, found["true return by round"].split(", "))
    assert untrained >= 1
    assert taught >= 1
    assert min(float(found[n]) for n in ("person s", "start", "label", "collect")) > 0


# rlhf-gym doctor


def test_doctor_finds_this_machine_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SPEED_SECONDS", 0.02)
    start = time.monotonic()
    found = json.loads(json.dumps(doctor.report(tmp_path / "not yet made"), allow_nan=False))
    assert time.monotonic() - start < 15
    assert found["healthy"], doctor.render(found)
    status = {line["name"]: line["status"] for line in found["checks"]}
    assert status["video h264"] == status["render CartPole-v1"] == status["speed Pong"] == "ok"
    text = doctor.render(found)
    assert "rlhf-gym" in text
    assert text.endswith("Everything needed works on this machine.")


def test_doctor_says_what_failed_and_the_remedy():
    def broken() -> str:
        raise OSError("libEGL.so.1:\n cannot open")

    line = doctor.check("render Hopper-v5", broken, "apt install libegl1")
    optional = doctor.check("box2d", broken, "pip install it", optional=True)
    assert (line["status"], optional["status"]) == ("failed", "missing")
    found = {
        "healthy": False, "system": "x", "versions": {}, "cpu": {"name": "y", "cores": 2, "native_bf16": None},
        "memory_gb": None, "checks": [line, optional],
    }  # fmt: skip
    text = doctor.render(found)
    assert "libEGL.so.1: cannot open" in text
    assert "-> apt install libegl1" in text
    assert text.endswith("Not right here: render Hopper-v5.")


def test_doctor_survives_a_crash_while_drawing(monkeypatch):
    monkeypatch.setattr(doctor, "RENDER_CODE", "import os; os.abort()")
    with pytest.raises(RuntimeError, match="the process died"):
        doctor.try_render("CartPole-v1")
    monkeypatch.setattr(doctor, "RENDER_CODE", "raise ImportError('no libEGL')")
    with pytest.raises(RuntimeError, match=r"^ImportError: no libEGL$"):
        doctor.try_render("CartPole-v1")


def test_doctor_notices_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    with pytest.raises(RuntimeError, match=r"only [\d.]+ GB free"):
        doctor.try_disk(tmp_path)


# scripts/bench/learning.py

SHORT = (
    "--seeds", "1", "--pairs-per-round", "4", "--clip-seconds", "0.5", "--agent-steps-per-round", "200", "--num-envs",
    "2", "--num-steps", "32", "--num-minibatches", "2", "--update-epochs", "1", "--ensemble-size", "2", "--reward-steps",
    "5", "--eval-episodes", "1", "--checkpoint-iterations", "2",
)  # fmt: skip


def test_the_benchmark_of_learning_measures_and_goes_on_where_it_stopped(tmp_path):
    """As its own process: it starts others."""
    out = tmp_path / "runs.jsonl"
    command = [sys.executable, str(BENCH / "learning.py"), "cartpole", "fall", *SHORT, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["task"], r["kind"], len(r["rounds"])) for r in runs] == [
        ("cartpole", "labels", 4), ("cartpole", "true", 1), ("fall", "labels", 3),
    ]  # fmt: skip
    labels = [r["labels"] for r in runs[0]["rounds"]]
    assert labels[:2] == [0, 4]
    assert all(more - before in (4, 8) for before, more in pairwise(labels))  # a batch of ties alone is asked again
    assert all(1 <= r["value"] <= 500 for run in runs for r in run["rounds"])
    assert f"| {labels[3]} | {runs[0]['rounds'][3]['value']:.4g} (" in done.stdout
    assert "| true reward |" in done.stdout
    assert "**fall** (CartPole-v1; taste: fall; measured: length), 1 seeds" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.stdout == done.stdout
    assert again.stderr == ""  # nothing was run
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("args", "says"), [(["cartpol"], "no task 'cartpol'"), (["fall", "--rounds", "0"], "--rounds 0 has no end")]
)
def test_what_the_benchmark_of_learning_cannot_do_is_told(args, says, monkeypatch):
    learning = load(BENCH / "learning.py")
    monkeypatch.setattr(sys, "argv", ["learning.py", *args])
    with pytest.raises(UserError, match=says):
        learning.main()
