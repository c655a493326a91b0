"""`rlhf-gym export SESSION OUT --format …`: labels, clips and models in formats that others read.

    jsonl         labels, clips and videos as plain files         bundle.py

docs/formats.md says what is in each. Nothing that a session brings is run: neither its environment nor its score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rlhf_gym import bundle
from rlhf_gym.config import UserError
from rlhf_gym.files import directory_aside
from rlhf_gym.store import Session

Report = Callable[[int, int], None]


def export(session: Session, out: Path, format: str, report: Report) -> list[str]:
    """Writes a new directory `out`, whole or not at all. Returns what there is to say of it, a sentence each.

    Args:
        report: called with what is done and how much there is.

    Raises:
        UserError: there is something at `out`, it cannot be written, or the session has nothing of that kind.
    """
    refuse_place(session, out)
    try:
        with directory_aside(out) as aside:
            return WRITERS[format](session, aside, report)
    except OSError as error:
        raise UserError(
            f"Cannot write to {out} ({error.strerror}): nothing was exported, choose another place."
        ) from None


def refuse_place(session: Session, out: Path) -> None:
    """Raises UserError where something stands already, or where it would be taken for a session, or part of one."""
    data_dir = session.path.parent.resolve()
    if data_dir in (resolved := out.resolve()).parents or data_dir == resolved:
        raise UserError(f"{out} lies in {session.path.parent}, among the sessions: export to a place outside of it.")
    if out.is_dir():
        if any(out.iterdir()):
            raise UserError(
                f"{out} is not empty, and nothing is overwritten: name a directory that does not exist yet."
            )
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already and is no directory: name one that does not exist yet.")


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def told(material: bundle.Material) -> list[str]:
    """What a person should know of the labels and clips that were written."""
    notes = [f"{counted(len(material.labels), 'label')}, {counted(len(material.clips), 'clip')}."]
    return notes + [f"{said} Its pairs are left out." for said in material.damaged]


def write_jsonl(session: Session, out: Path, report: Report) -> list[str]:
    material, videos = bundle.write_bundle(session, out, report)
    missing = len(material.clips) - videos
    return told(material) + ([f"{counted(missing, 'clip')} of them have no picture, so no video."] if missing else [])


WRITERS: dict[str, Callable[[Session, Path, Report], list[str]]] = {"jsonl": write_jsonl}
