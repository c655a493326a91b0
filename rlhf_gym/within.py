"""Nothing outside a session's directory is touched because of what lies in it: no links, no paths that lead out.

A session may come from anybody. Its own directory may be a link (the user's, to a larger disk); inside there are
plain files and directories alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rlhf_gym.config import UserError

MAX_HEADER_BYTES = 2**20  # of config.json: a thousand times what it takes
# SQLite deletes the file that a rollback journal names as its own. Ours has none: it writes ahead (WAL).
FORBIDDEN = ("session.db-journal",)


def check_files(path: Path) -> None:
    """Looks at a session's directory and the ones in it; what lies deeper is looked at when it is read (`resolve`).

    Raises:
        UserError: a link, something that is no file, or a file that makes SQLite touch others.
    """
    try:
        for directory in _entries(path, within=path):
            _entries(directory, within=path)
        size = (path / "config.json").stat().st_size
    except OSError as error:
        raise UserError(f"Session {path.name!r} cannot be read ({error.strerror}): look at {path}.") from None
    for name in FORBIDDEN:
        if (path / name).exists():
            raise UserError(
                f"Session {path.name!r} holds {name}, which rlhf-gym never leaves: delete that file if you trust it."
            )
    if size > MAX_HEADER_BYTES:
        raise UserError(
            f"Session {path.name!r} has a config.json of {size} bytes, more than the {MAX_HEADER_BYTES} that are read: "
            "put its own back."
        )


def _entries(directory: Path, within: Path) -> list[Path]:
    """The directories in a directory; all else in it must be a plain file."""
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:  # a loop writes aside and renames
                continue
            junction = getattr(entry, "is_junction", None)  # Windows' links between directories; Python 3.12
            if stat.S_ISDIR(mode) and not (junction and junction()):
                found.append(Path(entry.path))
            elif not stat.S_ISREG(mode):
                what = "a link" if stat.S_ISLNK(mode) or stat.S_ISDIR(mode) else "no plain file"
                shown = ascii(os.path.relpath(entry.path, within))
                raise UserError(
                    f"Session {within.name!r} holds {what}, {shown}, which could lead out of it: "
                    "replace it by what it stands for, or delete it."
                )
    return found


def resolve(top: str, relative: str) -> Path | None:
    """Where a plain file of a session lies that one of its rows names; None if there is none, or not in there.

    Args:
        top: the session's directory, as os.path.realpath gives it (a batch has many clips, and pathlib takes longer).
    """
    try:
        path = os.path.realpath(os.path.join(top, relative))
        inside = path.startswith(top + os.sep) and os.path.isfile(path)
    except (OSError, ValueError):  # a name of NUL characters, or of too many
        return None
    return Path(path) if inside else None
