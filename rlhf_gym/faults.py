"""What a machine does to a program: a full disk, a directory that cannot be written, a locked or damaged database.

Each gets one sentence, wherever in the program it happens: what, where, and what to do.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from rlhf_gym.config import program

LEAST_FREE = 500_000  # bytes: a database, or a video, may want as much at once
KEPT = "What was saved is kept"
DAMAGED = ("malformed", "not a database", "no such table", "no such column", "corrupt", "unsupported file format")
OF_SQLITE = {  # what SQLite says -> the same as an errno
    "disk is full": errno.ENOSPC,
    "readonly database": errno.EROFS,
    "unable to open database": errno.EACCES,
    "disk I/O error": errno.EIO,
}


def sentence(error: BaseException, where: Path | str) -> str | None:
    """The sentence for an error that the machine is to blame for; None for any other, which is ours.

    Args:
        where: the directory of the session, or that of all sessions.
    """
    from sqlalchemy.exc import DatabaseError

    if isinstance(error, DatabaseError):
        said = str(error.orig)
        if "locked" in said:
            return (
                f"The database of {where} has been locked by another program for half a minute: close that program, "
                f"then go on. {KEPT}."
            )
        number = next((n for words, n in OF_SQLITE.items() if words in said), None)
        if number == errno.EIO and is_full(where):  # SQLite says so where there is no room for its index
            number = errno.ENOSPC
        if number is not None:
            return of_errno(number, where)
        if any(words in said for words in DAMAGED):
            return (
                f"The database of {where} cannot be read ({said}): restore session.db from a copy, or try "
                "`sqlite3 session.db .recover`. Nothing was changed."
            )
        return None
    if isinstance(error, OSError) and error.errno is not None:
        return of_errno(error.errno, error.filename or where)
    return None


def is_full(where: Path | str) -> bool:
    """Whether there is no room left to speak of where a file or directory lies."""
    try:
        return shutil.disk_usage(where).free < LEAST_FREE
    except OSError:
        return False


def of_errno(number: int, where: Path | str) -> str | None:
    """None where it is no fault of a disk."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk that holds {where} is full: make room (`{program()} clean` deletes what a session does not "
            f"need), then go on. {KEPT}."
        )
    if number in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{where} cannot be written ({'read-only' if number == errno.EROFS else 'no permission'}): make it "
            f"writable, or copy the session to where you may write. {KEPT}."
        )
    if number == errno.EIO:
        return f"The disk that holds {where} fails (input/output error): copy the session to another disk. {KEPT}."
    return None
