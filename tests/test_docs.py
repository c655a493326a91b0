"""README.md and docs/*.md: commands that parse or run, links that lead somewhere, numbers that the code gives, too."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from processes import TINY, command

from rlhf_gym import arguments, honesty, retrain
from rlhf_gym.config import Config, resolve, validate_each
from rlhf_gym.labels import Labels
from rlhf_gym.segments import Segment
from rlhf_gym.store import Pair
from rlhf_gym.train import Rollout, clip_rewards, gae, label_loss

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"
FENCE = re.compile(r"^([ ]*)```(\w*)[^\n]*\n(.*?)^\1```[ ]*$", re.M | re.S)
PLACEHOLDERS = {
    "PEERS": "--cleanrl cleanrl --peers-python peers/bin/python", "ENV_ID": "CartPole-v1", "SESSION": "cartpole-1",
    "STEPS": "1000", "SEED": "1", "N": "2", "NAME": "name", "FILE": "file", "DIRECTORY": "directory", "PATH": "path",
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """One command of a document that is ours: what runs it, and its arguments."""

    document: str
    program: str  # rlhf-gym, rlhf_gym.train, or a script's path in the checkout
    args: list[str]

    def __str__(self) -> str:
        return f"{self.document}: {self.program} {shlex.join(self.args)}"


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a document in one language."""
    return [body for _, name, body in FENCE.findall(path.read_text()) if name == language]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", path.read_text())


def simple(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, which && and the like hold together."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word in ("&&", "||", ";", "|", "&"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


def ours(document: str, words: list[str]) -> Command | None:
    """What a command runs of ours; None for git, ssh and the rest."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return None
    first, rest = Path(words[0]).name, words[1:]
    if first == "torchrun" and "-m" in rest:
        first, rest = "python", rest[rest.index("-m") :]
    if first == "rlhf-gym":
        return Command(document, "rlhf-gym", rest)
    if first in ("python", "python3") and rest:
        if rest[0] == "-m" and rest[1] in ("rlhf_gym", "rlhf_gym.train"):
            return Command(document, {"rlhf_gym": "rlhf-gym"}.get(rest[1], rest[1]), rest[2:])
        if rest[0] == "scripts/run.py":
            return Command(document, "rlhf-gym", rest[1:])
        if rest[0].startswith("scripts/"):
            return Command(document, rest[0], rest[1:])
    return None


def commands(path: Path) -> list[Command]:
    """Every command of ours in a document: those in bash blocks, and those in the text that are whole."""
    name = path.relative_to(ROOT).as_posix()
    lines = [line for block in blocks(path, "bash") for line in block.replace("\\\n", " ").splitlines()]
    for span in re.findall(r"`([^`]+)`", prose(path)):
        said = " ".join(span.split())
        if len(said.split()) > 2 and not re.search(r"…|\.\.\.|\[|\bX\.py", said):
            lines.append(said)
    for before, after in PLACEHOLDERS.items():
        lines = [re.sub(rf"(?<![\w/=-]){before}(?![\w/:-])", after, line) for line in lines]
    found = []
    for line in lines:
        try:
            each = list(simple(line))
        except ValueError:  # a lone quote in what is no command
            assert not re.match(r"\s*(rlhf-gym|python3?) ", line), f"{name}: {line}"
            continue
        found += [c for words in each if (c := ours(name, words)) is not None]
    return found


ALL = [c for path in DOCUMENTS for c in commands(path)]


# ---------------------------------------------------------------------------------------------- commands parse


class Parsed(Exception):
    """Raised where a script has understood its arguments, before it does anything."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Calls a script's main, which has to come as far as to have parsed its arguments, and no further."""
    real_argparse, real_tyro, inside = argparse.ArgumentParser.parse_args, tyro.cli, []
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # scripts set some for the process that is theirs

    def by_argparse(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        found = real_argparse(self, *args, **kwargs)
        if inside:
            return found
        raise Parsed

    def by_tyro(*args: Any, **kwargs: Any) -> None:
        inside.append(True)
        try:
            real_tyro(*args, **kwargs)
        finally:
            inside.pop()
        raise Parsed

    def call(main: Callable[[], object]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", by_argparse)
            patch.setattr(tyro, "cli", by_tyro)
            with pytest.raises(Parsed):
                main()

    return call


def parse_ours(args: list[str]) -> Any:
    """A command of rlhf-gym, parsed and, where settings are given, validated."""
    if not args or args in (["--version"], ["--help"]):
        return None
    if "--help" in args:
        with pytest.raises(SystemExit) as end:
            arguments.parse(args, arguments.Command, "rlhf-gym", "")
        assert end.value.code == 0
        return None
    parsed = arguments.parse(args, arguments.Command, "rlhf-gym", "")
    if hasattr(parsed, "settings"):
        given = arguments.explicit(parsed.settings, args)
        validate_each(Config(**{"env_id": getattr(parsed, "env_id", "CartPole-v1"), **given}))
    return parsed


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_command_of_rlhf_gym_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for each in (c for c in commands(path) if c.program == "rlhf-gym"):
        try:
            parse_ours(each.args)
        except SystemExit:
            pytest.fail(f"{each}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("name", sorted({c.program for c in ALL} - {"rlhf-gym"}))
def test_every_command_of_a_script_parses(
    name: str, only_parse: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Callable[[], object] = retrain.main
    path = ROOT / name
    if name != "rlhf_gym.train":
        assert path.is_file(), f"there is no {name}"

        def main() -> object:
            return runpy.run_path(str(path), run_name="__main__")

    for each in (c for c in ALL if c.program == name):
        monkeypatch.setattr(sys, "argv", [name, *each.args])
        try:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "path", [str(path.parent), *sys.path])
                only_parse(main)
        except SystemExit:
            pytest.fail(f"{each}\n{capsys.readouterr().err}")


def test_commands_are_found_and_wrong_ones_are_refused(only_parse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = {c.program for c in ALL}
    assert {"rlhf-gym", "rlhf_gym.train", "scripts/bench/learning.py", "scripts/bench/speed.py"} <= programs
    assert len(ALL) > 50
    for wrong in (["run", "CartPole-v1", "--no-such-option"], ["nonsense", "x"], ["watch"]):
        with pytest.raises(SystemExit):
            parse_ours(wrong)
    for script in ("learning.py", "speed.py"):  # one with tyro, one with argparse
        monkeypatch.setattr(sys, "argv", [script, "--no-such-option"])
        with pytest.raises(SystemExit):
            only_parse(lambda script=script: runpy.run_path(str(ROOT / "scripts/bench" / script), run_name="__main__"))


# ---------------------------------------------------------------------------------------------- the tutorial runs

COSTLY = ("--rounds", "--pairs-per-round", "--agent-steps-per-round", "--labeler")
UNENDING = ("serve",)


class Reader:
    """Somebody who does what the tutorial says, one command after the other, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for block in blocks(TUTORIAL, "python"):
            name = re.match(r"# (\w+\.py)\n", block)
            assert name is not None, f"no file is named in the first line of:\n{block}"
            (directory / name[1]).write_text(block)

    def commands(self) -> list[list[str]]:
        lines = [line for block in blocks(TUTORIAL, "bash") for line in block.replace("\\\n", " ").splitlines()]
        found = [ours("", words) for line in lines for words in simple(line)]
        return [c.args for c in found if c is not None and c.program == "rlhf-gym" and c.args[0] not in UNENDING]

    def scaled_down(self, args: list[str]) -> list[str]:
        """The same command with nobody there, and little to do."""
        if args[0] == "run":
            tiny = dict(zip(TINY[::2], TINY[1::2], strict=True)) | {
                "--rounds": "1",
                "--pairs-per-round": "4",
                "--reward-steps": "20",
            }
            more = [x for k, v in tiny.items() if k in COSTLY or k not in args for x in (k, v)]
            return [*args, *more, "--no-render"]
        if args[0] == "resume":
            return [*args, "--labeler", "synthetic", "--rounds", "2"]
        return [*args, *{"watch": ["--no-open"], "evaluate": ["--episodes", "2"]}.get(args[0], [])]

    def different(self) -> list[list[str]]:
        """The commands without those `run` that differ from an earlier one in words alone, and lead to nothing."""
        every, seen, found = self.commands(), set(), []
        for i, args in enumerate(every):
            shape = (*args[:2], *sorted(a for a in args if a.startswith("--")))
            named = args[args.index("--session") + 1] if "--session" in args else ""
            needed = args[0] != "run" or any(named in later for later in every[i + 1 :])
            if shape not in seen or needed:
                found.append(args)
            seen.add(shape)
        return found

    def unattended(self, args: list[str]) -> list[str]:
        """The same command with nobody there; one round where the tutorial leaves it to the person when to stop."""
        if args[0] in ("run", "resume"):
            args = [*args, "--labeler", "synthetic", *([] if "--rounds" in args else ["--rounds", "1"])]
        return [*args, "--no-open"] if args[0] == "watch" else args


def test_the_tutorial_runs_scaled_down(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    seen = set()
    for args in reader.different():
        result = command(*reader.scaled_down(args), cwd=tmp_path)
        assert result.status == 0, f"rlhf-gym {shlex.join(args)}\n{result.err}"
        seen.add(args[0])
    assert seen >= {"run", "resume", "watch", "evaluate", "list"}
    assert list(tmp_path.rglob("*.mp4"))  # of watch


@pytest.mark.full
def test_the_tutorial_runs_in_full_and_says_what_comes_out(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    out = {}
    for args in map(reader.unattended, reader.commands()):
        shown = ["--json"] if args[0] == "evaluate" else []
        run = [sys.executable, "-m", "rlhf_gym", *args, *shown]
        done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=7200)
        assert done.returncode == 0, done.stderr
        if shown:
            out[args[1]] = json.loads(done.stdout)
    assert out["cartpole-1"]["mean"] >= 475
    assert out["fall-1"]["mean_length"] <= 11
    assert out["pond-1"]["mean_length"] > 160  # of 200: it has learned to stay on the water


def test_python_in_the_documents_compiles() -> None:
    for path in DOCUMENTS:
        for block in blocks(path, "python"):
            compile(block, str(path), "exec")


def test_the_tutorials_score_functions_say_what_their_words_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Reader(tmp_path)
    mine, pond = (runpy.run_path(str(tmp_path / name)) for name in ("my_scores.py", "pond_scores.py"))

    def clip(places: Any, absorbing: Any) -> Any:
        return SimpleNamespace(observations=np.asarray(places, float), absorbing=np.asarray(absorbing, bool))

    at = [clip([[x, 0, 0, 0]] * 4, [False] * 4) for x in (-1.0, 0.0, 1.0)]
    scores = [mine["left"](c) for c in at]
    assert scores[0] > scores[1] > scores[2]
    fallen = [clip([[0, 0, 0, 0]] * 4, [False] * n + [True] * (4 - n)) for n in (1, 3)]
    assert mine["fall"](fallen[0]) > mine["fall"](fallen[1])
    angles = np.linspace(0, np.pi, 20)
    circle = np.stack([np.cos(angles), -np.sin(angles), 0 * angles, 0 * angles], 1)
    assert pond["circles"](clip(circle, [False] * 20)) == pytest.approx(0.5)
    assert pond["circles"](clip(circle[::-1], [False] * 20)) == pytest.approx(-0.5)


# ---------------------------------------------------------------------------------------------- links and pictures


def anchors(path: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{path.name}: {target}"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{path.name}: {target}"


def test_references_into_the_code_point_at_what_they_name(tmp_path: Path) -> None:
    references = runpy.run_path(str(ROOT / "scripts" / "references.py"))
    wrong: list[str] = []
    for path in DOCUMENTS:
        assert references["mended"](path.read_text(), path.parent, wrong) == path.read_text() or wrong
    assert not wrong, "\n".join([*wrong, "python scripts/references.py mends the line numbers."])
    links = references["LINK"].findall((ROOT / "docs" / "how-it-works.md").read_text())
    assert len(links) >= 40
    for name, target, first, _ in links:
        line = (ROOT / "docs" / target).read_text().splitlines()[int(first) - 1].strip()
        assert re.match(rf"(def|class) {name.split('.')[-1]}\b|{name}\b.* =", line), f"{name}: {line}"


def test_references_are_mended_or_refused(tmp_path: Path) -> None:
    references = runpy.run_path(str(ROOT / "scripts" / "references.py"))
    (tmp_path / "code.py").write_text("A = 1\n\n\nclass B:\n    def c(self) -> int:\n        return A\n")
    wrong: list[str] = []
    text = "[`B.c`](code.py#L1-L1) [A](code.py#L7-L9) [`d`](code.py#L1-L2) [x](none.py#L1-L1)"
    mended = references["mended"](text, tmp_path, wrong)
    assert mended == "[`B.c`](code.py#L5-L6) [A](code.py#L1-L1) [`d`](code.py#L1-L2) [x](none.py#L1-L1)"
    assert [w.rpartition(": ")[2] for w in wrong] == [
        "B.c stands in lines 5 to 6.", "A stands in lines 1 to 1.", "code.py has no d.", "there is no such file.",
    ]  # fmt: skip


def test_the_tutorials_pictures_are_few_small_and_used() -> None:
    pictures = sorted((ROOT / "docs" / "images").glob("tutorial-*"))
    assert 1 <= len(pictures) <= 8
    for picture in pictures:
        assert picture.stat().st_size < 150_000, picture.name
        assert f"images/{picture.name}" in TUTORIAL.read_text(), f"{picture.name} is not used"


def test_inline_maths_is_whole_and_holds_nothing_that_markdown_takes_away() -> None:
    for path in DOCUMENTS:
        for paragraph in re.split(r"\n\s*\n", re.sub(r"`[^`]*`", "", prose(path))):
            assert paragraph.count("$") % 2 == 0, paragraph
            for formula in re.findall(r"\$([^$]+)\$", paragraph):
                assert not re.search(r"\\[,;!{}_]", formula), f"{path.name}: ${formula}$"
                assert formula == formula.strip(), f"{path.name}: ${formula}$"


# ---------------------------------------------------------------------------------------------- numbers worked by hand


@pytest.mark.parametrize("shift", [0.0, -0.2])
def test_what_an_end_is_worth_is_what_how_it_works_says(shift: float) -> None:
    config = resolve({"env_id": "CartPole-v1", "gamma": 0.99}, "classic")
    upright, r_abs = 0.1 + shift, -0.1 + shift
    stay = upright / (1 - config.gamma)
    zero = torch.zeros(1, 2)
    over = torch.tensor([[False, True]])  # two environments: one stays up, in one it falls at this step
    roll = Rollout(
        obs=zero, actions=zero, log_probs=zero, values=zero, next_values=torch.full((1, 2), stay),
        rewards=torch.full((1, 2), upright), absorbing=over * r_abs, ends=torch.tensor([[0, 1]]), finals=zero,
        terminated=over, truncated=torch.zeros(1, 2, dtype=torch.bool), last=zero[0],
    )  # fmt: skip
    stays, falls = gae(roll, config)[1][0].tolist()
    assert stays == pytest.approx(stay, rel=1e-4)
    assert stays - falls == pytest.approx(19.8, abs=0.01)
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    assert f"- 0.99 \\cdot {-r_abs / 0.01:.0f} = {falls:.1f}$" in text
    assert f"= {stay:.0f}$" in text
    plain = stay - upright  # where an end is worth nothing
    assert (f"| {plain:.1f} |" if plain > 0 else f"| **−{-plain:.1f}** |") in text


def test_the_clip_that_falls_and_the_one_that_does_not() -> None:
    def segment(live: int) -> Segment:
        zeros = np.zeros(10, np.float32)
        return Segment(zeros[:, None], zeros.astype(np.int64), zeros, np.arange(10) >= live, {})

    pair = Pair(**{**pair_fields(), "left_clip": 1, "right_clip": 2})
    labels = Labels([pair], {1: segment(10), 2: segment(4)}, lambda x: x, seed=1, members=1)
    raw = torch.where(labels.ended, -0.3, 0.2)[None]
    model: Any = SimpleNamespace(members=1)
    up, fallen = clip_rewards(model, labels, torch.tensor([0, 1]), torch.device("cpu"), raw)[0].tolist()
    assert up == pytest.approx(5)
    assert fallen == pytest.approx(-2.5)
    assert 1 / (1 + np.exp(fallen - up)) == pytest.approx(0.9994, abs=1e-4)
    assert 1 / (1 + np.exp(-25 * 0.04)) == pytest.approx(0.73, abs=0.005)


def test_a_slip_costs_so_much_at_most() -> None:
    worst = label_loss(torch.tensor([[-50.0]]), torch.tensor([1.0]), 0.05)
    assert float(worst) == pytest.approx(-np.log(0.05), rel=1e-4)


def test_the_mistake_rate_worked_by_hand() -> None:
    first = [Pair(**{**pair_fields(), "id": i, "choice": "left"}) for i in range(30)]
    again = [
        Pair(
            **{**pair_fields(), "id": 100 + i, "repeat_of": i, "kind": "repeat", "choice": "left" if i < 3 else "right"}
        )
        for i in range(30)
    ]
    assert honesty.mistake_rate([*first, *again], 0.05) == pytest.approx(0.052, abs=5e-4)


def pair_fields() -> dict[str, Any]:
    """Of a pair labeled left."""
    known = {"id": 1, "choice": "left", "strength": "normal", "kind": "uniform"}
    return {
        f.name: known.get(f.name)
        for f in dataclasses.fields(Pair)
        if f.name in known or f.default is dataclasses.MISSING
    }
