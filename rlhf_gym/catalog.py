"""The sessions of a data directory: listed, made, opened, thrown away. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from rlhf_gym import config as cfg
from rlhf_gym import faults, migrate
from rlhf_gym.config import Config, UserError
from rlhf_gym.files import directory_aside, remove, replace
from rlhf_gym.store import Session
from rlhf_gym.tables import tables
from rlhf_gym.within import check_files

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ASIDE = re.compile(r"\.making-[a-z0-9][a-z0-9._-]{0,63}-[a-z0-9_]{8}")  # what `session_aside` calls one in the making
TRASH = ".trash"  # in the data directory; no session has such a name

# What reading a session may raise that is damaged, or made by somebody else to look like one.
UNREADABLE = (
    UserError, sa.exc.DatabaseError, OSError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UserError(
            f"Session name {name!r} is not allowed: use up to 64 small letters, digits, dots, dashes and "
            "underscores, beginning with a letter or digit."
        )
    return name


def new_name(data_dir: Path, env_id: str) -> str:
    """cartpole-1, cartpole-2, …: the first number that is free."""
    base = re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1].rsplit(":", 1)[-1]).lower()
    base = re.sub(r"[^a-z0-9]+", "-", base).strip("-")[:40] or "session"
    taken = {p.name for p in data_dir.iterdir()} if data_dir.is_dir() else set()
    return next(name for n in range(1, len(taken) + 2) if (name := f"{base}-{n}") not in taken)


def create_session(data_dir: Path, name: str, config: Config, **header: Any) -> Session:
    """Makes the directory, the tables and, last, config.json: a directory without it is no session."""
    path = data_dir / check_name(name)
    try:
        path.mkdir(parents=True)  # of two that start at once, one gets the name
        session = furnish(path)
    except FileExistsError:
        raise UserError(f"{path} exists already and is no session: choose another name with --session.") from None
    except OSError as error:
        raise UserError(f"Cannot write to {data_dir} ({error.strerror}): choose another with --data-dir.") from None
    session.write_config(config, created=time.time(), **header)
    return session


@contextlib.contextmanager
def session_aside(data_dir: Path, name: str) -> Iterator[Session]:
    """A session to fill, with its tables and without a config.json, that takes its name once it is whole: who is
    killed before leaves no session. What an earlier one left that was killed goes.

    It is closed then: open the one that is in its place.

    Raises:
        UserError: the name is none, or taken.
    """
    path = data_dir / check_name(name)
    taken = f"{path} exists already: choose another name."
    if os.path.lexists(path):
        raise UserError(taken)
    with contextlib.ExitStack() as held:
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
            clear_killed(data_dir)
            with directory_aside(path, "making-") as aside:
                held.enter_context(Session(aside).lock())  # it tells others that somebody is at it
                with contextlib.closing(furnish(aside)) as session:
                    yield session
                if os.name == "nt":  # moves nothing that is open
                    held.close()
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                raise UserError(taken) from None
            raise


def clear_killed(data_dir: Path) -> None:
    """Deletes sessions in the making whose maker was killed."""
    for path in data_dir.glob(".*"):
        if ASIDE.fullmatch(path.name) and (path / "loop.lock").is_file() and not Session(path).running():
            remove(path)


def furnish(path: Path) -> Session:
    """Makes the directories and tables of a session."""
    for sub in ("clips", "checkpoints", "videos", "tb"):
        (path / sub).mkdir()
    session = Session(path)
    with session.write() as db:
        tables.create_all(db)
    return session


def session_names(data_dir: Path) -> list[str]:
    """Names of the sessions in a data directory, newest first."""
    if not data_dir.is_dir():
        return []
    found = [p for p in data_dir.iterdir() if NAME.fullmatch(p.name) and (p / "config.json").is_file()]
    return [p.name for p in sorted(found, key=created, reverse=True)]


def created(path: Path) -> float:
    """When a session was made, in seconds since 1970; where it does not say so, when its settings last changed."""
    file = path / "config.json"
    try:
        return float(json.loads(file.read_text())["created"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return file.stat().st_mtime


def open_session(data_dir: Path, name: str) -> Session:
    """Opens an existing session; raises UserError that names those there are."""
    check_name(name)
    if not (data_dir / name / "config.json").is_file():
        names = session_names(data_dir)
        have = f"Sessions: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}." if names else "It has none yet."
        raise UserError(f'No session "{name}" in {data_dir}/. {have} Start one: {cfg.program()} run CartPole-v1.')
    check_files(data_dir / name)  # it may be a stranger's
    session = Session(data_dir / name)
    older = migrate.needed(session)
    if not older:
        session.header()  # a foreign format is refused here, before the database is touched
    session.refuse_foreign_schema()
    if older:
        try:
            session.migrated = migrate.migrate(session)
        except OSError as error:
            told = faults.sentence(error, session.path)
            raise UserError(told or f"Session {name!r} cannot be brought up to date ({error.strerror}).") from error
    return session


def trash_session(data_dir: Path, session: Session) -> Path:
    """Closes a session and moves its directory to the trash of the data directory; returns where it lies now.

    Nothing is erased: the session is back once its directory is.

    Raises:
        UserError: a loop runs the session, or its directory cannot be moved.
    """
    name, trash = session.name, data_dir / TRASH
    if session.running():
        raise UserError(f"Session {name!r} is running: stop it, then delete it.")
    with contextlib.ExitStack() as held:
        if not (session.path / "loop.lock").is_symlink():  # see running
            held.enter_context(session.lock())  # no loop starts meanwhile
        session.close()
        if os.name == "nt":  # moves nothing that is open, so neither our lock nor what a loop has that starts now
            held.close()
        try:
            trash.mkdir(exist_ok=True)
            numbered = (f"{name[:58]}-{n}" for n in itertools.count(2))
            target = next(trash / n for n in itertools.chain([name], numbered) if not (trash / n).exists())
            replace(session.path, target)
        except OSError as error:
            raise UserError(f"Session {name!r} could not be moved to {trash} ({error.strerror}): try again.") from None
    return target
