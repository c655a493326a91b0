"""Several processes that train one agent: what they average, what they hold, and how they end."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compare
import pytest
import torch
from processes import PRELOAD, ROOT, TINY

from rlhf_gym import seeds, train
from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import EnvInfo, describe
from rlhf_gym.fast import VectorLearner
from rlhf_gym.team import Team
from rlhf_gym.train import Agent, RewardModel, Rollout, train_agent

CPU = torch.device("cpu")
VECTOR = EnvInfo("classic", (4,), False, 3, (), None, None, 50.0, 500)
CONTINUOUS = EnvInfo("mujoco", (4,), False, None, (2,), (-2.0, -1.0), (2.0, 1.0), 30.0, 200)
IMAGE = EnvInfo("pixels", (4, 52, 52), True, 3, (), None, None, 15.0, 50)
TIMEOUT = 120.0  # seconds: far beyond what any of them takes


# ---------------------------------------------------------------------------------------------- without torchrun


def on_each(work: Callable[..., Any], *args: Any, size: int = 2, into: Path) -> list[Any]:
    """What work(team, *args) returns on each rank, in processes of their own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    processes = [context.Process(target=_rank, args=(work, args, rank, size, into)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * size
    return [torch.load(into / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _rank(work: Callable[..., Any], args: tuple[Any, ...], rank: int, size: int, into: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{into / 'meet'}", rank=rank, world_size=size)
    with Team(rank, size) as team:
        torch.save(work(team, *args), into / f"{rank}.pt")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def made_up(info: EnvInfo, rows: int) -> dict[str, torch.Tensor]:
    """A minibatch with old values and log-probabilities on both sides of every clip."""
    torch.manual_seed(5)
    obs = torch.randint(0, 256, (rows, *info.obs_shape), dtype=torch.uint8)
    actions = torch.randint(0, 3, (rows,)) if info.num_actions else torch.randn(rows, 2)
    x = dict(zip(("log_probs", "values", "returns", "advantages"), torch.randn(4, rows), strict=True))
    return {"obs": obs if info.image else torch.randn(rows, 4), "actions": actions, **x}


def fresh(info: EnvInfo, config: Config) -> Agent:
    torch.manual_seed(4)
    return Agent(info, config)


def gradients(agent: Agent) -> dict[str, torch.Tensor | None]:
    return {name: p.grad if p.grad is None else p.grad.clone() for name, p in agent.named_parameters()}


def averaged_gradients(team: Team, info: EnvInfo, config: Config) -> list[dict[str, torch.Tensor | None]]:
    """First those of the value alone, then all, then of the value alone again."""
    agent, batch, found = fresh(info, config), made_up(info, 16), []
    rows = slice(8 * team.rank, 8 * team.rank + 8)
    for value_only in (True, False, True):
        loss_of = team.averaged(train.ppo_loss, agent, value_only)
        agent.zero_grad(set_to_none=True)
        loss_of(agent, {k: v[rows] for k, v in batch.items()}, config, value_only)[0].backward()
        found.append(gradients(agent))
    if team.rank > 0:
        team.work()
    return found


@pytest.mark.parametrize("info", [VECTOR, CONTINUOUS, IMAGE], ids=["discrete", "continuous", "images"])
def test_the_gradient_is_that_of_the_joint_batch(tmp_path: Path, info: EnvInfo) -> None:
    config = Config(norm_adv=False, fast=False, ent_coef=0.01)
    ranks = on_each(averaged_gradients, info, config, into=tmp_path)
    agent, batch = fresh(info, config), made_up(info, 16)
    for i, value_only in enumerate((True, False, True)):
        agent.zero_grad(set_to_none=True)
        train.ppo_loss(agent, batch, config, value_only)[0].backward()
        for name, whole in gradients(agent).items():
            one, other = ranks[0][i][name], ranks[1][i][name]
            if whole is None:
                assert one is None, name  # the policy, while the value warms up: Adam does not count such a step
                assert other is None, name
            else:
                assert torch.equal(one, other), name
                assert (one - whole).abs().max() <= 1e-5 * whole.abs().max() + 1e-9, name


def trained(team: Team, config: Config, info: EnvInfo) -> dict[str, Any]:
    """Trains, and again from each in-phase checkpoint. What rank 0 holds after each, the last thing the others hold."""
    torch.manual_seed(3)
    agent, model = fresh(info, config), RewardModel(info, config)
    held: list[dict[str, torch.Tensor]] = []
    if team.rank > 0:
        real = team.averaged

        def noted(loss_of: Any, agent: Agent, value_only: bool) -> Any:
            held.append(agent.state_dict())  # these are the parameters themselves: they show what became of them
            return real(loss_of, agent, value_only)

        team.averaged = noted  # type: ignore[method-assign]
        assert team.work() == 0
        return {"held": held[-1]}
    common: dict[str, Any] = dict(steps=5 * 64, seed_path=(1, 3, 2), warmup=1)
    saved: list[dict[str, Any]] = []
    told: list[tuple[int, int, dict[str, float]]] = []
    done = team.run(
        train_agent, agent, model.score, config, CPU, **common,
        save=lambda state: saved.append(copy.deepcopy(state)), report=lambda *a: told.append(a),
    )  # fmt: skip
    again = []
    for state in saved:
        resumed = Agent(info, config)
        team.run(train_agent, resumed, model.score, config, CPU, **common, state=state)
        again.append(resumed.state_dict())
    return {
        "done": done, "agent": agent.state_dict(), "again": again, "told": told,
        "iterations": [s["iteration"] for s in saved], "states": saved,
    }  # fmt: skip


def config_of(env_id: str) -> Config:
    return Config(
        env_id=env_id, num_envs=4, num_steps=16, num_minibatches=2, update_epochs=2, checkpoint_iterations=2,
        normalize_obs=True, frame_stack=2,
    )  # fmt: skip


def mean_rank(team: Team) -> float:
    return float(team.all_reduce_mean(torch.tensor(float(team.rank))))


def test_the_mean_of_a_number_is_the_same_for_all(tmp_path: Path) -> None:
    assert on_each(mean_rank, into=tmp_path) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("env_id", "target_kl"),
    [("CartPole-v1", 0.0), ("CartPole-v1", 1e-5), ("Pendulum-v1", 0.0), ("rlhf_gym/Dot-v0", 0.0)],
)
def test_both_hold_the_same_agent_and_go_on_bit_for_bit(tmp_path: Path, env_id: str, target_kl: float) -> None:
    config = dataclasses.replace(config_of(env_id), target_kl=target_kl)
    info = describe(config)
    first, second = on_each(trained, config, info, into=tmp_path)
    assert first["done"] == 5 * 64
    assert first["iterations"] == [0, 2, 4]
    assert [t[:2] for t in first["told"]] == [(64 * i, 320) for i in range(1, 6)]
    assert not same(first["agent"], fresh(info, config).state_dict())
    assert all(same(again, first["agent"]) for again in first["again"])
    parameters = dict(Agent(info, config).named_parameters())
    assert all(torch.equal(second["held"][name], first["agent"][name]) for name in parameters)
    assert first["agent"]["normalizer.count"] == 5 * 64  # what all of them saw
    # another number of processes goes on from there, too
    alone = Agent(info, config)
    common: dict[str, Any] = dict(steps=5 * 64, seed_path=(1, 3, 2), warmup=1)
    model = RewardModel(info, config)
    for state in first["states"]:
        assert train_agent(alone, model.score, config, CPU, **common, state=state) == 320
        assert all(torch.isfinite(x).all() for x in alone.state_dict().values())


class Enough(Exception):
    pass


def left_early(team: Team) -> list[int]:
    """Jobs that end early, by the report's answer and by an exception, and one that does not."""
    config = config_of("CartPole-v1")
    done: list[int] = []
    if team.rank > 0:
        return [team.work()]

    def job(report: Callable[..., Any]) -> None:
        agent = fresh(describe(config), config)
        model = RewardModel(describe(config), config)
        done.append(team.run(
            train_agent, agent, model.score, config, CPU, steps=5 * 64, seed_path=(1,), report=report
        ))  # fmt: skip

    def enough(_done: int, _total: int, _metrics: dict[str, float]) -> None:
        raise Enough

    job(lambda done, total, metrics: done >= 128)
    with pytest.raises(Enough):
        job(enough)
    job(lambda done, total, metrics: None)
    return done


def test_the_report_can_end_the_training_of_all(tmp_path: Path) -> None:
    assert on_each(left_early, into=tmp_path) == [[128, 320], [0]]


def broken(team: Team) -> str:
    """A job that rank 0 leaves in the middle of an iteration."""
    config = config_of("CartPole-v1")
    if team.rank > 0:
        return str(team.work())
    agent = fresh(describe(config), config)

    def score(_roll: Rollout, _true_rewards: Any) -> Any:
        raise Enough

    team.broadcast = lambda thing=None: thing  # type: ignore[method-assign]  # the others hear of nothing
    with pytest.raises(Enough):
        team.run(train_agent, agent, score, config, CPU, steps=64, seed_path=(1,))
    with pytest.raises(UserError) as error:
        team.run(train_agent, agent, score, config, CPU, steps=64, seed_path=(1,))
    team.busy = False
    del team.broadcast
    return str(error.value)


def test_after_a_job_that_broke_off_there_is_no_other(tmp_path: Path) -> None:
    said, status = on_each(broken, into=tmp_path)
    assert "out of step" in said
    assert status == "0"


def test_one_process_is_as_without_a_team() -> None:
    config = config_of("CartPole-v1")
    info = describe(config)
    score = RewardModel(info, config).score
    agents = [fresh(info, config) for _ in range(2)]
    train_agent(agents[0], score, config, CPU, steps=128, seed_path=(1,))
    Team().run(train_agent, agents[1], score, config, CPU, steps=128, seed_path=(1,))
    assert same(agents[0].state_dict(), agents[1].state_dict())
    assert isinstance(train.fast.prepare(agents[0], config, CPU), VectorLearner)
    assert train.fast.prepare(agents[0], config, CPU, alone=False) is None


def test_no_two_processes_meet_the_same_episodes() -> None:
    parts, iterations = [(), (1,), (2,)], range(4)
    paths = [
        (*Team(rank, 4).path((1, round, 2, *part)), iteration)
        for rank, round, part, iteration in itertools.product(range(4), range(3), parts, iterations)
    ]
    assert len({seeds.seed_from(*path) for path in paths}) == len(paths)
    assert Team(0, 4).path((1, 2)) == (1, 2)  # as in a process alone


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_envs": 3}, "--num-envs 3 cannot be shared out among 2 processes: give a multiple of 2, e.g. 4."),
        ({"num_envs": 2, "num_steps": 8, "num_minibatches": 16}, "--num-minibatches 16 is more than the 8 steps"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(settings: dict[str, int], says: str) -> None:
    config = Config(env_id="CartPole-v1", **settings)  # type: ignore[arg-type]
    assert Team().part(config) is config
    with pytest.raises(UserError, match=re.escape(says)):
        Team(0, 2).check(config, CPU)


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(env_id="CartPole-v1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes need a GPU each, and this machine has 1"):
        Team(0, 2, (0, 2)).check(config, torch.device("cuda"))
    Team(0, 2, (0, 1)).check(config, torch.device("cuda"))  # the other one is elsewhere
    with pytest.raises(UserError, match="--device mps is for one process"):
        Team(0, 2, (0, 2)).check(config, torch.device("mps"))


# ---------------------------------------------------------------------------------------------- torchrun

KILLED = """
import os, sys
from rlhf_gym.cli import main

if os.environ["RANK"] == sys.argv.pop(1):
    from processes import Kill
    Kill(sys.argv.pop(1), int(sys.argv.pop(1))).arm()
else:
    del sys.argv[1:3]
main()
"""  # KILLED rank function call command …


class Torchrun:
    """torchrun with two processes, whose outputs go to files; what it started it ends, too, at the end of the block."""

    def __init__(self, *command: object, cwd: Path) -> None:
        self.logs = cwd / f".logs-{time.monotonic_ns()}"
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        env = {**os.environ, "HOME": str(cwd), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        args = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--redirects=3"]
        args += ["--log-dir", str(self.logs), *map(str, command)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(args, cwd=cwd, env=env, stdin=quiet, stdout=quiet, stderr=quiet)

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # it kills its processes half a minute later, if need be
        self.process.wait(60)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT)

    def said(self, rank: int) -> str:
        """What one of the processes has said so far; none of it a traceback or a warning."""
        found = "".join(p.read_text() for p in sorted(self.logs.glob(f"**/{rank}/*.log")))
        assert "Traceback" not in found, found
        assert "Warning" not in found, found
        return found

    def wait_for(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not done():
            assert self.process.poll() is None, self.said(0) + self.said(1)
            assert time.monotonic() < deadline, self.said(0) + self.said(1)
            time.sleep(0.05)

    def pids(self) -> list[int]:
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]


RUN = ("-m", "rlhf_gym", "run", "CartPole-v1", "--session", "one", *TINY)


def training(cwd: Path) -> bool:
    """Whether the agent of the session is trained now."""
    log = cwd / "data" / "one" / "progress.json"
    return log.exists() and '"phase": "train_agent"' in (text := log.read_text()) and '"done": 0,' not in text


def test_torchrun_trains_one_session(tmp_path: Path) -> None:
    with Torchrun(*RUN, cwd=tmp_path) as run:
        assert run.wait() == 0, run.said(0) + run.said(1)
        assert "round 1 record 2/2" in run.said(0)
        assert run.said(1) == ""
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["one"]
    session = compare.session_in(tmp_path)
    assert session.where().phase == "finished"
    digests = {name: (session.path / "checkpoints" / name).read_bytes() for name in compare.NAMES}
    assert len(set(digests.values())) == 3
    # a process alone goes on
    result = compare.command("resume", "one", "--rounds", 3, cwd=tmp_path)
    assert result.status == 0, result.err
    assert compare.session_in(tmp_path).where().phase == "finished"


def test_environments_that_cannot_be_shared_out_are_one_sentence(tmp_path: Path) -> None:
    with Torchrun(*RUN, "--num-envs", 3, cwd=tmp_path) as run:
        assert run.wait() == 1
        assert run.said(0) == (
            "rlhf-gym: --num-envs 3 cannot be shared out among 2 processes: give a multiple of 2, e.g. 4.\n"
        )
        assert run.said(1) == ""
    assert not (tmp_path / "data").exists()


def test_ctrl_c_ends_all_of_them(tmp_path: Path) -> None:
    with Torchrun(*RUN, "--agent-steps-per-round", 10_000_000, cwd=tmp_path) as run:
        run.wait_for(lambda: training(tmp_path))
        pids, began = run.pids(), time.monotonic()
        assert len(pids) == 2
        run.process.send_signal(signal.SIGINT)
        run.wait()
        assert time.monotonic() - began < 10
        assert run.said(0).endswith("resume one\n")
        assert run.said(0).count("Stopped; nothing is lost.") == 1
        assert run.said(1) == ""
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_one_that_is_killed_ends_the_other_with_a_sentence(tmp_path: Path) -> None:
    with Torchrun(*RUN, "--agent-steps-per-round", 10_000_000, cwd=tmp_path) as run:
        run.wait_for(lambda: training(tmp_path))
        first, second = sorted(run.pids())
        os.kill(second, signal.SIGKILL)
        assert run.wait() == 1
        # torchrun ends the first one, too; whichever it hears of first
        assert re.search(r"One of the 2 processes has ended|Stopped; nothing is lost", run.said(0))
    assert not Path(f"/proc/{first}").exists()


@pytest.mark.full
def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    with Torchrun(*RUN, cwd=tmp_path / "whole") as run:
        assert run.wait() == 0, run.said(0)
    (tmp_path / "killed.py").write_text(KILLED)
    # rank 0 after the third update of round 0: its second in-phase checkpoint of four iterations is written
    with Torchrun(tmp_path / "killed.py", 0, "rlhf_gym.train:update", 3, *RUN[2:], cwd=tmp_path / "killed") as run:
        assert run.wait() == 1
        assert "round 0 train_reward" in run.said(0)
        assert "round 0 train_agent" not in run.said(0)
        assert run.said(1) == ""
    assert compare.session_in(tmp_path / "killed").where().phase == "train_agent"
    with Torchrun("-m", "rlhf_gym", "resume", "one", cwd=tmp_path / "killed") as run:
        assert run.wait() == 0, run.said(0)
    compare.same_session(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.full
def test_plain_ppo_and_retraining_take_part(tmp_path: Path) -> None:
    small = ("--num-envs", 2, "--num-steps", 16, "--num-minibatches", 2, "--steps", 64)
    with Torchrun("-m", "rlhf_gym.train", "--env-id", "CartPole-v1", "--reward", "env", *small, cwd=tmp_path) as run:
        assert run.wait() == 0, run.said(0)
        assert "trained 64 steps" in run.said(0)
        assert run.said(1) == ""
    assert compare.run(tmp_path).status == 0
    with Torchrun("-m", "rlhf_gym.train", "one", "--out", "new.pt", cwd=tmp_path) as run:
        assert run.wait() == 0, run.said(0)
    assert (tmp_path / "new.pt").exists()


@pytest.mark.full
def test_the_benchmark_measures(tmp_path: Path) -> None:
    small = ("--iterations", "3", "--num-steps", "16", "--num-minibatches", "2", "--num-envs", "2")
    script = ROOT / "scripts" / "bench" / "scaling.py"
    command = [sys.executable, str(script), "--env-ids", "CartPole-v1", *small]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\| CartPole-v1 \| (\d) \| (\d) \| [\d,]+ \| [\d.]+ \|$", done.stdout, re.M) == [
        ("1", "2"), ("2", "1"),
    ]  # fmt: skip


def test_threads_are_as_many_in_each(tmp_path: Path) -> None:
    assert on_each(threads, into=tmp_path) == [3, 3]


def threads(team: Team) -> int:
    if team.rank == 0:
        torch.set_num_threads(3)
        team.run(nothing)
    else:
        team.work()
    return torch.get_num_threads()


def nothing(team: Team, save: Any = None, report: Any = None) -> int:
    team.over(report, 1, 1, {})
    return 0


def test_settings_stay_those_of_the_session() -> None:
    config = config_of("CartPole-v1")
    part = Team(1, 2).part(config)
    assert dataclasses.replace(part, num_envs=config.num_envs) == config
    assert part.num_envs == 2
