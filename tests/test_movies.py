"""Movies: whole, in their colours, at their rate, wherever they are written; sizes that H.264 takes."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from videos import read_video

from rlhf_gym import movies
from rlhf_gym.config import UserError


def pictures(count: int, height: int = 40, width: int = 60) -> np.ndarray:
    """(count, height, width, 3): red on the left, blue on the right, greener with time."""
    found = np.zeros((count, height, width, 3), np.uint8)
    found[:, :, : width // 2, 0], found[:, :, width // 2 :, 2] = 200, 200
    found[..., 1] = 5 * np.arange(count)[:, None, None]
    return found


@pytest.mark.parametrize("rate", [30, Fraction(25, 2)])
def test_what_goes_in_comes_out(tmp_path: Path, rate: Fraction | int) -> None:
    given, path = pictures(9), tmp_path / "a.mp4"
    movies.encode(path, iter(given), rate)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", rate)
    seen = read_video(path).astype(int)
    assert seen.shape == given.shape
    assert np.abs(seen - given)[:, :, [*range(26), *range(34, 60)]].max() <= 8


def test_a_movie_at_a_path_begins_with_its_index(tmp_path: Path) -> None:
    """A browser then plays it before it is loaded; into memory FFmpeg can write that at the end alone."""
    path, memory = tmp_path / "a.mp4", io.BytesIO()
    movies.encode(path, pictures(3), 30)
    movies.encode(memory, pictures(3), 30)
    assert 0 < path.read_bytes().find(b"moov") < path.read_bytes().find(b"mdat")
    assert len(memory.getvalue()) > 500
    (tmp_path / "b.mp4").write_bytes(memory.getvalue())
    assert np.array_equal(read_video(path), read_video(tmp_path / "b.mp4"))


def test_without_loss_where_that_is_asked_for(tmp_path: Path) -> None:
    given = np.random.default_rng(1).integers(0, 256, (3, 32, 48, 3), np.uint8)
    movies.encode(tmp_path / "a", given, 10, kind="matroska", codec="libx264rgb", pixels="rgb24", options={"qp": "0"})
    assert np.array_equal(read_video(tmp_path / "a"), given)


@pytest.mark.parametrize(("size", "larger"), [((4, 6), (4, 6)), ((5, 6), (6, 6)), ((4, 7), (4, 8)), ((5, 7), (6, 8))])
def test_an_odd_side_gets_its_last_line_twice(size: tuple[int, int], larger: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = movies.even(frame)
    assert found.shape == (*larger, 3)
    assert np.array_equal(found[: size[0], : size[1]], frame)
    assert np.array_equal(found[-1, : size[1]], frame[-1])
    assert np.array_equal(found[: size[0], -1], frame[:, -1])


def test_small_frames_are_enlarged_by_whole_numbers() -> None:
    frame = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert movies.enlarge(frame, 6).shape == (4, 6, 3)
    assert np.array_equal(movies.enlarge(frame, 6)[::2, ::2], frame)
    assert np.array_equal(movies.enlarge(frame, 6)[1::2, 1::2], frame)
    assert [movies.times_larger(width) for width in (33, 96, 160, 210, 320, 600)] == [10, 3, 2, 2, 1, 1]


def test_what_cannot_be_written_is_told_and_what_is_not_about_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(UserError) as told, movies.writing("film", path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(told.value) == f"Cannot write the film {path} (No space left on device)."
    with pytest.raises(UserError, match=r"Cannot write the video .*a\.mp4"), movies.writing("video", path):
        movies.encode(path, pictures(2), 30, codec="libx264", pixels="yuv420p", options={"profile": "nonesuch"})
    with pytest.raises(UserError, match="Cannot write the video"), movies.writing("video", path):
        movies.encode(tmp_path / "none" / "a.mp4", pictures(2), 30)
    with pytest.raises(RuntimeError, match="ours"), movies.writing("video", path):
        raise RuntimeError("ours")


def test_nothing_here_loads_torch() -> None:
    code = "import sys, rlhf_gym.movies, rlhf_gym.bundle, rlhf_gym.sheets; print({'torch', 'av'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (0, "set()"), result.stderr
