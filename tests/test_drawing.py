"""The first pair is drawn first, and the others while somebody labels: as they would have been, whatever comes between."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from compare import session_in
from pages import API, client, press, serve, shown
from processes import Kill, command
from test_curves import until
from videos import pixels

import webui.labeling
import webui.state
from rlhf_gym import catalog, checkpoints, collect, drawing, envs, tables
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, resolve
from rlhf_gym.envs import EnvInfo
from rlhf_gym.segments import load_clip
from rlhf_gym.store import CLIP_BYTES, Session

__all__ = ["client", "serve"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")


class Enough(Exception):
    pass


def made(env_id: str, **settings: Any) -> tuple[Snapshot, Config, EnvInfo]:
    given = {"env_id": env_id, "num_envs": 3, "pairs_per_round": 6, "clip_seconds": 0.5, "labeler": "human", **settings}
    info = envs.describe(Config(**given))
    config = resolve(given, info.kind)
    return Snapshot(checkpoints.new_agent(info, config, torch.device("cpu")), None, config, info, -1), config, info


def collected(path: Path, env_id: str, **settings: Any) -> tuple[Session, Config, EnvInfo]:
    snapshot, config, info = made(env_id, **settings)
    session = catalog.create_session(path, "one", config)
    collect.collect(session, snapshot, config, info, 0, 0, lambda *_: None)
    return session, config, info


def draw(session: Session, config: Config, info: EnvInfo, most: int = 99) -> list[str]:
    """Stops, as Ctrl-C would, after `most` clips."""

    def report(n: int, total: int) -> None:
        assert n <= total
        if n > most:
            raise Enough

    return drawing.draw_rest(session, config, info, 0, 0, report)


def contents(session: Session) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in session.clip_directory(0, 0).iterdir()}


def there(session: Session) -> list[list[bool]]:
    """Of each pair in the order shown: whether its clips are drawn."""
    clips = session.clips()
    return [[session.file(clips[i].sheet or "") is not None for i in (p.left_clip, p.right_clip)]
            for p in session.pairs(0, 0)]  # fmt: skip


def differs(one: bytes, two: bytes) -> float:
    """Share of pixels."""
    a, b = pixels(one), pixels(two)
    return float((a != b).any(-1).mean())


CASES = [
    ("CartPole-v1", {}), ("CartPole-v1", {"episode_ends": "hide"}), ("CartPole-v1", {"pixels": True}),
    ("rlhf_gym/Dot-v0", {}), ("LunarLander-v3", {"clip_seconds": 1.0}), ("Hopper-v5", {}),
    ("ALE/Pong-v5", {"env_kwargs": {"max_num_frames_per_episode": 202}, "pairs_per_round": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("env_id", "settings"), CASES)
def test_sheets_drawn_later_are_those_drawn_at_once(env_id, settings, tmp_path, monkeypatch):
    session, config, info = collected(tmp_path / "later", env_id, **settings)
    pairs = config.pairs_per_round
    assert there(session) == [[True, True]] + [[False, False]] * (pairs - 1)
    assert session.undrawn(0, 0).exists()
    with pytest.raises(Enough):
        draw(session, config, info, 3)
    assert there(session)[1] == [True, True]  # the second pair comes second
    assert there(session)[-1] == [False, False] or pairs == 3  # then all may be
    assert draw(session, config, info) == []
    assert not session.undrawn(0, 0).exists()

    monkeypatch.setattr(collect, "repeats_itself", lambda config: False)
    other, *_ = collected(tmp_path / "at-once", env_id, **settings)
    assert all(all(pair) for pair in there(other))
    files, others = contents(session), contents(other)
    if env_id == "LunarLander-v3":  # its flames burn down while they are looked at
        flames = [name for name in files if files[name] != others[name]]
        assert all(name.endswith(".png") and differs(files.pop(name), others.pop(name)) < 0.01 for name in flames)
    else:
        assert session.metrics(CLIP_BYTES) == other.metrics(CLIP_BYTES)
    assert files == others
    assert len(contents(session)) == 4 * pairs
    assert [asdict(c) for c in session.clips().values()] == [asdict(c) for c in other.clips().values()]
    assert session.pairs() == other.pairs()
    (taken,) = session.metrics(CLIP_BYTES)
    assert taken["value"] == sum(map(len, contents(session).values()))
    session.close()
    other.close()


def test_the_first_pair_need_not_be_new(tmp_path):
    """A hidden repeat may come first: its clips are those of an earlier round, and were drawn then."""
    session, config, info = collected(tmp_path, "CartPole-v1", repeat_fraction=0.4)
    draw(session, config, info)
    for n, pair in enumerate(session.pairs()):
        session.add_label(str(n), pair.id, "left")
    snapshot, *_ = made("CartPole-v1", repeat_fraction=0.4)
    firsts = set()
    for attempt in range(1, 5):
        collect.collect(session, snapshot, config, info, 1, attempt, lambda *_: None)
        batch, clips = session.pairs(1, attempt), session.clips()
        firsts.add(batch[0].kind)
        new = [p for p in batch if p.kind != "repeat"]
        drawn = [session.file(clips[p.left_clip].sheet or "") is not None for p in new]
        assert drawn == [True] + [False] * (len(new) - 1)
        assert drawing.draw_rest(session, config, info, 1, attempt, lambda *_: None) == []
        assert all(session.file(c.sheet or "") for c in session.clips().values())
    assert "repeat" in firsts
    session.close()


@pytest.mark.parametrize("labeler", ["synthetic", "human"])
def test_only_a_person_is_not_kept_waiting(labeler, tmp_path):
    session, *_ = collected(tmp_path, "CartPole-v1", labeler=labeler, render=True)
    assert session.undrawn(0, 0).exists() == (labeler == "human")
    session.close()


def test_an_environment_that_may_not_repeat_itself_is_drawn_before_anybody_looks(tmp_path):
    session, *_ = collected(tmp_path, "test_collect:collect/Film-v0")
    assert all(all(pair) for pair in there(session))
    assert not session.undrawn(0, 0).exists()
    session.close()


@pytest.mark.parametrize(
    "damage",
    [b"", b"PK\3\4 and no more", {"0003_prefix": None}, {"shape": [0, 0]}, {"shape": [5, -5]}, {"shape": [10**6, 1]},
     {"shape": [1, 2, 3]}],
)  # fmt: skip
def test_a_damaged_note_costs_the_pictures_alone(damage, tmp_path):
    session, config, info = collected(tmp_path, "CartPole-v1")
    path = session.undrawn(0, 0)
    rewrite(path, damage) if isinstance(damage, dict) else path.write_bytes(damage)
    (sentence,) = draw(session, config, info)
    assert "is damaged" in sentence
    assert not path.exists()
    assert there(session)[1:] == [[False, False]] * 5
    session.close()


def rewrite(path: Path, changes: dict[str, Any]) -> None:
    with np.load(path) as arrays:
        known = {**arrays, **changes}
    np.savez(path, **{k: v for k, v in known.items() if v is not None})


def test_an_action_that_cannot_be_costs_its_own_picture(tmp_path):
    session, config, info = collected(tmp_path, "CartPole-v1")
    clip = session.clips()[session.pairs(0, 0)[3].left_clip]
    rewrite(session.undrawn(0, 0), {f"{Path(clip.path).stem}_prefix": np.array([77])})
    sentences = draw(session, config, info)
    assert "1 clips have no picture" in sentences[-1]
    assert [pair.count(False) for pair in there(session)] == [0, 0, 0, 1, 0, 0]
    session.close()


@pytest.mark.parametrize("kind", ["directory", "pipe", "link"])
def test_a_note_that_is_no_plain_file_is_not_read(kind, tmp_path):
    session, config, info = collected(tmp_path, "CartPole-v1")
    path = session.undrawn(0, 0)
    path.rename(tmp_path / "elsewhere.npz")
    {"directory": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("/dev/zero")}[kind]()
    assert draw(session, config, info) == []
    assert not os.path.lexists(path)
    assert there(session)[1:] == [[False, False]] * 5
    session.close()


@pytest.mark.parametrize("where", ["{out}", "../victim.png", "clips/r000/../../config.json", "clips/r009/0001.png"])
def test_no_row_makes_it_write_elsewhere(where, tmp_path):
    session, config, info = collected(tmp_path, "CartPole-v1")
    victims = [tmp_path / "victim.png", tmp_path / "victim.pt", session.path / "config.json"]
    for victim in victims[:2]:
        victim.write_bytes(b"the user's")
    before = [v.read_bytes() for v in victims]
    clip = session.pairs(0, 0)[2].left_clip
    with session.write() as db:
        row = tables.clip_table.update().where(tables.clip_table.c.id == clip)
        db.execute(row.values(sheet=where.format(out=victims[1])))
    assert draw(session, config, info) == []
    assert [v.read_bytes() for v in victims] == before
    assert not (session.path / "clips" / "r009").exists()
    assert [pair.count(True) for pair in there(session)][3:] == [2, 2, 2]
    session.close()


def test_a_damaged_clip_costs_its_own_picture(tmp_path):
    session, config, info = collected(tmp_path, "CartPole-v1")
    clip = session.clips()[session.pairs(0, 0)[2].right_clip]
    (session.path / clip.path).write_bytes(b"x")
    (sentence,) = draw(session, config, info)
    assert clip.path in sentence
    assert there(session) == [[True, True]] * 2 + [[True, False]] + [[True, True]] * 3
    session.close()


def test_a_clip_that_does_not_repeat_itself_takes_no_other_along(tmp_path, monkeypatch):
    session, config, info = collected(tmp_path, "CartPole-v1")
    clip = session.clips()[session.pairs(0, 0)[2].right_clip]
    monkeypatch.setattr(drawing, "load_clip", lambda session, c: moved(load_clip(session, c), c.id == clip.id))
    (sentence,) = draw(session, config, info)
    assert sentence == "CartPole-v1 did not repeat itself: 1 clips have no picture, skip their pairs."
    assert there(session) == [[True, True]] * 2 + [[True, False]] + [[True, True]] * 3
    session.close()


def test_what_fails_for_the_moment_costs_nothing(tmp_path, monkeypatch):
    session, config, info = collected(tmp_path, "CartPole-v1")
    with monkeypatch.context() as m, pytest.raises(OSError, match="Too many"):
        m.setattr(drawing, "read", raiser(OSError(24, "Too many open files")))
        draw(session, config, info)
    assert session.undrawn(0, 0).exists()
    assert draw(session, config, info) == []
    assert all(all(pair) for pair in there(session))
    session.close()


def raiser(error: Exception) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_what_nobody_looks_at_any_more_is_not_drawn(tmp_path):
    session, config, info = collected(tmp_path, "CartPole-v1")
    asked = iter([True, False])
    assert drawing.draw_rest(session, config, info, 0, 0, lambda *_: None, lambda: next(asked)) == []
    assert there(session) == [[True, True]] * 2 + [[False, False]] * 4
    assert not session.undrawn(0, 0).exists()
    (taken,) = session.metrics(CLIP_BYTES)
    assert taken["value"] == sum(map(len, contents(session).values()))
    session.close()


def test_of_batches_that_are_over_no_clip_is_still_to_come(tmp_path):
    session, *_ = collected(tmp_path, "CartPole-v1")
    snapshot, config, info = made("CartPole-v1")
    collect.collect(session, snapshot, config, info, 0, 1, lambda *_: None)
    drawing.give_up_others(session, 0, 1)
    assert [session.undrawn(0, attempt).exists() for attempt in (0, 1)] == [False, True]
    drawing.give_up_others(session, 1, 0)
    assert not session.undrawn(0, 1).exists()
    session.close()


def test_the_session_has_a_picture_from_the_first_pair_on(tmp_path):
    session, *_ = collected(tmp_path, "CartPole-v1")
    clip = session.newest_picture()
    assert clip is not None
    assert session.file(clip.sheet or "") is not None
    session.close()


def test_half_a_sheet_is_cleared_up(tmp_path):
    session, *_ = collected(tmp_path, "CartPole-v1")
    half, users = session.clip_directory(0, 0) / ".0003.png-a8x", session.clip_directory(0, 0) / ".mine"
    half.write_bytes(b"x")
    users.write_bytes(b"x")
    session.clear_leftovers()
    assert (half.exists(), users.exists(), session.undrawn(0, 0).exists()) == (False, True, True)
    session.close()


class Still(gymnasium.Wrapper):
    pass


@pytest.mark.parametrize(
    ("env_id", "known"),
    [("CartPole-v1", True), ("ALE/Pong-v5", True), ("rlhf_gym/Dot-v0", True), ("drawing/Wrapped-v0", False),
     ("test_drawing:CartPole-v1", False), ("test_collect:collect/Film-v0", False)],
)  # fmt: skip
def test_only_what_we_know_is_trusted_to_repeat_itself(env_id, known):
    wrapper = gymnasium.envs.registration.WrapperSpec("Still", f"{__name__}:Still", {})
    entry = "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
    gymnasium.register("drawing/Wrapped-v0", entry, additional_wrappers=(wrapper,))
    try:
        assert drawing.repeats_itself(Config(env_id=env_id)) == known
    finally:
        del gymnasium.registry["drawing/Wrapped-v0"]


def moved(segment, by):
    segment.observations[:] += by
    return segment


def test_a_program_that_was_killed_goes_on_drawing(tmp_path):
    """The page would show these pairs: they are drawn whether or not anybody collects again."""
    settings = ["--labeler", "human", "--session", "one", "--pairs-per-round", "6", "--no-browser", "--port", "0"]
    result = command("run", "CartPole-v1", *settings, cwd=tmp_path, kill=Kill("rlhf_gym.replay:draw", 5))
    assert result.status == -9, result.err
    session = session_in(tmp_path)
    assert there(session)[0] == [True, True]
    assert session.where().phase == "label"
    result = command(
        "resume",
        "one",
        "--no-browser",
        "--port",
        "0",
        cwd=tmp_path,
        kill=Kill("rlhf_gym.labelers:wait_for_human", 1, before=True),
    )
    assert result.status == -9, result.err
    assert all(all(pair) for pair in there(session))
    session.close()


# ---------------------------------------------------------------------------------------------- the pages


def undraw(session: Session, position: int) -> tuple[Path, bytes]:
    clip = session.clips()[session.pairs(0, 0)[position].right_clip]
    path = session.path / (clip.sheet or "")
    png = path.read_bytes()
    path.unlink()
    session.undrawn(0, 0).write_bytes(b"still to come")
    return path, png


def test_a_sheet_that_is_still_to_come_is_asked_for_again(client, make_session):
    session = make_session().session
    path, png = undraw(session, 1)
    url = client.get(f"{API}/pairs").json()["pairs"][1]["right"]["url"]
    answer = client.get(url)
    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (204, b"", "1")
    path.write_bytes(png)
    answer = client.get(url)
    assert (answer.status_code, answer.content) == (200, png)
    assert "no-cache" in answer.headers["cache-control"]
    path.unlink()
    session.undrawn(0, 0).unlink()  # nobody will draw it
    assert client.get(url).status_code == 404
    assert client.get(f"{API}/pairs").json()["pairs"][1]["right"]["url"] is None


def test_a_sheet_that_comes_between_two_looks_is_there(client, make_session, monkeypatch):
    session = make_session().session
    path, png = undraw(session, 1)
    url = client.get(f"{API}/pairs").json()["pairs"][1]["right"]["url"]
    for module in (webui.labeling, webui.state):
        monkeypatch.setattr(module, "is_coming", in_between(module.is_coming, session, path, png))
        assert client.get(url).status_code == 200
        path.unlink()
        session.undrawn(0, 0).write_bytes(b"still to come")
        assert client.get(f"{API}/pairs").json()["pairs"][1]["right"]["url"]


def in_between(asked: Any, session: Session, path: Path, png: bytes) -> Any:
    """As `asked`; after its answer the loop draws the clip and is done."""

    def ask(*args: Any) -> bool:
        answer = asked(*args)
        path.write_bytes(png)
        session.undrawn(0, 0).unlink(missing_ok=True)
        return answer

    return ask


def test_the_page_waits_for_a_clip_and_shows_it_at_once(page, serve, make_session):
    session = make_session().session
    path, png = undraw(session, 1)
    page.goto(serve().page("cartpole-1"))
    first = shown(page)
    press(page, "ArrowLeft")
    until(page, "document.getElementById('stage-note').textContent.startsWith('Loading the clips …')")
    assert "once the session goes on" in page.inner_text("#stage-note")  # as nothing runs here
    page.keyboard.press("ArrowLeft")  # of what nobody sees nothing is judged
    page.wait_for_timeout(500)
    assert [p.choice for p in session.pairs(0, 0)] == ["left"] + [None] * 5
    path.write_bytes(png)
    until(page, f"!['{first}', undefined].includes(document.getElementById('stage').dataset.pair)")
    press(page, "ArrowRight")
    page.wait_for_timeout(300)
    assert [p.choice for p in session.pairs(0, 0)] == ["left", "right"] + [None] * 4


def test_a_live_video_that_has_made_room_is_no_error(page, serve, make_session):
    """The page may ask for it a moment after the next training has begun."""
    session = make_session().session
    page.goto(serve().page("cartpole-1"))
    asked = """(url) => new Promise((resolve) => {
      const video = document.createElement("video");
      video.onerror = () => resolve("error");
      video.src = url;
    })"""
    assert page.evaluate(asked, f"{API}/videos/live.mp4?v=1") == "error"  # and the console has no word of it
    assert not session.live_video().exists()
    page.wait_for_timeout(100)
