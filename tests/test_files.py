"""Files of a session: whole or not there, sealed, and as readable as the umask says."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from rlhf_gym import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r000.pt"
    files.write_atomic(path, b"old")

    def fails(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fails)
            with pytest.raises(OSError, match="No space"):
                files.write_atomic(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path], "half a file is left"
    files.write_atomic(path, b"new", durable=False)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_can_be_read_by_whom_the_user_lets_read(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write_atomic(tmp_path / "film.mp4", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "film.mp4").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_durable_file_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), real_fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), real_replace(a, b))[1])
    files.write_atomic(tmp_path / "x", b"1")
    assert calls[:2] == ["fsync", "replace"]
    assert calls[2:] == (["fsync"] if os.name == "posix" else [])  # the directory: the rename itself


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    texts = [bytes([65 + i]) * 50_000 for i in range(4)]
    files.write_atomic(path, texts[0], durable=False)
    stop = threading.Event()

    def write() -> None:
        i = 0
        while not stop.is_set():
            files.write_atomic(path, texts[i % 4], durable=False)
            i += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen = {path.read_bytes() for _ in range(300)}
    finally:
        stop.set()
        thread.join()
    assert len(seen) > 1
    assert seen <= set(texts)
