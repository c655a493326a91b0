"""What a command line means: help, and which settings were given."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from processes import ROOT

from rlhf_gym import __version__, arguments, cli
from rlhf_gym.config import Settings

# ---------------------------------------------------------------------------------------------- help


def plain(*args: str) -> subprocess.CompletedProcess[str]:
    """`python -m rlhf_gym ARGS`, as it is installed."""
    command = [sys.executable, "-m", "rlhf_gym", *args]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "120"}
    )


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version(flag: str) -> None:
    result = plain(flag)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"rlhf-gym {__version__}\n", "")


def test_help_names_the_commands_and_is_quick() -> None:
    began = time.monotonic()
    result = plain("--help")
    assert time.monotonic() - began < 5  # 0.4 s here; torch alone takes 2 or 3
    assert result.returncode == 0
    for name in ("run", "resume", "branch", "replay", "list", "serve", "watch", "evaluate", "doctor"):
        assert re.search(rf"• {name} +[A-Z]", result.stdout), name
    assert "Start a new session" in result.stdout


def test_the_help_of_run_explains_every_setting() -> None:
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", plain("run", "--help").stdout).split())
    for f in dataclasses.fields(Settings):
        assert re.search(rf"--{f.name.replace('_', '-')}[ ,]", text), f.name
    assert "Sentence shown above the clips, so that you judge by the same taste for an hour." in text
    assert "JSON object passed to the environment" in text
    for flag in ("--session", "--data-dir", "--host", "--port", "--no-browser"):
        assert flag in text


@pytest.mark.parametrize("name", ["resume", "branch", "replay", "list", "serve", "watch", "evaluate", "doctor"])
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run_command([name, "--help"])
    assert caught.value.code in (0, None)
    assert "--data-dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args", [[], ["fly"], ["run"], ["run", "CartPole-v1", "--bogus", "1"], ["run", "CartPole-v1", "--seed", "one"],
             ["run", "CartPole-v1", "--labeler", "robot"], ["resume"], ["evaluate", "a", "b"]],
    ids=lambda args: " ".join(args) or "nothing",
)  # fmt: skip
def test_what_is_no_command_line_is_told_on_stderr(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run_command(args)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "--help" in shown.err


# ---------------------------------------------------------------------------------------------- arguments


def given(*args: str) -> dict[str, Any]:
    """The settings that these arguments of `run CartPole-v1` give."""
    line = ["run", "CartPole-v1", *args]
    return arguments.explicit(arguments.parse(line, arguments.Command, "rlhf-gym", "").settings, line)


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        ([], {}),
        (["--gamma", "0.5"], {"gamma": 0.5}),
        (["--gamma=0.5"], {"gamma": 0.5}),
        (["--gamma", "0.99"], {"gamma": 0.99}),  # the default, and all the same given
        (["--pairs-per-round", "7"], {"pairs_per_round": 7}),
        (["--pairs_per_round", "7"], {"pairs_per_round": 7}),
        (["--no-anneal-lr"], {"anneal_lr": False}),
        (["--no_anneal_lr"], {"anneal_lr": False}),
        (["--anneal-lr"], {"anneal_lr": True}),
        (["--noop-max", "3", "--norm-adv"], {"noop_max": 3, "norm_adv": True}),
        (["--skip-threshold", "-inf"], {"skip_threshold": float("-inf")}),
        (["--skip-threshold", "-2.5"], {"skip_threshold": -2.5}),
        (["--env-kwargs", '{"gravity": 12.0}'], {"env_kwargs": {"gravity": 12.0}}),
        (["--env-kwargs", "{gravity"], {"env_kwargs": "{gravity"}),  # config.validate says what is wrong
        (["--goal", "--seed is a word here"], {"goal": "--seed is a word here"}),
        (["--no-browser", "--port", "9000", "--data-dir", "seed", "--session", "gamma"], {}),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_only_what_was_given_wins_over_presets(args: list[str], settings: dict[str, Any]) -> None:
    try:
        assert given(*args) == settings
    except SystemExit:
        assert args[:1] == ["--goal"]  # whether a text may begin with dashes is tyro's to say
