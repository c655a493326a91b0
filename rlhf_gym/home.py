"""What is kept for this user, outside every session: the pages' token, and the key that signs one's own sessions."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from pathlib import Path

from rlhf_gym.config import UserError

SHORTEST = 16  # characters of a secret


def config_dir() -> Path:
    """Where this user's settings of rlhf-gym lie."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "rlhf-gym"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "rlhf-gym"
    return Path.home() / ".config" / "rlhf-gym"


def load_secret(name: str, what: str, directory: Path | None = None) -> str:
    """This user's secret of that name, made once: outside sessions, so that copying one gives nothing away; mode 0600.

    Args:
        name: of the file.
        what: to call it where it cannot be kept.
    """
    path = (directory or config_dir()) / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_name(f".{name}-{os.getpid()}-{secrets.token_hex(4)}")
        if not _read(path):
            handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_urlsafe(24))
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(aside, path)  # of two that start at once, the first one's secret counts
            except FileExistsError:
                if not _read(path):  # unusable
                    os.replace(aside, path)
            except OSError:  # a file system without links
                os.replace(aside, path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    aside.unlink()
        if os.name == "posix":
            path.chmod(0o600)
        secret = _read(path)
    except OSError as error:
        raise UserError(f"Cannot keep {what} in {path} ({error.strerror}): make it writable.") from None
    if not secret:
        raise UserError(f"{what[0].upper()}{what[1:]} in {path} is unusable: delete that file and start again.")
    return secret


def _read(path: Path) -> str:
    try:
        secret = path.read_text().strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    usable = len(secret) >= SHORTEST and secret.isascii() and secret.replace("-", "").replace("_", "").isalnum()
    return secret if usable else ""
