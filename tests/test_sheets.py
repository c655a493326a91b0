"""Frames on a sheet: every frame where the page looks for it, in its own colours."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import frames_of, pixels

from rlhf_gym import sheets
from rlhf_gym.config import Config
from rlhf_gym.envs import Twin
from rlhf_gym.sheets import MAX_SHEET_PIXELS, MAX_SIDE, Sheet, make_sheet, open_sheet
from rlhf_gym.store import Clip


@pytest.mark.parametrize(("size", "count"), [((20, 30), 1), ((20, 30), 2), ((30, 20), 7), ((400, 600), 13)])
def test_every_frame_stands_where_the_page_looks_for_it(size, count):
    frames = [np.full((*size, 3), (10 * i, 5, 250 - i), np.uint8) for i in range(count)]
    sheet = make_sheet(frames)
    assert (sheet.frame_height, sheet.frame_width, sheet.frames) == (*size, count)
    rows = -(-count // sheet.columns)
    assert pixels(sheet.png).shape == (rows * size[0], sheet.columns * size[1], 3)
    for found, frame in zip(frames_of(sheet), frames, strict=True):
        assert np.array_equal(found, frame)


@pytest.mark.parametrize(("size", "count"), [((900, 300), 2), ((300, 1200), 2), ((500, 500), 90), ((2, 3), 5)])
def test_a_sheet_is_no_larger_than_a_browser_holds(size, count):
    sheet = make_sheet([np.zeros((*size, 3), np.uint8)] * count)
    assert max(sheet.frame_width, sheet.frame_height) <= MAX_SIDE
    assert sheet.frame_width * sheet.frame_height * count <= MAX_SHEET_PIXELS * 1.01
    assert sheet.frame_height / sheet.frame_width == pytest.approx(size[0] / size[1], rel=0.02)
    width, height = Image.open(io.BytesIO(sheet.png)).size
    assert max(width, height) < 16_384  # what browsers' canvases take at least


def test_a_frame_of_another_size_is_brought_to_that_of_the_first():
    frames = [np.full((40, 50, 3), 9, np.uint8), np.full((44, 50, 3), 200, np.uint8)]
    found = frames_of(make_sheet(frames))
    assert [f.shape for f in found] == [(40, 50, 3)] * 2
    assert [int(f.mean()) for f in found] == [9, 200]


@pytest.mark.parametrize(("more", "off"), [([(250, 4, 3)], 0), ([(101, 100, 104)], 12), ([(9, 200, 9)], None)])
def test_shades_beyond_256_find_a_near_place_and_other_colours_do_not(more, off):
    shades = [(100 + i // 32, 100 + i % 32, 100) for i in range(255)] + [(250, 4, 3)]
    first = np.array(shades, np.uint8).reshape(16, 16, 3)
    then = np.array(([(100, 100, 100)] * 255 + more), np.uint8).reshape(16, 16, 3)
    palette = sheets.few_colors([first, then], [(0, 0), (0, 16)], (16, 32))
    if off is None:
        assert palette is None  # Pillow chooses 256 anew
    else:
        seen = np.asarray(palette.convert("RGB")).astype(int)
        assert np.array_equal(seen[:, :16], first)
        assert np.abs(seen[:, 16:] - then).max() <= off


def test_many_colours_become_256_near_ones_and_red_stays_red():
    rng = np.random.default_rng(0)
    frame = np.zeros((60, 80, 3), np.uint8)
    frame[:, :40, 0], frame[:, 40:, 2] = 200, 200
    noisy = np.clip(frame.astype(int) + rng.integers(-20, 21, frame.shape), 0, 255).astype(np.uint8)
    assert len(np.unique(noisy.reshape(-1, 3), axis=0)) > 256
    found = frames_of(make_sheet([noisy]))[0]
    assert np.abs(found.astype(int) - noisy).mean() < 16
    assert found[:, :40, 0].mean() > 150 > 50 > found[:, :40, 2].mean()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ALE/Pong-v5", "rlhf_gym/Dot-v0", "Pendulum-v1"])
def test_colours_are_exact_where_there_are_few(env_id):
    twin = Twin(Config(env_id=env_id))
    twin.reset(1)
    frames = [twin.frame()]
    for _ in range(3):
        twin.step(np.zeros(twin.info.action_shape, np.int64 if twin.info.num_actions else np.float32))
        frames.append(twin.frame())
    twin.close()
    for found, frame in zip(frames_of(make_sheet(frames)), frames, strict=True):
        assert np.array_equal(found, frame)


# ---------------------------------------------------------------------------------------------- read again


def row_of(sheet: Sheet) -> Clip:
    shape = (sheet.frame_width, sheet.frame_height, sheet.columns, sheet.frames)
    return Clip(1, 0, 0, "a.npz", "a.png", *shape, 30.0, sheet.frames, None, 0, 0, None)


@pytest.mark.parametrize("noise", [0, 60])
def test_a_stored_sheet_is_cut_where_it_was_pasted(tmp_path: Path, noise: int) -> None:
    rng = np.random.default_rng(0)
    frames = [(20 * i + rng.integers(0, noise + 1, (20, 31, 3))).astype(np.uint8) for i in range(7)]
    sheet = make_sheet(frames)
    (tmp_path / "a.png").write_bytes(sheet.png)
    found = open_sheet(tmp_path / "a.png", row_of(sheet))
    assert found is not None
    assert found.frames == 7
    for i, frame in enumerate(frames_of(sheet)):
        assert found.frame(i).mode == "RGB"
        assert np.array_equal(np.asarray(found.frame(i)), frame)


def test_a_sheet_that_is_gone_or_damaged_or_another_than_its_row_says_is_none(tmp_path: Path) -> None:
    sheet, path = make_sheet([np.full((20, 30, 3), i, np.uint8) for i in range(7)]), tmp_path / "a.png"
    row = row_of(sheet)
    path.write_bytes(sheet.png)
    assert open_sheet(path, row) is not None
    for values in (
        {"columns": 0}, {"columns": None}, {"columns": 1}, {"frames": None}, {"frames": -7}, {"frames": 10**9},
        {"frame_width": 31}, {"frame_width": -30}, {"frame_height": 10**6},
    ):  # fmt: skip
        assert open_sheet(path, replace(row, **values)) is None, values
    assert open_sheet(None, row) is None
    assert open_sheet(tmp_path / "gone.png", row) is None
    assert open_sheet(tmp_path, row) is None
    for content in (sheet.png[: len(sheet.png) // 2], b"no picture", b"", b"%!PS-Adobe-3.0 EPSF-3.0\n"):
        path.write_bytes(content)
        assert open_sheet(path, row) is None, content


def test_a_picture_larger_than_a_sheet_is_not_decoded(tmp_path: Path) -> None:
    side = int((2 * MAX_SHEET_PIXELS) ** 0.5)
    for more, opened in ((0, True), (2, False)):
        Image.new("1", (side + more, side)).save(tmp_path / "a.png")
        shape = (side + more, side, 1, 1)
        row = Clip(1, 0, 0, "a.npz", "a.png", *shape, 30.0, 1, None, 0, 0, None)
        assert (open_sheet(tmp_path / "a.png", row) is not None) is opened
