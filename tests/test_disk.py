"""Memory and disk: bounded, known, and given back."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compare import run, same_session, session_in
from processes import ROOT, Kill, command

from rlhf_gym import collect
from rlhf_gym.files import bytes_below
from rlhf_gym.segments import stack
from rlhf_gym.store import CLIP_BYTES


def walked(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def test_disk_use_is_that_of_the_files(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    session = session_in(tmp_path)
    session.where()
    path = session.path
    assert session.disk_bytes() == walked(path)
    measured = {m["round"]: m["value"] for m in session.metrics(CLIP_BYTES)}
    assert measured == {n: walked(path / "clips" / f"r{n:03d}") for n in (0, 1)}
    (path / "clips" / "r000" / "0000.npz").unlink()  # nobody looks at every clip again
    assert session.disk_bytes() > walked(path)
    session.drop_metrics(0, "collect")
    assert session.disk_bytes() == walked(path)
    session.close()


def test_links_count_as_links(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "small").write_bytes(b"x" * 10)
    (tmp_path / "dir" / "link").symlink_to(tmp_path / "large")
    (tmp_path / "dir" / "loop").symlink_to(tmp_path / "dir")
    assert bytes_below(tmp_path / "dir") < 1000
    assert bytes_below(tmp_path / "nothing") == 0


def test_clean_drops_what_is_not_needed_and_says_what_it_freed(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path, kill=Kill("rlhf_gym.train:update", 7)).status == -9  # in round 1, an in-phase checkpoint there
    path = tmp_path / "data" / "one"
    needed = path / "checkpoints" / "r001.train_agent.pt"
    assert needed.exists()
    users = [".my-notes", "videos/.watch-r000.mp4", "checkpoints/mine.txt"]
    for name in users:
        (path / name).write_bytes(b"the user's")
    rubbish = ["checkpoints/r000.train_agent.pt", "checkpoints/r000.pt.damaged", "videos/.r000.mp4", ".config.json-x"]
    for name in rubbish:
        (path / name).write_bytes(b"x" * 1_000_000)
    (path / "clips" / "r007").mkdir()
    (path / "clips" / "r007" / "0000.npz").write_bytes(b"x" * 1_000_000)
    before = walked(path)
    result = command("clean", "one", cwd=tmp_path)
    assert result.status == 0, result.err
    said = re.fullmatch(r"Freed ([\d.]+) MB \((.*)\); session one takes ([\d.]+) MB\.\n", result.out)
    assert said, result.out
    assert set(said[2].split(", ")) == {
        "2 half-written files", "1 in-phase checkpoint", "1 unfinished batch of clips", "1 damaged checkpoint",
    }  # fmt: skip
    assert float(said[1]) == pytest.approx((before - walked(path)) / 1e6, abs=0.1)
    assert float(said[1]) >= 5.0
    assert needed.exists()
    assert not any((path / name).exists() for name in rubbish)
    assert all((path / name).read_bytes() == b"the user's" for name in users)
    for name in users:
        (path / name).unlink()
    again = command("clean", "one", cwd=tmp_path)
    assert "nothing to delete" in again.out
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err
    same_session(whole, tmp_path)


def test_a_session_that_runs_is_not_cleaned(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    session = session_in(tmp_path)
    with session.lock():
        result = command("clean", "one", cwd=tmp_path)
    assert result.status == 1
    assert "already running" in result.err
    session.close()


def test_stacks_of_frames_are_held_once() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (29, 84, 84), np.uint8)
    stacks = [frames[t : t + 4] for t in range(26)]
    held = stack(stacks)
    np.testing.assert_array_equal(held, np.stack(stacks))
    assert held.base is not None
    owner = held
    while owner.base is not None:
        owner = owner.base
    assert owner.nbytes == frames.nbytes
    for others in ([np.zeros(4, np.float32)] * 3, [*stacks, stacks[0]], [*stacks, stacks[-1]], stacks[:1]):
        np.testing.assert_array_equal(stack(others), np.stack(others))


def test_candidates_of_pong_take_no_more_than_their_frames() -> None:
    cutter = collect.Cutter(5, 0, False, np.random.default_rng(0))
    frames = np.random.default_rng(0).integers(0, 255, (20, 84, 84), np.uint8)
    cutter.reset(1)
    found = [
        cutter.add(frames[t : t + 4].copy(), np.int64(0), 0.0, {"lives": 0.0}, frames[t + 1 : t + 5], False)
        for t in range(10)
    ]
    segments = [c.segment for c in found if c is not None]
    assert len(segments) == 2
    for n, segment in enumerate(segments):
        np.testing.assert_array_equal(
            segment.observations, np.stack([frames[t : t + 4] for t in range(5 * n, 5 * n + 5)])
        )
        assert segment.observations.strides[:2] == (84 * 84, 84 * 84)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("args", [("collect", "--pairs", "500"), ("soak", "--rounds", "50")])
def test_memory_stays_in_its_bounds(args: tuple[str, ...]) -> None:
    bench = [sys.executable, str(ROOT / "scripts" / "bench" / "memory.py"), *args]
    result = subprocess.run(bench, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr


def test_list_shows_disk_use(whole: Path) -> None:
    result = command("list", "--json", cwd=whole)
    (row,) = json.loads(result.out)["sessions"]
    assert row["disk_bytes"] == pytest.approx(walked(whole / "data" / "one"), rel=0.2)
