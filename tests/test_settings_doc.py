"""docs/settings.md says what the settings are."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

from rlhf_gym.config import FIXED, PRESETS, RANGES, Config, exactly, flag

SCRIPT = ROOT / "scripts" / "settings_doc.py"
PAGE = ROOT / "docs" / "settings.md"


def rows() -> dict[str, list[str]]:
    """The cells of each row by what is typed first."""
    lines = [line[2:-2].split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]
    return {re.findall(r"`([^`]+)`", cells[0])[0]: cells for cells in lines}


def test_the_page_is_up_to_date() -> None:
    result = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_setting_has_its_row() -> None:
    names = {flag(f.name): f.name for f in dataclasses.fields(Config) if f.name != "env_id"} | {"ENV_ID": "env_id"}
    found = rows()
    assert set(found) == set(names)
    for typed, cells in found.items():
        name = names[typed]
        assert len(cells) == 5
        assert cells[4].endswith("**Fixed.**") == (name in FIXED), name
        if name in RANGES:
            assert cells[3].endswith((f" to {exactly(RANGES[name][1])}", f" {exactly(RANGES[name][1])} at most")), name
    for kind, preset in PRESETS.items():
        moved = {name for name, value in preset.items() if value != getattr(Config(), name)}
        told = {names[typed] for typed, cells in found.items() if re.search(rf"(?<![\w-]){kind} ", cells[2])}
        assert told == moved, kind
        assert f"- **{kind}**" in PAGE.read_text("utf-8")
    assert found["--gamma"][1:3] == ["0.99", "classic-continuous 0.95"]
    assert found["--anneal-lr"][0] == "`--anneal-lr`, `--no-anneal-lr`"


def test_the_texts_are_those_of_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    from rlhf_gym.cli import run_command

    with pytest.raises(SystemExit):
        run_command(["run", "--help"])
    told = re.sub(r"[\W_]+", "", capsys.readouterr().out)  # without line breaks and frames
    for typed, cells in rows().items():
        text = cells[4].removesuffix(" **Fixed.**").replace("&#124;", "|")
        assert re.sub(r"[\W_]+", "", text) in told, typed


def test_a_page_that_is_out_of_date_is_told_and_written_anew(tmp_path: Path) -> None:
    for name in ("scripts/settings_doc.py", "rlhf_gym/__init__.py", "rlhf_gym/config.py", "docs/settings.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    page = tmp_path / "docs" / "settings.md"
    config = tmp_path / "rlhf_gym" / "config.py"
    config.write_text(config.read_text("utf-8").replace("gamma: float = 0.99\n", "gamma: float = 0.98\n"), "utf-8")

    def call(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "scripts" / "settings_doc.py"), *args]
        return subprocess.run(command, capture_output=True, text=True)

    before = page.read_text("utf-8")
    checked = call("--check")
    assert (checked.returncode, len(checked.stderr.splitlines())) == (1, 1)
    assert page.read_text("utf-8") == before
    assert call().returncode == 0
    assert "| `--gamma` | 0.98 |" in page.read_text("utf-8")
    assert call("--check").returncode == 0
    wrong = call("--chek")
    assert wrong.returncode == 2
    assert "'--chek' is not --check" in wrong.stderr
