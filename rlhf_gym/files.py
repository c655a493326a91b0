"""Files that are whole or not there, and that tell when they have changed. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

MARK = b"rlhf-gym sha256 "  # then 32 bytes, at the end of a file: torch itself takes most flipped bits for weights


def write_atomic(path: Path, data: bytes, durable: bool = True) -> None:
    """Writes a file aside, flushes it to disk and renames it into place: readers see the old or the new, whole."""
    aside = path.with_name(f".{path.name}-{secrets.token_hex(8)}")  # not mkstemp, whose files nobody else may read
    try:
        with aside.open("xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        replace(aside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        raise
    if durable and os.name == "posix":  # the rename itself must reach the disk too
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def replace(aside: str | Path, path: Path) -> None:
    """os.replace. On Windows a file that someone reads cannot be replaced: it waits a moment and tries again."""
    for _ in range(50 if os.name == "nt" else 0):
        try:
            return os.replace(aside, path)
        except PermissionError:
            time.sleep(0.02)
    return os.replace(aside, path)


@contextlib.contextmanager
def directory_aside(path: Path, prefix: str = "") -> Iterator[Path]:
    """A directory to fill, which becomes `path` once it is whole: who is killed before leaves nothing there.

    Args:
        path: where there is nothing yet, or an empty directory.
        prefix: of the directory's name until then, after a dot.
    """
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{prefix}{path.name}-"))
    try:
        yield aside
        aside.chmod(0o755 & ~umask())  # mkdtemp lets nobody else read it
        for file in aside.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        with contextlib.suppress(FileNotFoundError):
            path.rmdir()  # an empty one; Windows replaces none
        aside.rename(path)
    except BaseException:
        remove(aside)
        raise


def umask() -> int:
    """What the user lets others not do; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def remove(path: Path) -> None:
    """Deletes a file, or a directory with all that is in it; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def seal(data: bytes) -> bytes:
    """The data with its checksum at the end."""
    return data + MARK + hashlib.sha256(data).digest()


def sealed(data: bytes) -> bool:
    """Whether it ends with a checksum, right or wrong."""
    return data[-32 - len(MARK) : -32] == MARK


def unseal(data: bytes) -> bytes | None:
    """What was sealed; None where a bit of it has changed, or where the end is missing."""
    whole = data[: -32 - len(MARK)]
    return whole if sealed(data) and hashlib.sha256(whole).digest() == data[-32:] else None


def bytes_below(path: str | Path) -> int:
    """Of a file, or of all files in a directory, some of which may go meanwhile; links are not followed."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        if os.path.islink(path) or not os.path.isdir(path):
            return os.lstat(path).st_size
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += bytes_below(entry.path)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        total += entry.stat(follow_symlinks=False).st_size
    return total
