"""Mends the line numbers of links from docs/*.md into the code, such as [gae](../rlhf_gym/train.py#L423-L438).

The words of a link name a function, a class, a method (Agent.act) or a constant of the file that it points into. Run it
after the code has moved; `--check` says what is wrong and changes nothing, as a test does.

    python scripts/references.py
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[`?([\w.]+)`?\]\(([\w./-]+\.py)#L(\d+)-L(\d+)\)")


@cache
def named(path: Path) -> dict[str, tuple[int, int]]:
    """First and last line of everything that a link can name in a file."""
    found: dict[str, tuple[int, int]] = {}

    def look(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            lines = node.lineno, node.end_lineno or node.lineno
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[prefix + node.name] = lines
                if isinstance(node, ast.ClassDef):
                    look(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update({prefix + t.id: lines for t in targets if isinstance(t, ast.Name)})

    look(ast.parse(path.read_text()).body, "")
    return found


def mended(text: str, directory: Path, wrong: list[str]) -> str:
    """The text with right line numbers; adds a sentence to `wrong` for each link that was not right.

    Args:
        directory: that of the document, from which its links go out.
    """

    def right(match: re.Match[str]) -> str:
        name, target, first, last = match.groups()
        path = directory / target
        if not path.is_file():
            wrong.append(f"{match[0]}: there is no such file.")
            return match[0]
        if name not in (names := named(path)):
            wrong.append(f"{match[0]}: {target} has no {name}.")
            return match[0]
        if names[name] != (int(first), int(last)):
            wrong.append(f"{match[0]}: {name} stands in lines {names[name][0]} to {names[name][1]}.")
        return f"[{match[0][1 : match[0].index(']')]}]({target}#L{names[name][0]}-L{names[name][1]})"

    return LINK.sub(right, text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    args = parser.parse_args(argv)
    left = 0
    for document in sorted(ROOT.glob("docs/*.md")):
        wrong: list[str] = []
        text = mended(document.read_text(), document.parent, wrong)
        for sentence in wrong:
            print(f"{document.relative_to(ROOT)}: {sentence}")
        if wrong and not args.check:
            document.write_text(text)
            mended(text, document.parent, wrong := [])
        left += len(wrong)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
