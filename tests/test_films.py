"""Films: tiles that share a clock and are frozen where they end, what is written on them, GIF and MP4."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_evaluate import CPU, made, watched

from rlhf_gym import checkpoints, films
from rlhf_gym.config import UserError
from rlhf_gym.envs import Twin
from rlhf_gym.films import Cast, lay_out
from rlhf_gym.store import Session

pytestmark = pytest.mark.usefixtures("one_thread")


def casts(lives: list[int], **settings) -> tuple[list[Cast], object]:
    """One tile for each life, in an environment whose green channel says which step it is."""
    found = [made(env_kwargs={"lives": (life,), "size": (120, 240), "fps": 10, **settings}) for life in lives]
    return [Cast(agent, config, f"life {n}") for n, (agent, config, _) in zip(lives, found, strict=True)], found[0][2]


def middle(frame: np.ndarray, grid: films.Grid, i: int) -> np.ndarray:
    """A pixel in the left half of tile i's picture."""
    left, top = grid.place(i)
    return frame[top + films.TITLE + grid.picture[1] // 2, left + (grid.cell[0] - grid.picture[0]) // 2 + 30].astype(
        int
    )


def test_one_clock_and_who_has_ended_stays_as_it_was(tmp_path):
    cast, info = casts([3, 9])
    shown, rate = watched(films.write_film(cast, info, tmp_path / "a.mp4"))
    grid = lay_out(2, (240, 120), films.FILM[".mp4"], overlay=False, bare=False)
    assert (rate, shown[0].shape) == (10, (grid.size[1], grid.size[0], 3))
    assert len(shown) == 10 + round(10 * films.HOLD_SECONDS)
    for t in range(10):
        for i, life in enumerate((3, 9)):
            assert middle(shown[t], grid, i)[1] == pytest.approx(4 * min(t, life), abs=6), (t, i)
    left, top = grid.place(0)
    badge = [int(f[top + films.TITLE : top + films.TITLE + 28, left + 150 : left + 238].sum(-1).max()) for f in shown]
    assert max(badge[:3]) < 500 < min(badge[3:10])  # "over", in white


def test_an_overlay_shows_predictions_and_actions(tmp_path):
    cast, info = casts([9])
    judge = checkpoints.new_reward_model(info, cast[0].config, CPU, 0)
    grid = lay_out(1, (240, 120), films.FILM[".gif"], overlay=True, bare=True)
    pictures = {}
    for offset in (-50.0, 50.0):  # all predictions far above zero, then far below
        judge.offset.fill_(offset)
        film = films.Film(cast, info, films.FILM[".gif"], 1, True, judge, "")
        pictures[offset] = [np.array(p) for p in film.pictures(20, None)]
    strip = slice(grid.size[1] - films.STRIP, None)
    colors = {"good": (31, 100, 200), "bad": (180, 86, 10)}
    amount = {
        (offset, name): [int((p[strip] == color).all(-1).sum()) for p in pictures[offset]]
        for offset in pictures
        for name, color in colors.items()
    }
    assert max(amount[-50, "bad"]) == max(amount[50, "good"]) == 0
    for found in (amount[-50, "good"], amount[50, "bad"]):
        assert found[0] > 0
        assert all(a < b for a, b in pairwise(found[:9]))  # the curve grows
    assert all((p[strip][20:40, :90] < 80).any() for p in pictures[50][:9])  # the action's name
    assert not (pictures[50][9][strip][20:40, :90] < 80).any()  # after the end there is none


def test_a_potential_is_paid_for_where_each_step_led(tmp_path):
    """And the step that the episode ends by has gained nothing."""
    agent, config, info = made("CartPole-v1", reward_potential=True)
    judge = checkpoints.new_reward_model(info, config, CPU, 0)
    judge.scale.fill_(1.0)
    judge.potential.weights.normal_(generator=torch.Generator().manual_seed(1))
    moments = list(films.play(Cast(agent, config, "a", seed=3), 1, 200, judge))
    assert moments[-1].over == "over"
    twin = Twin(config, render=False)
    seen = [twin.reset(3)] + [twin.step(m.action)[0] for m in moments[:-1]]
    twin.close()
    led = [*seen[1:-1], seen[-2]]
    no = torch.zeros(1, dtype=torch.bool)
    expected = []
    for moment, obs, then in zip(moments[:-1], seen, led, strict=False):
        given = [torch.as_tensor(x[None]) for x in (obs, moment.action)]
        expected.append(float(judge.reward(*given, no, torch.as_tensor(then[None]))))
    assert [m.predicted for m in moments[:-1]] == pytest.approx(expected, abs=1e-5)
    assert np.std(expected[:-1]) > 0.01


def test_continuous_actions_are_bars(tmp_path):
    agent, config, info = made("Pendulum-v1")
    cast = [Cast(agent, config, "a")]
    canvas = Image.new("RGB", (300, 200), films.SURFACE)
    grid = lay_out(1, (200, 200), (300, 300), overlay=True, bare=True)
    look = films.Look([], info.action_bounds(), 0.0, 10)
    heights = []
    for action in (-2.0, 0.0, 2.0):
        films.Tile(canvas, grid, 0, cast[0], look).bars(np.array([action]), 0, 0, 100, 40)
        dark = np.flatnonzero((np.array(canvas)[:40, 10] < 60).all(-1))
        heights.append((dark.min(), dark.max()) if len(dark) else None)
    low, _, high = heights
    assert low[0] >= 19
    assert low[1] >= 37
    assert high[0] <= 2
    assert high[1] <= 21


def test_actions_have_names():
    assert films.action_names(*made("CartPole-v1")[1:]) == ["left", "right"]
    assert films.action_names(*made("Pendulum-v1")[1:]) == []
    assert films.action_names(*made()[1:]) == ["action 0", "action 1", "action 2"]
    pong = films.action_names(*made("ALE/Pong-v5")[1:])
    assert pong == ["noop", "fire", "right", "left", "right fire", "left fire"]


@pytest.mark.parametrize("tiles", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("frame", [(600, 400), (160, 210), (500, 500), (96, 96), (2000, 300)])
@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_tiles_lie_in_the_film_and_none_over_another(tiles, frame, suffix):
    grid = lay_out(tiles, frame, films.FILM[suffix], overlay=True, bare=tiles == 1)
    assert grid.size[0] % 2 == grid.size[1] % 2 == 0
    assert max(grid.picture) <= films.TILE or tiles == 1
    boxes = [(*grid.place(i), *np.add(grid.place(i), grid.cell)) for i in range(tiles)]
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert 0 <= left < right <= grid.size[0]
        assert 0 <= top < bottom <= grid.size[1]
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def test_a_gif_has_the_colours_and_at_most_fifteen_frames_a_second(tmp_path):
    cast, info = casts([8, 8], fps=40)
    path = films.write_film(cast, info, tmp_path / "new" / "a.gif")
    assert [p.name for p in path.parent.iterdir()] == ["a.gif"]
    with Image.open(path) as gif:
        assert gif.info["loop"] == 0
        delays = []
        for n in range(3):
            gif.seek(n)
            delays.append(gif.info["duration"])
            frame = np.array(gif.convert("RGB"))
            grid = lay_out(2, (240, 120), films.FILM[".gif"], overlay=False, bare=False)
            assert middle(frame, grid, 1) == pytest.approx([220, 4 * 3 * n, 0], abs=12)
    assert min(delays) >= 66
    assert path.stat().st_size < 200_000


def test_long_episodes_are_cut_and_progress_is_told(tmp_path):
    cast, info = casts([10**9])
    seen = []
    path = films.write_film(cast, info, tmp_path / "a.mp4", max_seconds_shown=1.5, report=lambda *a: seen.append(a))
    assert len(watched(path)[0]) == 16
    assert seen[-1] == (15, 15)
    assert seen == sorted(seen)


def test_a_film_that_cannot_be_written_is_told(tmp_path):
    cast, info = casts([2])
    (tmp_path / "videos").write_text("a file where a directory should be")
    with pytest.raises(UserError, match=r"Cannot write the film .*a\.mp4"):
        films.write_film(cast, info, tmp_path / "videos" / "a.mp4")


def test_first_and_last_are_among_those_that_are_spread():
    assert films.spread([-1, 0, 1], 16) == [-1, 0, 1]
    chosen = films.spread(list(range(-1, 99)), 16)
    assert (len(chosen), chosen[0], chosen[-1]) == (16, -1, 98)
    assert chosen == sorted(set(chosen))


def test_the_cast_of_a_session_is_all_of_its_rounds(whole: Path, tmp_path: Path):
    shutil.copytree(whole / "data", tmp_path / "data")
    session, said = Session(tmp_path / "data" / "one"), []
    cast = films.cast_rounds(session, said.append)
    assert [c.title for c in cast] == ["untrained", "round 0", "round 1"]
    assert [c.note.partition(", ")[0] for c in cast] == ["0 labels", "6 labels", "12 labels"]
    assert all("true return" in c.note for c in cast)
    assert len({c.seed for c in cast}) == 1
    path = session.checkpoint(1)
    newest = films.newest_judge(session)
    path.write_bytes(path.read_bytes()[:-1])
    assert [c.title for c in films.cast_rounds(session, said.append)] == ["untrained", "round 0"]
    assert len(said) == 1
    assert "left out" in said[0]
    older = films.newest_judge(session)
    assert newest is not None
    assert older is not None
    assert not np.array_equal(newest.offset.numpy(), older.offset.numpy())
    session.close()
