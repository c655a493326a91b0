"""Ctrl-C ends a session within two seconds in every phase, and what it prints goes on from there."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from processes import ROOT, TINY, Spawned, command

from rlhf_gym import catalog
from rlhf_gym.store import START

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks its processes")

RESUME = r"Stopped; nothing is lost\. Go on with: (rlhf-gym resume .*)"


def interrupted(run: Spawned, status: int) -> list[str]:
    """Presses Ctrl-C and returns the resume command that was printed."""
    found, seconds = run.interrupt()
    assert found == status, run.text()
    assert seconds < 2, run.text()
    assert "Traceback" not in run.text()
    told = re.search(RESUME, run.text())
    assert told is not None, run.text()
    return shlex.split(told[1])


def test_ctrl_c_while_a_person_labels_with_a_page_open(tmp_path: Path) -> None:
    settings = [word for word in TINY if word not in ("--labeler", "synthetic")]
    with Spawned("run", "CartPole-v1", *settings, "--no-browser", "--data-dir", "some where", cwd=tmp_path) as run:
        client = run.client()
        run.wait_for("untrained agent record .*true return")
        deadline = time.monotonic() + 30
        with client.stream("GET", "/api/s/cartpole-1/events") as stream:
            events = stream.iter_lines()
            while '"phase":"label"' not in next(events):
                assert time.monotonic() < deadline
            assert client.get("/api/s/cartpole-1/pairs").json()["total"] == 6
            line = interrupted(run, 0)
            with contextlib.suppress(httpx.HTTPError):
                list(events)  # the stream ends
        client.close()
    session = catalog.open_session(tmp_path / "some where", "cartpole-1")
    assert (session.where().phase, session.running()) == ("label", False)
    assert session.video(START).exists()
    session.close()
    assert line[:3] == ["rlhf-gym", "resume", "cartpole-1"]
    few = ("--labeler", "synthetic", "--rounds", "1", "--reward-steps", "5")
    result = command(*line[1:], *few, cwd=tmp_path)  # what was printed is what works
    assert result.status == 0, result.err


LONG = {
    "collect": ("--pairs-per-round", "10000"),
    "label": ("--score", "slow:slow"),
    "train_reward": ("--reward-steps", "10000000", "--reward-epochs", "1000000"),
    "train_agent": ("--agent-steps-per-round", "10000000"),
    "record": ("--eval-episodes", "100000"),
}
SLOW = "import time\n\ndef slow(clip):\n    time.sleep(0.5)\n    return clip.observations[0, 0]\n"


@pytest.mark.parametrize("phase", LONG)
def test_ctrl_c_in_every_phase(tmp_path: Path, phase: str) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    with Spawned("run", "CartPole-v1", "--session", "one", *TINY, *LONG[phase], cwd=tmp_path) as run:
        run.wait_for_phase(phase, "one")
        time.sleep(0.3)
        assert interrupted(run, 130) == ["rlhf-gym", "resume", "one"]
    session = catalog.open_session(tmp_path / "data", "one")
    assert not session.running()
    assert session.where().phase in (phase, "collect", "label")  # the agent of the start is recorded during label
    session.close()


IGNORED = """
import signal, sys, time, weakref
from rlhf_gym import cli

class Thing:
    pass

def list_sessions(_command):
    thing = Thing()
    _seen = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    time.sleep(120)
    return 0

cli.list_sessions = list_sessions
sys.argv = ["rlhf-gym", "list"]
cli.main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_where_python_ignores_it_is_raised_again(name: str) -> None:
    """As when SQLAlchemy's engines of before are collected: a callback of a weak reference cannot raise."""
    env, code = {**os.environ, "PYTHONPATH": str(ROOT)}, IGNORED
    if name == "SIGTERM":  # a program that a script started in the background hears no Ctrl-C
        code = code.replace("signal.SIGINT", "signal.SIGTERM").replace(
            "class", "signal.signal(2, signal.SIG_IGN)\nclass"
        )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "")
