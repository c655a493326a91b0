"""The container file installs what is pinned and packaged, and starts what the documentation says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from processes import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import run
import test as checks

FILE = (ROOT / "Containerfile").read_text("utf-8")
ENTRY = ROOT / "scripts" / "container.sh"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def instructions() -> list[tuple[str, str]]:
    """Each with what follows it, continued lines joined."""
    lines = [line for line in FILE.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


def said(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def test_torch_comes_first_and_no_version_is_repeated() -> None:
    installs = [step for step in said("RUN") if step.startswith("pip install")]
    pin = re.search(r'"\$\((.*?)\)"', installs[0])
    assert pin is not None
    found = subprocess.run(["sh", "-c", pin[1]], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == run.torch_pin()
    assert "--requirement requirements.txt" in installs[1]
    assert "--no-deps --no-build-isolation ." in installs[2]
    pins = [Requirement(line) for line in run_pins()]
    assert len(pins) > 40
    for pin_of in pins:
        assert str(pin_of.specifier)[2:] not in re.findall(r"[\d.]*\d", FILE), pin_of


def run_pins() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_its_python_is_one_that_everything_is_pinned_for() -> None:
    (base,) = said("FROM")
    version = re.fullmatch(r"docker\.io/library/python:(3\.\d+)-slim-\w+", base)
    assert version is not None
    assert version[1] in SpecifierSet(PROJECT["project"]["requires-python"])
    there = {"python_version": version[1], "sys_platform": "linux", "platform_machine": "x86_64"}
    for line in run_pins():
        marker = Requirement(line).marker
        if marker is not None and "win32" not in str(marker).replace('sys_platform != "win32"', ""):
            assert marker.evaluate(there), line


def test_the_packages_that_draw_are_those_of_the_tests() -> None:
    apt = next(step for step in said("RUN") if "apt-get install" in step)
    names = re.search(r"--no-install-recommends ([\w\d -]+?) *&&", apt)
    assert names is not None
    assert tuple(names[1].split()) == checks.HEADLESS_GL


def test_all_that_is_packaged_is_copied_and_let_through() -> None:
    copied = [source for rest in said("COPY") for source in rest.removeprefix("--chmod=755 ").split()[:-1]]
    assert {s for s in copied if (ROOT / s).exists()} == set(copied)
    needed = {*PROJECT["tool"]["setuptools"]["packages"], PROJECT["project"]["readme"], "pyproject.toml"}
    assert needed | {*PROJECT["project"]["license-files"], "requirements.txt"} <= set(copied)
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignore
    assert {line[1:] for line in ignore if line.startswith("!")} == set(copied)


def test_it_runs_as_nobody_special_with_everything_on_one_volume() -> None:
    assert said("USER") == ["1000:1000"]
    assert [name for name, _ in instructions()].index("USER") > max(
        i for i, (name, _) in enumerate(instructions()) if name == "RUN"
    )
    assert said("VOLUME") == ["/data"]
    from rlhf_gym.arguments import DataDir

    assert str(Path(said("WORKDIR")[-1]) / DataDir().data_dir) == "/data"
    assert "HOME=/data" in said("ENV")[0]


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("command", ["run CartPole-v1 --goal 'a b'", "resume one", "serve --port 9", "list --json", ""])
def test_the_pages_listen_where_they_are_published(tmp_path: Path, command: str) -> None:
    fake = tmp_path / "rlhf-gym"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(["sh", "-c", f"{ENTRY} {command}"], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    words = result.stdout.splitlines()
    if command.startswith(("run", "resume", "serve")):
        assert words[1:6] == ["--host", "0.0.0.0", "--port", *said("EXPOSE"), "--no-browser"]
        del words[1:6]
    given = subprocess.run(
        ["sh", "-c", f'printf "%s\\n" {command}'], capture_output=True, text=True
    ).stdout.splitlines()
    assert words == given


def test_what_is_said_later_wins() -> None:
    from rlhf_gym.arguments import Command, Serve, parse

    said_twice = ["serve", "--host", "0.0.0.0", "--port", "8000", "--no-browser", "--port", "9000"]
    command = parse(said_twice, Command, "rlhf-gym", "")
    assert isinstance(command, Serve)
    assert (command.access.host, command.access.port, command.access.browser) == ("0.0.0.0", 9000, False)


def test_the_documentation_names_what_there_is() -> None:
    text = (ROOT / "docs" / "container.md").read_text("utf-8")
    assert f":{said('EXPOSE')[0]}" in text
    assert json.loads(said("ENTRYPOINT")[0]) == [Path(said("COPY")[-1].split()[-1]).name]
    assert f"`{re.search(r'PYTHONPATH=(/[a-z]+)', said('ENV')[0])[1]}`" in text  # type: ignore[index]
    for published in re.findall(r"^docker run .*|^podman run .*", text, re.MULTILINE):
        assert "-p 127.0.0.1:" in published  # this machine alone
        assert ":/data" in published
