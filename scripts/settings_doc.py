"""Writes docs/settings.md from the settings themselves: `python scripts/settings_doc.py [--check]`.

With --check nothing is written, and the exit status is 1 where the page is out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rlhf_gym.config import FIXED, PRESETS, RANGES, Config, Settings, exactly, flag, type_hints  # noqa: E402

PAGE = ROOT / "docs" / "settings.md"
PARTS = {  # headings, each with the first setting below it, in the order of the dataclass
    "The session": "env_id",
    "How much": "rounds",
    "Who labels": "labeler",
    "Clips and pairs": "pool_factor",
    "The reward model": "ensemble_size",
    "The agent": "learning_rate",
    "Images and Atari": "frameskip",
    "Saving and measuring": "checkpoint_iterations",
}
INTRODUCTION = """\
# Settings

<!-- Written by scripts/settings_doc.py from rlhf_gym/config.py: change it there. -->

Every setting of a session, as `rlhf-gym run` and `rlhf-gym resume` take it. What you give wins over what the kind of
environment brings, and that over the default. What is in force stands in the session's `config.json`.

A setting given to `resume` changes from then on. Those marked **fixed** a session keeps for life, as what is on disk
was made with them. In the middle of training the agent `--num-envs`, `--num-steps` and `--agent-steps-per-round` have
to wait for the end of the round, and so has `--fast` in the middle of any training.

The kinds of environment are:

{kinds}
"""
KINDS = {
    "classic": "classic control with discrete actions, and every other vector environment with them",
    "classic-continuous": "the same with continuous actions",
    "box2d": "Box2D",
    "mujoco": "MuJoCo",
    "mujoco-falls": "MuJoCo where an episode ends when the robot falls (Hopper-v5, Walker2d-v5, Ant-v5, Humanoid-v5)",
    "atari": "Atari",
    "pixels": "all else that is learned from images",
}


def docstrings() -> dict[str, str]:
    """By setting, the text below it in the source: the one that tyro shows with --help."""
    found = {}
    for owner in (Settings, Config):
        body = ast.parse(inspect.getsource(owner)).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                assert isinstance(after, ast.Expr), f"{node.target.id} has no docstring"
                assert isinstance(after.value, ast.Constant)
                found[node.target.id] = " ".join(str(after.value.value).split())
    return found


def shown(value: Any) -> str:
    """A value as it is written on the command line; yes or no for a switch."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return "none" if value == float("-inf") else exactly(value)
    return json.dumps(value) if isinstance(value, dict) else value or "empty"


def kind_of(name: str) -> str:
    """What may be given for a setting."""
    hint = type_hints()[name]
    if get_origin(hint) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(hint))
    if name in RANGES:
        low, high = RANGES[name]
        what = "whole number" if hint is int else "number"
        if low == float("-inf"):
            return f"{what}, {exactly(high)} at most"
        return f"{what}, {exactly(low)} to {exactly(high)}"
    return {bool: "yes or no", str: "text"}.get(hint, "JSON object")


def spelled(name: str) -> str:
    """As it is given: the environment has a place of its own, and a switch has two flags."""
    if name == "env_id":
        return "`ENV_ID`"
    return f"`{flag(name)}`, `{flag('no_' + name)}`" if type_hints()[name] is bool else f"`{flag(name)}`"


def row(field: dataclasses.Field[Any], text: str) -> str:
    name = field.name
    default = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
    presets = ", ".join(f"{k} {shown(p[name])}" for k, p in PRESETS.items() if p.get(name, default) != default)
    fixed = " **Fixed.**" if name in FIXED else ""
    cells = (spelled(name), "" if name == "env_id" else shown(default), presets, kind_of(name), f"{text}{fixed}")
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def page() -> str:
    """docs/settings.md as it should be."""
    texts, fields = docstrings(), {f.name: f for f in dataclasses.fields(Config)}
    names = ["env_id", *(name for name in fields if name != "env_id")]
    begins = {first: heading for heading, first in PARTS.items()}
    kinds = "\n".join(f"- **{kind}**: {what}" for kind, what in KINDS.items())
    lines = [INTRODUCTION.format(kinds=kinds)]
    for name in names:
        if name in begins:
            lines.append(f"\n## {begins[name]}\n\n| setting | default | by kind | may be | |\n|---|---|---|---|---|")
        lines.append(row(fields[name], texts[name]))
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(f"settings_doc.py: {' '.join(arguments)!r} is not --check: give that, or nothing.", file=sys.stderr)
        return 2
    wanted = page()
    if arguments:
        if PAGE.exists() and PAGE.read_text("utf-8") == wanted:
            return 0
        print("docs/settings.md is out of date: python scripts/settings_doc.py writes it anew.", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, "utf-8")
    print(f"Wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
