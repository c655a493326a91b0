"""The wall: what the API says of every round, and the panel in a real Chromium."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pages import API, client, serve, wait_for
from test_labeling import axe_finds
from videos import write_video

from rlhf_gym import files
from rlhf_gym.store import START
from rlhf_gym.tables import event_table

__all__ = ["client", "serve"]  # fixtures

FPS = 25
SHORT, LONG = 30, 100  # frames


@pytest.fixture(scope="module")
def movies(tmp_path_factory: pytest.TempPathFactory) -> dict[int, bytes]:
    """A video of so many frames, each a little brighter than the one before."""

    made = {}
    for frames in (SHORT, LONG):
        path = tmp_path_factory.mktemp("movies") / f"{frames}.mp4"
        pictures = np.linspace(20, 235, frames).astype(np.uint8)[:, None, None, None]
        pictures = np.broadcast_to(pictures, (frames, 64, 96, 3))
        write_video(path, pictures, FPS)
        made[frames] = path.read_bytes()
    return made


def put_round(loop: Any, number: int, movie: bytes, frames: int, mean: float = 50.0, **verdict: Any) -> None:
    """What the loop leaves of a round: agent, video, evaluation, verdict."""
    files.write_atomic(loop.session.video(number), movie)
    values = [math.sin(0.1 * i + number) for i in range(frames)]
    own = {
        "judge": 2,
        "fps": FPS,
        "predicted": values,
        "true": [1.0] * frames,
        "ended": frames == SHORT,
        "mean": 0.1 * number,
    }
    loop.session.verdict(number).write_text(json.dumps({**own, **verdict}))
    loop.record(number, mean)
    loop.session.put_metrics(number, "record", 0, {"eval/std": 2.5})


@pytest.fixture
def wall(make_session: Any, movies: dict[int, bytes]) -> Callable[..., Any]:
    """wall(rounds) -> FakeLoop of a session with the untrained agent and so many rounds more."""

    def make(rounds: int = 3, **settings: Any) -> Any:
        loop = make_session(pairs=0, **settings)
        put_round(loop, START, movies[SHORT], SHORT, 21.5)
        for number in range(rounds):
            put_round(loop, number, movies[LONG], LONG, 50.0 + number)
        return loop

    return make


# ---------------------------------------------------------------------------------------------- the API


def test_every_round_with_what_one_model_says_of_it(client: TestClient, wall: Any) -> None:
    loop = wall(4)
    with loop.session.write() as db:
        db.execute(event_table.insert().values(kind="star", round=1, payload={"round": 1}, created=0.0))
    loop.session.add_event("plan", 2, agent=0, practice=False)
    loop.session.add_event("plan", 3, agent=2, practice=True)
    loop.session.verdict(3).write_text(
        json.dumps({"judge": 3, "fps": FPS, "predicted": [9.0], "mean": 9.0, "ended": False})
    )
    answer = client.get(f"{API}/wall").json()
    first, zero, one, two, three = answer["rounds"]
    assert answer["judge"] == 2  # of most rounds; what another model says is not comparable
    assert (three["predicted"], three["mean"], three["ended"]) == (None, None, False)
    assert (first["round"], first["title"], first["from"], first["ended"]) == (-1, "untrained", None, True)
    assert (first["mean_return"], first["std"], first["fps"]) == (21.5, 2.5, FPS)
    assert (len(first["predicted"]), len(first["true"])) == (SHORT, SHORT)
    assert (zero["title"], zero["from"], zero["practice"], zero["star"]) == ("round 0", -1, False, False)
    assert (one["from"], one["star"]) == (0, True)
    assert (two["from"], two["practice"], three["from"], three["practice"]) == (0, False, 2, True)
    assert client.get(one["url"]).status_code == 200


DAMAGE = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"predicted": "many"}', b'{"predicted": [1, null]}', b'{"mean": NaN}',
    b'{"fps": 0}', b'{"judge": [1]}', b'{"mean": 1e999}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_verdict_says_nothing(client: TestClient, wall: Any, content: bytes) -> None:
    loop = wall(1)
    loop.session.verdict(0).write_bytes(content)
    answer = client.get(f"{API}/wall")
    assert answer.status_code == 200
    zero = answer.json()["rounds"][1]
    assert [zero[name] for name in ("fps", "predicted", "true", "ended", "mean")] == [None] * 5
    assert zero["mean_return"] == 50.0


def test_rounds_without_anything(client: TestClient, make_session: Any) -> None:
    make_session()
    assert client.get(f"{API}/wall").json() == {
        "judge": None,
        "rounds": [
            dict.fromkeys(("from", "url", "std", "mean", "fps", "predicted", "true", "ended"))
            | {"round": -1, "title": "untrained", "practice": False, "mean_return": 21.5, "star": False}
        ],
    }
    assert client.get("/api/s/nobody/wall").status_code == 404


# ---------------------------------------------------------------------------------------------- the panel

VISIBLE = """[...document.querySelectorAll('.tile video')].filter((v) => v.hasAttribute('src'))"""
SIZES = pytest.mark.parametrize("size", [(1280, 800), (390, 844)])


def until(page: Any, expression: str, seconds: float = 10.0) -> Any:
    return wait_for(lambda: page.evaluate(expression), seconds)


def open_wall(page: Any, server: Any, size: tuple[int, int] = (1280, 800)) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(server.page("cartpole-1"))
    page.wait_for_selector("#tiles .tile")
    page.evaluate("document.getElementById('wall').scrollIntoView()")


def times(page: Any, selector: str = ".tile") -> list[float]:
    return list(page.evaluate(f"[...document.querySelectorAll('{selector} video')].map((v) => v.currentTime)"))


@SIZES
def test_the_wall_plays_together_from_one_clock(page: Any, serve: Any, wall: Any, size: tuple[int, int]) -> None:
    wall(3)
    open_wall(page, serve(), size)
    assert page.locator(".tile b").all_inner_texts() == ["untrained", "round 0", "round 1", "round 2"]
    until(page, f"{VISIBLE}.slice(1).every((v) => v.currentTime > 1.4)")
    for _ in range(4):
        short, *long = times(page)
        assert short == pytest.approx(SHORT / FPS, abs=0.05)  # holds its last frame
        assert max(long) - min(long) < 0.15
        page.wait_for_timeout(150)
    until(page, f"{VISIBLE}.every((v) => v.currentTime < 1 && !v.paused)")  # anew, the short one too
    everyone = times(page)
    assert max(everyone) - min(everyone) < 0.15

    page.click("#wall-deck [data-speed='0.25']")
    until(page, f"{VISIBLE}.every((v) => v.playbackRate < 0.5)")
    assert page.get_attribute("#wall-deck [data-speed='0.25']", "aria-pressed") == "true"
    page.click("#wall-deck .play")
    assert page.get_attribute("#wall-deck .play", "aria-label") == "Play"
    still = times(page)
    page.wait_for_timeout(300)
    assert times(page) == still
    page.click("#wall-deck .play")
    until(page, f"{VISIBLE}.slice(1).every((v) => !v.paused)")


@SIZES
def test_a_moment_is_found_with_mouse_and_keys(page: Any, serve: Any, wall: Any, size: tuple[int, int]) -> None:
    wall(2)
    open_wall(page, serve(), size)
    until(page, f"{VISIBLE}.length === 3 && {VISIBLE}.every((v) => v.readyState > 2)")
    trace = page.locator(".tile[data-round='1'] .trace")
    box = trace.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    until(page, "Math.abs(document.querySelector('.tile[data-round=\"1\"] video').currentTime - 3) < 0.1")
    assert page.get_attribute("#wall-deck .play", "aria-label") == "Play"  # the wall stands still
    assert page.evaluate(f"{VISIBLE}.every((v) => v.paused)")
    other = times(page)[1]
    trace.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("PageDown")
    until(page, "Math.abs(document.querySelector('.tile[data-round=\"1\"] video').currentTime - 2.1) < 0.1")
    wait_for(lambda: abs(float(trace.get_attribute("aria-valuenow")) - 2.1) < 0.05)
    frame = round(float(trace.get_attribute("aria-valuenow")) * FPS)
    predicted = float(trace.get_attribute("aria-valuetext").rpartition(" ")[2])
    assert predicted == pytest.approx(math.sin(0.1 * frame + 1), abs=0.15)
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20)
    page.mouse.down()
    for share in (0.4, 0.3, 0.2):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 20)
    page.mouse.up()
    until(page, "Math.abs(document.querySelector('.tile[data-round=\"1\"] video').currentTime - 0.8) < 0.1")
    page.keyboard.press("End")
    until(page, "Math.abs(document.querySelector('.tile[data-round=\"1\"] video').currentTime - 4) < 0.1")
    assert times(page)[1] == other
    highest = max(range(LONG), key=lambda i: math.sin(0.1 * i + 1))
    peak = page.evaluate("parseFloat(document.querySelector('.tile[data-round=\"1\"] .peak').style.left)")
    assert peak == pytest.approx(100 * (highest + 0.5) / LONG)


@SIZES
def test_any_two_are_compared_in_lock_step(page: Any, serve: Any, wall: Any, size: tuple[int, int]) -> None:
    wall(3)
    open_wall(page, serve(), size)
    page.evaluate("document.getElementById('compare').scrollIntoView()")
    titles = page.locator(".side b")
    assert titles.all_inner_texts() == ["untrained", "round 2"]
    page.locator("#compare-left input").focus()
    page.keyboard.press("ArrowRight")
    page.locator("#compare-right input").focus()
    page.keyboard.press("ArrowLeft")
    assert titles.all_inner_texts() == ["round 0", "round 1"]
    assert page.get_attribute("#compare-left input", "aria-valuetext") == "round 0"
    until(page, "document.querySelector('#compare-right video').src.includes('/r001.mp4')")
    until(page, "[...document.querySelectorAll('.side video')].every((v) => v.currentTime > 0.5)")
    sides = "[...document.querySelectorAll('.side video')].map((v) => v.currentTime)"
    until(page, f"Math.max(...{sides}) - Math.min(...{sides}) < 0.15")
    page.locator("#compare-scrub").fill("2")
    until(
        page,
        "[...document.querySelectorAll('.side video')].every((v) => v.paused && Math.abs(v.currentTime - 2) < 0.1)",
    )
    beside = page.evaluate(
        "document.querySelectorAll('.side')[0].getBoundingClientRect().top === document.querySelectorAll('.side')[1].getBoundingClientRect().top"
    )
    assert beside == (size[0] > 640)  # a phone stacks them
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_new_round_joins_without_a_flicker(page: Any, serve: Any, wall: Any, movies: dict[int, bytes]) -> None:
    loop = wall(1)
    with loop.session.lock():
        open_wall(page, serve())
        until(page, f"{VISIBLE}.length === 2 && {VISIBLE}[1].currentTime > 0.2")
        page.evaluate("for (const v of document.querySelectorAll('.tile video')) v.kept = true")
        page.evaluate("globalThis.loads = 0")
        page.evaluate(
            "for (const v of document.querySelectorAll('.tile video')) v.addEventListener('loadstart', () => (loads += 1))"
        )
        put_round(loop, 1, movies[LONG], LONG, 99.0)
        page.wait_for_selector(".tile[data-round='1'] .quiet:has-text('true return 99 ± 2.50')")
        loop.session.add_event("plan", 2, agent=0, practice=False)
        put_round(loop, 2, movies[LONG], LONG, 12.0)
        page.wait_for_selector(".tile[data-round='2'] .chip:has-text('from round 0')")
    assert page.evaluate("[...document.querySelectorAll('.tile video')].map((v) => Boolean(v.kept))") == [
        True,
        True,
        False,
        False,
    ]
    assert page.evaluate("loads") == 0
    assert page.locator(".side b").all_inner_texts() == ["untrained", "round 2"]
    assert page.locator(".chip:visible").all_inner_texts() == ["from round 0"]


def test_only_what_is_on_screen_is_loaded(page: Any, serve: Any, wall: Any) -> None:
    wall(30)
    open_wall(page, serve())
    until(page, f"{VISIBLE}.length > 3")
    assert page.evaluate(f"{VISIBLE}.length") < 20
    page.evaluate("document.getElementById('compare').scrollIntoView()")
    until(page, "document.querySelector('.tile[data-round=\"29\"] video').readyState > 0")
    until(page, "!document.querySelector('.tile[data-round=\"0\"] video').hasAttribute('src')")
    assert page.evaluate(f"{VISIBLE}.length") < 20


def test_nothing_plays_by_itself_for_who_wants_stillness(page: Any, serve: Any, wall: Any) -> None:
    wall(1)
    page.emulate_media(reduced_motion="reduce")
    open_wall(page, serve())
    until(page, f"{VISIBLE}.length === 2 && {VISIBLE}.every((v) => v.readyState > 1)")
    page.wait_for_timeout(400)
    assert times(page) == [0, 0]
    assert page.get_attribute("#wall-deck .play", "aria-label") == "Play"
    page.click("#wall-deck .play")
    until(page, f"{VISIBLE}.every((v) => v.currentTime > 0.2)")


def test_without_videos_there_is_no_wall(page: Any, serve: Any, make_session: Any) -> None:
    loop = make_session(pairs=0)
    loop.record(0, 30.0)
    with page.expect_response("**/wall"):
        page.goto(serve().page("cartpole-1"))
    page.wait_for_timeout(200)
    assert not page.is_visible("#wall")


def test_the_wall_stops_while_one_labels(page: Any, serve: Any, wall: Any) -> None:
    loop = wall(1)
    loop.collect(1, 2)
    page.goto(serve().page("cartpole-1"))
    page.click("#views [data-to='dashboard']")
    page.wait_for_selector("#tiles .tile")
    page.evaluate("document.getElementById('wall').scrollIntoView()")
    until(page, f"{VISIBLE}.length === 2 && {VISIBLE}.every((v) => v.currentTime > 0.1)")
    page.click("#views [data-to='label']")
    assert page.evaluate("[...document.querySelectorAll('#wall video')].every((v) => v.paused)")
    page.click("#views [data-to='dashboard']")
    page.evaluate("document.getElementById('wall').scrollIntoView()")
    until(page, f"{VISIBLE}.some((v) => !v.paused)")


@SIZES
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Any, serve: Any, wall: Any, size: tuple[int, int], scheme: str) -> None:
    loop = wall(2)
    loop.session.add_event("plan", 1, agent=-1, practice=False)
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    open_wall(page, serve(), size)
    until(page, f"{VISIBLE}.length === 3")
    assert axe_finds(page) == []


def test_an_unreadable_video_does_not_hold_up_the_others(page: Any, serve: Any, wall: Any) -> None:
    loop = wall(2)
    files.write_atomic(loop.session.video(0), b"no video at all")
    open_wall(page, serve())
    until(page, "document.querySelector('.tile[data-round=\"1\"] video').currentTime > 0.5")
