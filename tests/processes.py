"""rlhf-gym in processes of its own, for tests of the command line, of crashes and of what two runs have in common.

    command("list", "--json", cwd=tmp_path)               a run of the command, and how it ended
    command(…, kill=Kill("rlhf_gym.loop:save_state", 3))  one that sends itself SIGKILL when that call has returned
    with Spawned("run", "CartPole-v1", cwd=…) as run: …   a plain `python -m rlhf_gym`, to interrupt it

`command` forks its processes from one that has torch loaded, so that each starts in a moment.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
PRELOAD = ["rlhf_gym.loop", "rlhf_gym.cli", "rlhf_gym.doctor", "torch._dynamo", "torch.utils.tensorboard", __name__]
TIMEOUT = 180.0  # seconds: far beyond what any of them takes

# Small enough for two rounds in a second or two, large enough for every in-phase checkpoint (train_reward has one
# after 200 steps, train_agent one at every second iteration) to be written.
TINY = (
    "--labeler", "synthetic", "--rounds", "2", "--pairs-per-round", "6", "--clip-seconds", "0.4", "--num-envs", "2",
    "--num-steps", "16", "--agent-steps-per-round", "128", "--num-minibatches", "2", "--update-epochs", "1",
    "--checkpoint-iterations", "2", "--reward-steps", "400", "--reward-epochs", "400", "--reward-hidden", "8",
    "--hidden-size", "8", "--eval-episodes", "2", "--repeat-fraction", "0.34",
)  # fmt: skip


@dataclass(frozen=True)
class Kill:
    """SIGKILL at the n-th call of a function or method, "module:name" or "module:Class.name"."""

    where: str
    call: int
    before: bool = False
    """The call is not made; else it has returned."""

    def __str__(self) -> str:
        return f"{'before' if self.before else 'after'} call {self.call} of {self.where}"

    def arm(self) -> None:
        module, _, name = self.where.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, last = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        real, calls = getattr(owner, last), [0]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if self.before and calls[0] == self.call:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if calls[0] == self.call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, last, wrapped)


@dataclass(frozen=True)
class Result:
    status: int  # -9: killed by SIGKILL
    out: str
    err: str


def command(
    *args: object,
    cwd: Path,
    kill: Kill | None = None,
    env: Mapping[str, str] | None = None,
    missing: Sequence[str] = (),
) -> Result:
    """Runs `rlhf-gym ARGS` in `cwd` to its end. No traceback and no warning may show.

    Args:
        missing: packages that are not installed there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    aside = tempfile.TemporaryDirectory()
    files = Path(aside.name, "out"), Path(aside.name, "err")
    settings = {"HOME": str(cwd), **(env or {})}  # the pages' token is kept under HOME
    process = context.Process(target=_child, args=([str(a) for a in args], files, cwd, settings, missing, kill))
    process.start()
    process.join(TIMEOUT)
    alive = process.is_alive()
    if alive:
        process.kill()
        process.join()
    out, err = (f.read_text() for f in files)
    aside.cleanup()
    assert not alive, f"rlhf-gym {' '.join(map(str, args))} is still running after {TIMEOUT} s:\n{err}"
    assert "Traceback" not in err, err
    assert "Warning" not in err, err
    status = process.exitcode
    assert status is not None
    process.close()
    return Result(status, out, err)


def refused(result: Result) -> str:
    """The one sentence with which a command was refused."""
    assert result.status == 1, result
    assert result.out == ""
    assert result.err.startswith("rlhf-gym: ")
    assert result.err.count("\n") == 1
    return result.err


def _child(
    args: list[str], files: tuple[Path, Path], cwd: Path, env: dict[str, str], missing: Sequence[str], kill: Kill | None
) -> None:
    for number, path in zip((1, 2), files, strict=True):
        handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.chdir(cwd)
    os.environ.update(env)
    for name in missing:
        sys.modules[name] = None  # type: ignore[assignment]  # `import name` fails
    if kill is not None:
        kill.arm()
    import torch

    from rlhf_gym.cli import run_command

    torch.set_num_threads(1)  # threads that wait for each other on a busy machine are twenty times slower
    sys.exit(run_command(args))


class Spawned:
    """A plain `python -m rlhf_gym ARGS`, as a user starts it; killed at the end of the with block."""

    def __init__(self, *args: object, cwd: Path) -> None:
        self.log = cwd / f".log-{time.monotonic_ns()}"
        env = {**os.environ, "HOME": str(cwd), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with open(self.log, "w") as log:
            command = [sys.executable, "-m", "rlhf_gym", *map(str, args)]
            self.process = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def __enter__(self) -> Spawned:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """Waits until the output matches."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.text())) is None:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < deadline, f"no {pattern!r} within {seconds} s:\n{self.text()}"
            time.sleep(0.01)
        return found

    def wait_for_phase(self, phase: str, session: str, seconds: float = 60.0) -> None:
        """Waits until the loop is in that phase of a session in ./data."""
        progress = self.log.parent / "data" / session / "progress.json"
        deadline = time.monotonic() + seconds
        while not (progress.exists() and json.loads(progress.read_text())["phase"] == phase):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < deadline, f"no phase {phase} within {seconds} s:\n{self.text()}"
            time.sleep(0.002)

    def client(self) -> httpx.Client:
        """One for the pages' API, with the token of the address that was printed."""
        url, token = self.wait_for(r"Open (http://[^/]+)/\S*\?token=(\S+)").groups()
        return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=10)

    def interrupt(self) -> tuple[int, float]:
        """Ctrl-C. Returns the exit status and the seconds it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        return status, time.monotonic() - began
