"""Sessions of older formats: brought up to date when they are opened, with a copy of what they were kept.

| format | what it changed |
|---|---|
| 1 | the first |
| 2 | every table and index of tables.py is there, and every checkpoint ends with a checksum |

Each step may run twice; config.json, which names the format, is written last. Nothing here imports torch.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from rlhf_gym.config import FORMAT_VERSION
from rlhf_gym.files import remove, seal, sealed, write_atomic
from rlhf_gym.tables import tables


class Session(Protocol):
    """What is needed of a store.Session."""

    path: Path

    def any_header(self) -> dict[str, Any]: ...

    def lock(self) -> AbstractContextManager[None]: ...

    def write(self) -> AbstractContextManager[sa.Connection]: ...


def needed(session: Session) -> bool:
    """Whether a session is of an older format that we know."""
    found = session.any_header().get("format")
    return isinstance(found, int) and found in STEPS


def migrate(session: Session) -> Path:
    """Brings a session up to date. Returns the directory in it that holds what it was (settings and database).

    Raises:
        Busy: an older rlhf-gym runs it.
    """
    with session.lock():
        header = session.any_header()
        found = header["format"]
        if found not in STEPS:  # another process was faster
            return session.path / f"format-{FORMAT_VERSION - 1}"
        copy = session.path / f"format-{found}"
        if not (copy / "config.json").exists():
            remove(copy)  # half a copy, or what a stranger laid there for SQLite to find
            copy.mkdir()
            with (
                closing(sqlite3.connect(session.path / "session.db")) as old,
                closing(sqlite3.connect(copy / "session.db")) as new,
            ):
                old.backup(new)
            write_atomic(copy / "config.json", (session.path / "config.json").read_bytes())
        for number in range(found, FORMAT_VERSION):
            STEPS[number](session)
        header["format"] = FORMAT_VERSION
        write_atomic(session.path / "config.json", json.dumps(header, indent=2, allow_nan=False).encode())
    return copy


def to_2(session: Session) -> None:
    with session.write() as db:
        tables.create_all(db)
        for table in tables.tables.values():
            for index in table.indexes:
                index.create(db, checkfirst=True)
    for checkpoint in sorted((session.path / "checkpoints").glob("*.pt")):
        if not sealed(data := checkpoint.read_bytes()):
            write_atomic(checkpoint, seal(data))


STEPS = {1: to_2}  # from this format to the next
