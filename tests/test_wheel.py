"""The page at the wheel: other clips where all look alike, pause, stop, longer, anew, back, the star; and what it shows
of an agent in training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pages import API, READY, client, press, serve, shown, wait_for
from videos import write_video

from rlhf_gym import store
from rlhf_gym.store import START

__all__ = ["client", "serve"]  # fixtures

SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}


def events(session: store.Session, kind: str) -> list[dict[str, Any]]:
    return [e["payload"] for e in session.events(kind)]


def film(session: store.Session, path: Any, shade: int = 100) -> None:
    """A short video, put there whole as the loop does."""
    frames = np.random.default_rng(shade).integers(0, 255, (45, 64, 96, 3), dtype=np.uint8)
    aside = path.with_name(f".{path.name}")
    write_video(aside, frames)
    aside.replace(path)


def train(loop: Any, number: int, **progress: Any) -> None:
    """The loop trains the agent of a round."""
    loop.session.partial(number, "train_agent").write_bytes(b"training")
    loop.session.write_progress(phase="train_agent", round=number, done=500, total=1000, unit="steps", **progress)


@pytest.fixture(params=SIZES)
def sized(request: pytest.FixtureRequest, page: Any) -> Any:
    page.set_viewport_size(SIZES[request.param])
    return page


# ---------------------------------------------------------------------------------------------- the API


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("steer", {"do": "back", "round": 7}, 409, "There is no agent of round 7 to go back to: choose one of -1"),
        ("steer", {"do": "back"}, 409, "There is no agent of round None to go back to"),
        ("steer", {"do": "longer"}, 409, "There is no reward model yet to train longer on"),
        ("steer", {"do": "pause"}, 409, "Nothing runs session 'cartpole-1' that could pause"),
        ("steer", {"do": "more"}, 409, "has rounds left to do"),
        ("steer", {"do": "fly"}, 422, "do 'fly': input should be 'pause'"),
        ("steer", {"do": "back", "round": -2}, 422, "round '-2'"),
        ("steer", {"do": "back", "round": 10**30}, 422, "round"),
        ("steer", {}, 422, "do: field required"),
        ("star", {"round": 3}, 409, "There is no agent of round 3 to star."),
        ("star", {}, 422, "round: field required"),
        ("star", {"round": True}, 422, "round 'True'"),
        ("clips", {}, 409, "Say what the clips should be"),
        ("clips", {"longer": "yes"}, 422, "longer 'yes'"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    client: TestClient, make_session: Any, path: str, body: Any, status: int, says: str
) -> None:
    session = make_session(pairs=2).session
    before = session.events()
    answer = client.post(f"{API}/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
    assert session.events() == before


def test_the_state_says_what_was_asked(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=2)
    for pair in loop.session.pairs(0):
        loop.session.add_label(f"{pair.id}", pair.id, "left")
    loop.record(0, 10.0)
    loop.collect(1, 2)
    assert client.post(f"{API}/star", json={"round": 0}).json()["star"] == 0
    state = client.post(f"{API}/clips", json={"longer": True, "differ": True}).json()
    assert (state["clip_factor"], state["differ"], state["phase"], state["attempt"]) == (1.5, True, "collect", 1)
    state = client.post(f"{API}/steer", json={"do": "back", "round": -1}).json()
    assert (state["base"], state["trained"], state["attempt"]) == (-1, [-1, 0], 2)


# ---------------------------------------------------------------------------------------------- other clips


def test_other_clips_are_offered_when_most_look_alike(sized: Any, serve: Any, make_session: Any) -> None:
    page, loop, server = sized, make_session(pairs=30), serve()
    with loop.session.lock():
        page.goto(server.page("cartpole-1"))
        offer = page.locator("#clips-offer")
        for key in ["ArrowUp", "ArrowDown", "ArrowLeft"] * 3:
            press(page, key)
        page.wait_for_timeout(300)
        assert offer.is_hidden()  # nine are too few
        press(page, "ArrowUp")
        offer.wait_for()
        page.click("#clips-offer [data-clips=no]")
        assert offer.is_hidden()
        for _ in range(9):
            press(page, "ArrowUp")
        page.wait_for_timeout(300)
        assert offer.is_hidden()  # asked again after ten more
        press(page, "ArrowUp")
        offer.wait_for()
        page.click("#clips-offer [data-clips=longer]")
        page.wait_for_selector("#toast:has-text('counts')")
        assert events(loop.session, "clips") == [{"attempt": 0, "longer": True, "differ": False}]
        page.wait_for_selector("#watch-view:not([hidden])")
        loop.collect(0, 4, attempt=1)
        page.wait_for_selector(READY)
        assert offer.is_hidden()
        assert page.inner_text("#count").startswith("1 of 4")
        assert sum(p.choice is not None for p in loop.session.pairs(0, 0)) == 20


def test_no_other_clips_are_offered_to_one_who_can_tell(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=12), serve()
    for i, pair in enumerate(loop.session.pairs(0)[:10]):
        loop.session.add_label(f"{i}", pair.id, ("left", "equal")[i % 2])
    page.goto(server.page("cartpole-1"))
    page.wait_for_selector("#strip li:nth-child(10)")
    assert page.locator("#clips-offer").is_hidden()
    press(page, "ArrowUp")  # six of the last ten
    page.wait_for_selector("#clips-offer:not([hidden])")
    press(page, "z")
    page.wait_for_selector("#clips-offer[hidden]", state="attached")


# ---------------------------------------------------------------------------------------------- the wheel


def test_pause_go_on_longer_and_anew(sized: Any, serve: Any, make_session: Any) -> None:
    page, loop, server = sized, make_session(pairs=2), serve()
    for pair in loop.session.pairs(0):
        loop.session.add_label(f"{pair.id}", pair.id, "left")
    with loop.session.lock():
        train(loop, 0)
        page.goto(server.page("cartpole-1"))
        page.click("#watch-view [data-steer=pause]")
        wait_for(lambda: events(loop.session, "pause"))
        train(loop, 0, paused=True)
        page.wait_for_selector("h1:has-text('Paused')")
        page.click("#watch-view [data-steer=continue]")
        wait_for(lambda: events(loop.session, "continue"))
        train(loop, 0)
        page.wait_for_selector("#watch-view [data-steer=pause]")
        page.click("#watch-view [data-steer=longer]")
        wait_for(lambda: loop.session.wishes().longer(0) == 1)
        page.click("#watch-view [data-steer=anew]")
        page.click("#sure [value=no]")
        assert events(loop.session, "plan") == []
        page.click("#watch-view [data-steer=anew]")
        page.keyboard.press("Enter")
        wait_for(lambda: events(loop.session, "plan") == [{"agent": START, "practice": False}])


def test_stop_is_no_trouble(page: Any, serve: Any, make_session: Any, console: Any) -> None:
    console.allow(r"ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE")
    loop, server = make_session(pairs=2), serve()
    with loop.session.lock():
        page.goto(server.page("cartpole-1"))
        shown(page)
        page.keyboard.press("?")
        page.click("#menu [data-steer=stop]")
        assert "rlhf-gym resume cartpole-1" in page.inner_text("#sure")
        page.click("#sure [value=yes]")
        wait_for(lambda: loop.session.events("stop"))
        server.stop()
    page.wait_for_selector("#trouble:has-text('Stopped; everything is kept')")
    assert "gone" not in page.inner_text("#trouble")


def test_a_finished_session_goes_on(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=2, rounds=1), serve()
    for pair in loop.session.pairs(0):
        loop.session.add_label(f"{pair.id}", pair.id, "left")
    loop.record(0, 80.0)
    page.goto(server.page("cartpole-1"))
    page.wait_for_selector("h1:has-text('Finished')")
    page.click("#watch-view [data-steer=more]")
    page.wait_for_selector("#toast:has-text('It happens when the session goes on')")
    assert loop.session.where().phase == "collect"
    page.wait_for_selector("h1:has-text('Not running')")


# ---------------------------------------------------------------------------------------------- the two views


def test_the_dashboard_can_be_looked_at_while_pairs_wait(sized: Any, serve: Any, make_session: Any) -> None:
    page, loop, server = sized, make_session(pairs=4), serve()
    with loop.session.lock():
        page.goto(server.page("cartpole-1"))
        first = shown(page)
        page.click("#views [data-to=dashboard]")
        page.wait_for_selector("#watch-view:not([hidden])")
        page.wait_for_timeout(300)
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(300)
        assert loop.labels(0) == [None] * 4  # keys judge only what is on screen
        page.click("#to-label")
        assert shown(page) == first
        press(page, "ArrowLeft")
        wait_for(lambda: loop.labels(0)[0] == "left")


def test_the_agent_in_training_beside_the_round_before(sized: Any, serve: Any, make_session: Any) -> None:
    page, loop, server = sized, make_session(pairs=2), serve()
    session = loop.session
    for pair in session.pairs(0):
        session.add_label(f"{pair.id}", pair.id, "left")
    film(session, session.video(START))
    with session.lock():
        train(loop, 0)
        page.goto(server.page("cartpole-1"))
        page.wait_for_selector("#agent video")
        assert page.inner_text("#agent figcaption") == "The untrained agent · true return 21.5"
        assert page.locator("#before").is_hidden()
        film(session, session.live_video(), 1)
        page.wait_for_selector("#before video")
        assert page.inner_text("#agent figcaption") == "In training, a moment ago"
        assert page.inner_text("#before figcaption") == "The untrained agent · true return 21.5"
        for name in ("agent", "before"):  # on a phone one stands below the other, and what is not to be seen waits
            page.locator(f"#{name}").scroll_into_view_if_needed()
            playing = f"document.querySelector('#{name} video').currentTime > 0.1"
            wait_for(lambda playing=playing: page.evaluate(playing))
        old = page.locator("#agent video").get_attribute("src")
        film(session, session.live_video(), 2)
        wait_for(lambda: page.locator("#agent video").get_attribute("src") != old)
        session.partial(0, "train_agent").unlink()
        loop.record(0, 50.0)
        film(session, session.video(0), 3)
        page.wait_for_selector("#agent figcaption:has-text('after round 0 · true return 50')")
        assert page.locator("#before").is_hidden()


def test_the_star_and_going_on_from_a_round_of_the_wall(sized: Any, serve: Any, make_session: Any) -> None:
    page, loop, server = sized, make_session(pairs=2), serve()
    session = loop.session
    for pair in session.pairs(0):
        session.add_label(f"{pair.id}", pair.id, "left")
    for number in (START, 0):
        film(session, session.video(number), number + 5)
        loop.record(number, 20.0 + number)
    loop.collect(1, 2)
    with session.lock():
        page.goto(server.page("cartpole-1"))
        shown(page)
        page.click("#views [data-to=dashboard]")
        star = page.locator(".tile[data-round='0'] .star")
        star.click()
        wait_for(lambda: events(session, "star") == [{"round": 0}])
        page.wait_for_selector(".tile[data-round='0'] .star[aria-pressed=true]")
        assert page.evaluate("document.activeElement.className") == "star"  # the button lives on under the finger
        star.click()
        wait_for(lambda: events(session, "star")[-1] == {"round": None})
        assert page.locator(".tile[data-round='0'] .back").is_hidden()  # it goes on from there anyway
        page.click(".tile[data-round='-1'] .back")
        assert page.inner_text("#sure h2") == "Go on from the untrained agent?"
        page.keyboard.press("Escape")
        assert events(session, "plan") == []
        page.click(".tile[data-round='-1'] .back")
        page.click("#sure [value=yes]")
        wait_for(lambda: session.where().phase == "collect")
        assert events(session, "plan") == [{"agent": -1, "practice": False, "attempt": 0}]
        page.wait_for_selector(".tile[data-round='0'] .back:visible")
        assert "from the untrained agent" in page.locator("#round").text_content()
        loop.collect(1, 2, attempt=1)
        page.wait_for_selector("h1:has-text('2 pairs wait for you')")  # who chose the dashboard stays there
        page.click("#to-label")
        shown(page)
