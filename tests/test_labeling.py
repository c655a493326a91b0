"""What makes labeling pleasant: the strip of the last pairs, keys to choose, swipes, calls, the tour; and that
axe-core finds nothing serious. With the HTTP API behind it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pages import API, SETTLE, client, press, serve, shown, wait_for
from videos import write_video

from rlhf_gym import store, tables

__all__ = ["client", "serve"]  # fixtures

IMAGES = {"image/png"}
ONE_FRAME = 250  # ms in which a page at rest surely draws


def rows(session: store.Session) -> list[Any]:
    with session.read() as db:
        return list(db.execute(tables.label_table.select().order_by(tables.label_table.c.id)))


def label_all(session: store.Session, number: int, *choices: str) -> None:
    for i, (pair, choice) in enumerate(zip(session.pairs(number, 0), choices, strict=True)):
        session.add_label(f"r{number}-{i}", pair.id, choice)


def strip(page: Any) -> list[tuple[int, str, str]]:
    """Pair, choice and sign of each thumbnail, once they are drawn: they wait for the frames that are due."""
    page.wait_for_timeout(500)
    return page.locator("#strip button").evaluate_all(
        "all => all.map((e) => [Number(e.dataset.pair), e.dataset.choice, e.lastElementChild.textContent])"
    )


# ---------------------------------------------------------------------------------------------- the API


def test_recent_labels_and_a_change_of_mind(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=4)
    ids = [p.id for p in loop.session.pairs(0, 0)]
    for i, choice in zip((2, 0, 1), ("left", "skip", "right"), strict=True):
        client.post(f"{API}/labels", json={"id": f"l{i}", "pair": ids[i], "choice": choice})
    client.post(f"{API}/labels", json={"id": "again", "pair": ids[2], "choice": "right", "strength": "strong"})
    recent = client.get(f"{API}/labels").json()
    assert [(r["id"], r["choice"], r["strength"]) for r in recent] == [
        (ids[0], "skip", "normal"), (ids[1], "right", "normal"), (ids[2], "right", "strong"),
    ]  # fmt: skip
    assert client.get(recent[0]["left"]["url"]).headers["content-type"] in IMAGES
    assert [r["id"] for r in client.get(f"{API}/labels?limit=1").json()] == [ids[2]]
    assert client.get(f"{API}/labels?limit=0").status_code == 422
    client.post(f"{API}/undo", json={"id": "u"})
    assert [r["id"] for r in client.get(f"{API}/labels").json()] == ids[:2]
    assert len(rows(loop.session)) == 5  # nothing was overwritten


def test_a_late_label_is_accepted_and_says_so(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=2)
    label_all(loop.session, 0, "left", "left")
    pair = loop.session.pairs(0, 0)[0].id

    def post(id: str) -> Any:
        answer = client.post(f"{API}/labels", json={"id": id, "pair": pair, "choice": "right"})
        return answer.status_code, answer.json()["counts_from"]

    assert post("in-time") == (201, 0)
    loop.session.partial(0, "train_reward").write_bytes(b"begun")
    assert post("begun") == (201, 1)
    loop.session.partial(0, "train_reward").unlink()
    loop.record(0, 50.0)
    assert post("trained") == (201, 1)
    assert loop.labels(0) == ["right", "left"]


def test_how_a_pair_was_watched_is_stored_within_bounds(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=1)
    pair = loop.session.pairs(0, 0)[0].id
    watched = {"response_ms": 4000, "replays": 2, "pauses": 1, "hidden_ms": 1500}
    assert client.post(f"{API}/labels", json={"id": "a", "pair": pair, "choice": "left", **watched}).status_code == 201
    assert client.post(f"{API}/labels", json={"id": "b", "pair": pair, "choice": "left"}).status_code == 201
    stored = [(r.response_ms, r.replays, r.pauses, r.hidden_ms) for r in rows(loop.session)]
    assert stored == [(4000, 2, 1, 1500), (None, None, None, None)]
    for name in ("replays", "pauses", "hidden_ms"):
        for bad in (-1, 2**31, 1.5, "1", True):
            body = {"id": "c", "pair": pair, "choice": "left", name: bad}
            assert client.post(f"{API}/labels", json=body).status_code == 422, (name, bad)
    for name in ("replays", "pauses", "hidden_ms"):
        with pytest.raises(ValueError, match="out of range"):
            loop.session.add_label("d", pair, "left", **{name: -1})
    assert len(rows(loop.session)) == 2


def add_repeats(loop: Any, number: int, of: list[int]) -> None:
    """Hidden repeats of these pairs join a round's batch."""
    start = len(loop.session.pairs(number, 0))
    repeats = [dict(round=number, attempt=0, position=start + i, kind="repeat", repeat_of=p) for i, p in enumerate(of)]
    loop.session.add_batch([], repeats)


def test_consistency_is_told_when_the_batch_is_done_and_never_before(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=5)
    add_repeats(loop, 0, [p.id for p in loop.session.pairs(0, 0)])
    choices = ["left", "right", "equal", "left", "skip", "right", "right", "equal", "equal"]
    pairs = loop.session.pairs(0, 0)
    for i, choice in enumerate(choices):
        loop.session.add_label(f"l{i}", pairs[i].id, choice)
    assert client.get(API).json()["consistency"] is None
    loop.session.add_label("last", pairs[9].id, "left")
    # mirrored: yes; the same side again: no; ties and a skip say nothing
    told = {"round": 0, "agreed": 1, "repeats": 2}
    assert client.get(API).json()["consistency"] == told
    loop.record(0, 50.0)
    assert client.get(API).json()["consistency"] == told  # while the next clips are collected
    loop.collect(1, 2)
    assert client.get(API).json()["consistency"] is None
    label_all(loop.session, 1, "left", "left")
    assert client.get(API).json()["consistency"] is None  # this batch had no repeats


def test_goals_are_kept_and_labels_can_be_forgotten(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=2)
    client.post(f"{API}/goal", json={"text": "Fall over."})
    goals = client.get(f"{API}/goals").json()
    assert [g["text"] for g in goals] == ["Keep the pole up.", "Fall over."]
    label_all(loop.session, 0, "left", "right")
    answer = client.post(f"{API}/forget")
    assert answer.json() == {"until_label": loop.session.last_label_id()}
    [event] = loop.session.events("forget")
    assert (event["round"], event["payload"]) == (0, {"until_label": 2})
    assert loop.labels(0) == ["left", "right"]  # on disk they stay


# ---------------------------------------------------------------------------------------------- the strip


def test_the_strip_shows_the_last_ten_and_changes_one(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=13), serve()
    ids = [p.id for p in loop.session.pairs(0, 0)]
    page.goto(server.page("cartpole-1"))
    keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Shift+ArrowLeft"] + ["ArrowRight"] * 7
    for key in keys:
        press(page, key)
    page.wait_for_selector(f"#strip button[data-pair='{ids[11]}']")
    assert strip(page) == [
        [ids[2], "equal", "="], [ids[3], "skip", "?"], [ids[4], "left", "←←"], *([i, "right", "→"] for i in ids[5:12]),
    ]  # fmt: skip
    painted = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0 && v < 200)"
    assert page.locator("#strip canvas").evaluate_all(f"all => all.map({painted})") == [True] * 20

    page.get_by_role("button", name="Pair 4: can’t tell. Change it").click()
    assert shown(page) == ids[3]
    assert page.inner_text("#change-note span >> nth=0") == "You said: can’t tell. Say it anew, or"
    assert page.inner_text("#count") == "changing a label"
    press(page, "ArrowLeft")
    assert shown(page) == ids[12]  # where one was
    assert page.inner_text("#count").startswith("13 of 13")
    assert page.locator("#change-note").is_hidden()
    wait_for(lambda: loop.labels(0)[3] == "left")
    assert strip(page)[-1] == [ids[3], "left", "←"]

    page.reload()
    assert shown(page) == ids[12]
    page.wait_for_function("() => document.querySelectorAll('#strip button').length === 10")
    assert strip(page)[-1] == [ids[3], "left", "←"]
    page.wait_for_function(f"() => [...document.querySelectorAll('#strip canvas')].every({painted})")
    page.keyboard.press("z")  # undo takes back what was said last
    page.wait_for_selector(f"#stage[data-pair='{ids[3]}']")
    wait_for(lambda: loop.labels(0)[3] is None)
    assert ids[3] not in [pair for pair, _, _ in strip(page)]


@pytest.mark.parametrize("leave", ["Escape", "Backspace", "button"])
def test_a_pair_of_the_strip_can_be_left_as_it_was(page: Any, serve: Any, make_session: Any, leave: str) -> None:
    loop, server = make_session(pairs=3), serve()
    first, second, _ = (p.id for p in loop.session.pairs(0, 0))
    page.goto(server.page("cartpole-1"))
    press(page, "ArrowLeft")
    page.click("#strip button")
    assert shown(page) == first
    page.wait_for_timeout(SETTLE)
    if leave == "button":
        page.click("#keep")
    else:
        page.keyboard.press(leave)
    assert shown(page) == second
    page.wait_for_timeout(ONE_FRAME)
    assert loop.labels(0) == ["left", None, None]
    assert len(rows(loop.session)) == 1


def test_a_label_of_a_trained_round_counts_from_the_next(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=2), serve()
    label_all(loop.session, 0, "left", "right")
    loop.record(0, 50.0)
    loop.collect(1, 2)
    page.goto(server.page("cartpole-1"))
    now = loop.session.pairs(1, 0)[0].id
    assert shown(page) == now
    page.locator("#strip button").first.click()
    page.wait_for_selector("#change-note:has-text('Counts from the next round.')")
    press(page, "ArrowUp")
    page.wait_for_selector("#toast:has-text('counts from the next round')")
    assert loop.labels(0) == ["equal", "right"]
    assert shown(page) == now
    assert page.inner_text("#count").startswith("1 of 2")
    assert "counts from the next round" in page.locator("#strip button.late").get_attribute("aria-label")
    page.keyboard.press("z")
    page.wait_for_selector("#toast:has-text('nothing to take back')")  # undo stays within this batch
    assert loop.labels(0) == ["equal", "right"]


# ---------------------------------------------------------------------------------------------- what is logged


HIDDEN = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_replays_pauses_and_hidden_time_are_logged(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=3, frames=8), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    for key in (" ", " ", "r", "r", ","):  # pause, on, twice from the start, a frame back pauses again
        page.keyboard.press(key)
    page.evaluate(HIDDEN, True)
    page.wait_for_timeout(600)
    page.evaluate(HIDDEN, False)
    press(page, "ArrowLeft")
    page.wait_for_timeout(1300)  # 8 frames and the hold take 0.97 s: once anew
    press(page, "ArrowRight")
    wait_for(lambda: len(rows(loop.session)) == 2)
    first, second = rows(loop.session)
    assert (first.replays, first.pauses) == (2, 2)
    assert 600 <= first.hidden_ms < first.response_ms
    assert (second.replays, second.pauses, second.hidden_ms) == (1, 0, 0)


def test_the_training_view_says_how_consistent_one_was(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=2), serve()
    add_repeats(loop, 0, [p.id for p in loop.session.pairs(0, 0)])
    page.goto(server.page("cartpole-1"))
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowLeft"):
        assert "agreed" not in page.inner_text("body")
        press(page, key)
    page.wait_for_selector("#consistency:has-text('you agreed with yourself in 1 of 2.')")


# ---------------------------------------------------------------------------------------------- keys


def test_the_left_hand_set_and_a_key_of_ones_own(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=8), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    page.keyboard.press("?")
    page.get_by_text("Left hand").click()
    assert page.locator("#keys button").first.inner_text() == "A"
    page.keyboard.press("Escape")
    assert page.locator(".choices kbd").all_inner_texts() == ["A", "W", "S", "D"]
    for key in ("a", "d", "w", "s", "Shift+D"):
        press(page, key)
    press(page, "ArrowLeft")  # means nothing now
    wait_for(lambda: loop.labels(0)[:5] == ["left", "right", "equal", "skip", "right"])
    assert [p.strength for p in loop.session.pairs(0, 0)][4:6] == ["strong", "normal"]
    press(page, "q")
    wait_for(lambda: loop.labels(0)[4] is None)

    page.keyboard.press("?")
    page.click("#keys [data-does=left]")
    assert page.inner_text("#keys [data-does=left]") == "press a key"
    page.keyboard.press("r")  # was: from the first frame, which gets the A
    assert page.inner_text("#keys [data-does=left]") == "R"
    assert page.inner_text("#keys [data-does=restart]") == "A"
    page.keyboard.press("Escape")
    page.wait_for_selector("#menu", state="hidden")
    page.reload()
    assert page.locator(".choices kbd").first.inner_text() == "R"
    press(page, "a")
    press(page, "r")
    wait_for(lambda: loop.labels(0)[4:] == ["left", None, None, None])

    page.keyboard.press("?")
    page.click("#usual-keys")
    assert page.locator("#keys button").first.inner_text() == "A"
    page.click("#keys [data-does=right]")
    page.keyboard.press("Escape")  # asks no more, and the dialog stays
    assert page.inner_text("#keys [data-does=right]") == "D"
    assert page.locator("#menu").is_visible()


def test_a_tablet_shows_its_keys_once_one_is_pressed(browser: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=2), serve()
    context = browser.new_context(viewport={"width": 1180, "height": 820}, has_touch=True, is_mobile=True)
    with contextlib.closing(context):
        tablet = context.new_page()
        tablet.goto(server.page("cartpole-1"))
        shown(tablet)
        assert tablet.evaluate("matchMedia('(hover: none)').matches")
        assert tablet.locator(".choices kbd:visible").count() == 0
        tablet.keyboard.press(".")  # one frame on
        assert tablet.locator(".choices kbd:visible").all_inner_texts() == ["←", "↑", "↓", "→"]
        tablet.keyboard.press("?")
        assert tablet.locator(".keys-help").is_visible()
        assert "Backspace takes the last label back" in " ".join(tablet.inner_text(".keys-help").split())
        tablet.keyboard.press("Escape")
        press(tablet, "ArrowRight")
        press(tablet, "Backspace")
        press(tablet, "ArrowLeft")
        wait_for(lambda: loop.labels(0) == ["left", None])


# ---------------------------------------------------------------------------------------------- swipes


SWIPE = """([x, y]) => {
  const stage = document.getElementById("stage");
  const fire = (type, dx, dy) => stage.dispatchEvent(new PointerEvent(type, {
    pointerType: "touch", isPrimary: true, pointerId: 7, bubbles: true, clientX: 200 + dx, clientY: 300 + dy }));
  fire("pointerdown", 0, 0);
  fire("pointermove", x / 2, y / 2);
  fire("pointermove", x, y);
  const hint = document.getElementById("swipe-hint");
  const said = hint.hidden ? "" : hint.textContent;
  fire("pointerup", x, y);
  return said;
}"""


@pytest.fixture
def phone(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, device_scale_factor=2)
    context.set_default_timeout(10_000)
    with contextlib.closing(context):
        yield context.new_page()


@pytest.mark.parametrize("upright", [True, False])
def test_swipes_go_towards_the_better_clip(phone: Any, serve: Any, make_session: Any, upright: bool) -> None:
    loop, server = make_session(pairs=6, width=300, height=200), serve()
    if not upright:
        phone.set_viewport_size({"width": 844, "height": 390})
    phone.goto(server.page("cartpole-1"))
    shown(phone)
    assert phone.locator("#stage.stacked").count() == upright
    moves = {"left": (-90, 5), "right": (90, 5), "up": (5, -90), "down": (5, 90)}
    order = ("up", "down", "right", "left") if upright else ("left", "right", "up", "down")
    said = []
    for direction in order:
        phone.wait_for_timeout(SETTLE)
        said.append(phone.evaluate(SWIPE, list(moves[direction])))
    assert phone.evaluate(SWIPE, [20, -20]) == ""  # a tap that trembles
    assert said == (["Upper better", "Lower better"] if upright else ["Left better", "Right better"]) + [
        "Equal", "Can’t tell",
    ]  # fmt: skip
    wait_for(lambda: loop.labels(0) == ["left", "right", "equal", "skip", None, None])
    assert phone.evaluate("getComputedStyle(document.getElementById('stage')).touchAction") == "none"


# ---------------------------------------------------------------------------------------------- calling back


CALLS = """
  window.calls = [];
  window.Notification = class {
    static permission = "default";
    static async requestPermission() { return (this.permission = "granted"); }
    constructor(title, { body }) { calls.push(`${title} | ${body}`); }
    close() { calls.push("closed"); }
  };
  const start = OscillatorNode.prototype.start;
  OscillatorNode.prototype.start = function (...args) { calls.push("note"); return start.apply(this, args); };
"""


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Notify me", ["2 pairs to compare | cartpole-1", "closed"]),
        ("With a sound", ["note"] * 4),  # two to try it, two when clips are ready
        ("No", []),
    ],
)
def test_a_hidden_tab_calls_when_clips_are_ready(
    page: Any, serve: Any, make_session: Any, answer: str, expected: list[str]
) -> None:
    loop, server = make_session(pairs=1), serve()
    page.add_init_script(CALLS)
    page.goto(server.page("cartpole-1"))
    with loop.session.lock():
        press(page, "ArrowLeft")
        page.wait_for_selector("#ask-call:visible")
        page.get_by_role("button", name=answer, exact=True).click()
        assert page.locator("#ask-call").is_hidden()
        page.evaluate(HIDDEN, True)
        loop.record(0, 50.0)
        loop.collect(1, 2)
        page.wait_for_function("() => document.title.startsWith('● Label 2 more')")
        assert page.get_attribute("link[rel=icon]", "href") == "/static/icon-call.svg"
        page.evaluate(HIDDEN, False)
        assert page.get_attribute("link[rel=icon]", "href") == "/static/icon.svg"
        page.wait_for_function("() => document.title.startsWith('Label 2 more')")
        assert page.evaluate("calls") == expected
        for key in ("ArrowLeft", "ArrowLeft"):
            press(page, key)
        page.wait_for_selector("#watch-view")
        assert page.locator("#ask-call").is_hidden()  # asked once


def test_no_call_to_someone_who_looks(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=1), serve()
    page.add_init_script(CALLS + "localStorage.setItem('rlhf-gym call', 'sound');")
    page.goto(server.page("cartpole-1"))
    press(page, "ArrowLeft")
    page.wait_for_selector("#watch-view")
    loop.record(0, 50.0)
    loop.collect(1, 2)
    shown(page)
    assert page.title().startswith("Label 2 more")
    assert page.get_attribute("link[rel=icon]", "href") == "/static/icon.svg"
    assert page.evaluate("calls") == []


# ---------------------------------------------------------------------------------------------- goal and tour


def test_after_a_new_goal_the_page_asks_about_older_labels(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=4), serve()

    def change(goal: str) -> None:
        page.click("#goal")
        page.keyboard.type(goal)
        page.keyboard.press("Enter")
        wait_for(lambda: loop.session.goal() == goal)

    page.goto(server.page("cartpole-1"))
    shown(page)
    change("Spin")
    page.wait_for_timeout(ONE_FRAME)
    assert page.locator("#goal-ask").is_hidden()  # there are no labels yet
    press(page, "ArrowLeft")
    wait_for(lambda: loop.labels(0)[0] == "left")
    page.wait_for_function("() => document.getElementById('count').textContent.startsWith('2 of 4')")
    change("Lean left")
    page.get_by_role("button", name="They count").click()
    assert page.locator("#goal-ask").is_hidden()
    assert loop.session.events("forget") == []
    change("Lean right")
    page.get_by_role("button", name="Start afresh").click()
    page.wait_for_selector("#toast:has-text('no longer count')")
    assert page.locator("#goal-ask").is_hidden()
    assert [e["payload"] for e in loop.session.events("forget")] == [{"until_label": 1}]
    page.click("#goal")
    page.wait_for_function("() => document.querySelectorAll('#goals option').length === 3")
    options = page.locator("#goals option").evaluate_all("all => all.map((o) => o.value)")
    assert options == ["Lean left", "Spin", "Keep the pole up."]


def test_the_tour_is_offered_once_and_labels_nothing(page: Any, serve: Any, make_session: Any) -> None:
    import numpy as np

    loop, server = make_session(pairs=2), serve()
    frames = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), dtype=np.uint8)
    write_video(loop.session.video(store.START), frames)
    page.goto(server.page("cartpole-1"))
    shown(page)
    page.get_by_role("button", name="Watch it untaught first").click()
    page.wait_for_function("() => document.querySelector('#tour video').currentTime > 0.05")
    assert page.evaluate("document.activeElement.textContent") == "Next"
    titles = []
    for _ in range(7):
        titles.append(page.inner_text("#tour-title"))
        page.wait_for_timeout(SETTLE)
        page.keyboard.press("ArrowLeft")  # means nothing here
        page.keyboard.press("Enter")
    assert len(set(titles)) == 7
    assert page.locator("#tour").is_hidden()
    page.wait_for_selector(".spot", state="detached")
    assert loop.labels(0) == [None, None]
    page.reload()
    shown(page)
    assert page.locator("#tour-offer").is_hidden()
    page.keyboard.press("?")
    page.click("#tour-button")
    page.keyboard.press("Escape")
    assert page.locator("#tour").is_hidden()


def test_the_tour_can_be_refused(page: Any, serve: Any, make_session: Any) -> None:
    _, server = make_session(pairs=2), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    assert page.get_by_role("button", name="Watch it untaught first").is_hidden()  # there is no video
    page.get_by_role("button", name="No, thanks").click()
    assert page.locator("#tour-offer").is_hidden()
    page.reload()
    shown(page)
    assert page.locator("#tour-offer").is_hidden()


# ---------------------------------------------------------------------------------------------- axe-core


def axe_finds(page: Any) -> list[str]:
    """What axe-core calls serious or critical on the page as it is."""
    from axe_playwright_python import sync_playwright as axe

    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text())
    results = page.evaluate("axe.run()")
    return [
        f"{v['id']}: {v['help']} ({v['nodes'][0]['html'][:120]}; {v['nodes'][0]['failureSummary'][:200]})"
        for v in results["violations"]
        if v["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_axe_finds_nothing_serious(
    browser: Any, serve: Any, make_session: Any, scheme: str, size: tuple[int, int]
) -> None:
    loop, server = make_session(pairs=3), serve()
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=size[0] < 500,
        reduced_motion="reduce",
    )  # fmt: skip
    found = {}
    with contextlib.closing(context), loop.session.lock():
        page = context.new_page()
        page.goto(server.page("cartpole-1"))
        shown(page)
        found["first visit"] = axe_finds(page)
        for key in ("ArrowLeft", "Shift+ArrowRight"):
            press(page, key)
        page.wait_for_timeout(ONE_FRAME)
        found["label"] = axe_finds(page)
        page.click("#strip button")
        found["change"] = axe_finds(page)
        page.click("#keep")
        page.click("#menu-button")
        found["keys"] = axe_finds(page)
        page.click("#tour-button")
        found["tour"] = axe_finds(page)
        page.keyboard.press("Escape")
        press(page, "ArrowUp")
        loop.session.write_progress(
            phase="train_agent", round=0, done=500, total=2000, unit="steps", speed=9812.3, eta=75.0, message="",
            numbers={"predicted": 0.834},
        )  # fmt: skip
        page.wait_for_selector("#ask-call:visible")
        page.wait_for_selector("text=500 of 2,000")
        found["train"] = axe_finds(page)
        for path in ("", "docs", "s/nobody"):
            page.goto(f"http://127.0.0.1:{server.port}/{path}")
            found[path or "list"] = axe_finds(page)
    assert {where: problems for where, problems in found.items() if problems} == {}


def test_axe_would_find_something(page: Any, serve: Any, make_session: Any) -> None:
    _, server = make_session(pairs=1), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    page.evaluate("document.getElementById('play').removeAttribute('aria-label')")
    page.evaluate("document.getElementById('play').removeAttribute('title')")
    assert any(problem.startswith("button-name") for problem in axe_finds(page))


# ---------------------------------------------------------------------------------------------- the benchmark


def test_the_benchmark_of_the_page_measures(browser: Any, request: pytest.FixtureRequest) -> None:
    chosen = request.config.getoption("--chromium")
    script = Path(__file__).parents[1] / "scripts" / "bench" / "page.py"
    command = [sys.executable, str(script), "--labels", "4", "--pace", "0.4", "--frames", "8", "--json"]
    done = subprocess.run([*command, *(["--chromium", chosen] if chosen else [])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for name in ("frame_ms", "disk_ms", "control_ms"):
        assert len(result[name]) == 4
        assert all(0 < ms < 5000 for ms in result[name]), result
