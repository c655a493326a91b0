"""The labeling page in a real Chromium."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from pages import GONE, READY, SETTLE, press, serve, shown, wait_for
from PIL import Image
from videos import write_video

from rlhf_gym import files, store, tables

__all__ = ["serve"]  # a fixture


def test_a_page_without_clips_asks_for_no_frames(page: Any, serve: Any, make_session: Any) -> None:
    """The processor is for the training meanwhile."""
    page.add_init_script(
        "window.asked = 0; const ask = requestAnimationFrame;"
        "window.requestAnimationFrame = (f) => { window.asked += 1; return ask(f); };"
    )

    def asked_in_a_moment() -> int:
        before = page.evaluate("asked")
        page.wait_for_timeout(400)
        return int(page.evaluate("asked")) - before

    loop, server = make_session(pairs=1, name="cartpole-1"), serve()
    with loop.session.lock():
        page.goto(server.page("cartpole-1"))
        shown(page)
        wait_for(lambda: asked_in_a_moment() > 5, 20)  # a busy machine draws few
        press(page, "ArrowLeft")
        page.wait_for_selector("#watch-view")
        page.wait_for_timeout(600)
        assert asked_in_a_moment() <= 1
        loop.record(0, 88.0)
        loop.collect(1, 2)
        shown(page)
        wait_for(lambda: asked_in_a_moment() > 5, 20)  # and again


def test_clips_fit_where_there_became_less_room_while_none_was_shown(page: Any, serve: Any, make_session: Any) -> None:
    """Here a sentence above them comes while the agent trains."""
    loop, server = make_session(pairs=1, name="cartpole-1", width=160, height=210), serve()

    def fits() -> bool:
        stage, canvas = (page.locator(name).first.bounding_box() for name in ("#stage", "#stage canvas"))
        under = canvas["y"] + canvas["height"] <= stage["y"] + stage["height"] + 1
        return under and canvas["y"] >= stage["y"] - 1 and canvas["height"] > stage["height"] - 3

    with loop.session.lock():
        page.goto(server.page("cartpole-1"))
        shown(page)
        page.evaluate("document.getElementById('tour-offer').hidden = true")
        wait_for(fits)
        press(page, "ArrowLeft")
        page.wait_for_selector("#watch-view")
        page.evaluate("document.querySelector('.goal-line').style.paddingTop = '80px'")
        loop.record(0, 88.0)
        loop.collect(1, 2)
        shown(page)
        wait_for(fits)


def test_the_tour_is_offered_for_the_first_labels_and_not_in_later_rounds(
    page: Any, serve: Any, make_session: Any
) -> None:
    loop, server = make_session(pairs=4, name="cartpole-1"), serve()
    with loop.session.lock():
        page.goto(server.page("cartpole-1"))
        shown(page)
        page.wait_for_selector("#tour-offer")
        for _ in range(4):
            press(page, "ArrowLeft")
        page.wait_for_selector("#watch-view")
        loop.record(0, 88.0)
        loop.collect(1, 2)
        shown(page)
        page.wait_for_selector("#round:has-text('1')")
        assert page.is_hidden("#tour-offer")


def test_a_batch_by_keyboard_and_on_to_training_and_the_next(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=5, name="cartpole-1"), serve()
    with loop.session.lock():
        page.goto(server.page("cartpole-1"))
        assert "token" not in page.url
        assert page.inner_text("#goal") == "Keep the pole up."
        assert page.inner_text("#count") == "1 of 5"
        pairs = [p.id for p in loop.session.pairs(0, 0)]
        for i, key in enumerate(("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")):
            assert shown(page) == pairs[i]
            press(page, key)
        assert re.fullmatch(r"5 of 5\s*about \d+ s left\s*\d\.\d s a label", page.inner_text("#count"))
        press(page, "Shift+ArrowRight")
        page.wait_for_selector("#watch-view")
        assert wait_for(lambda: loop.labels(0)) == ["left", "right", "equal", "skip", "right"]
        assert [p.strength for p in loop.session.pairs(0, 0)] == ["normal"] * 4 + ["strong"]
        with loop.session.read() as db:
            times = [row.response_ms for row in db.execute(tables.label_table.select())]
        assert all(150 <= t < 10_000 for t in times)

        loop.session.write_progress(
            phase="train_agent", round=0, done=500, total=2000, unit="steps", speed=9812.3, eta=75.0, message="",
            numbers={"predicted": 0.834},
        )  # fmt: skip
        page.wait_for_selector("text=500 of 2,000 steps · 9,812 steps/s · about 75 s left")
        assert page.inner_text("#now-title") == "Training the agent"
        assert page.inner_text("#now-numbers").split() == ["predicted", "0.83"]
        assert page.title() == "Training 25% · cartpole-1"

        loop.record(0, 88.0)
        loop.collect(1, 2)
        assert shown(page) == loop.session.pairs(1, 0)[0].id
        assert page.inner_text("#count").startswith("1 of 2")
        loop.session.write_progress(phase="label", round=1, done=0, total=2)
        press(page, "ArrowLeft")
        press(page, "ArrowLeft")
        wait_for(lambda: loop.labels(1) == ["left", "left"])
        page.wait_for_selector("text=That was the last one")  # the loop still waits a moment
        page.keyboard.press("z")
        press(page, "ArrowRight")
        wait_for(lambda: loop.labels(1) == ["left", "right"])
        loop.session.write_progress(phase="train_reward", round=1, done=0, total=2)
        page.wait_for_selector("#watch-view")


def test_both_clips_show_the_same_frame_of_their_sheets(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    seen = page.evaluate(
        """() => new Promise((resolve) => {
          const seen = [];
          const look = () => {
            seen.push([...document.querySelectorAll(".clip canvas")].map((c) => Number(c.dataset.frame)));
            seen.length < 50 ? requestAnimationFrame(look) : resolve(seen);
          };
          look();
        })"""
    )
    assert all(left == right for left, right in seen)
    assert len({left for left, _ in seen}) > 10

    page.keyboard.press(" ")
    page.keyboard.press("r")
    for _ in range(10):
        page.keyboard.press(".")
    page.keyboard.press(",")
    pair = loop.session.pairs(0, 0)[0]
    clips = loop.session.clips()
    for side, clip in ((0, clips[pair.left_clip]), (1, clips[pair.right_clip])):
        canvas = page.locator(".clip canvas").nth(side)
        assert canvas.get_attribute("data-frame") == "9"
        pixels = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
        x, y = 9 % clip.columns * clip.frame_width, 9 // clip.columns * clip.frame_height
        with Image.open(loop.session.path / clip.sheet) as sheet:
            frame = sheet.convert("RGBA").crop((x, y, x + clip.frame_width, y + clip.frame_height))
        assert bytes(pixels) == frame.tobytes()

    assert page.locator(".clip.ended").count() == 0
    for _ in range(15):  # to frame 24, where the right one's episode ends
        page.keyboard.press(".")
    assert page.locator(".clip.ended").evaluate_all("all => all.map((e) => e.dataset.side)") == ["right"]
    assert page.locator("figcaption:visible").all_inner_texts() == ["episode over"]


def test_undo_goes_back_step_by_step_even_after_a_reload(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=4), serve()
    page.goto(server.page("cartpole-1"))
    first, second, third, _ = (p.id for p in loop.session.pairs(0, 0))
    for _ in range(2):
        press(page, "ArrowLeft")
    assert shown(page) == third
    page.keyboard.press("Backspace")
    assert shown(page) == second
    page.keyboard.press("z")
    assert shown(page) == first
    assert page.inner_text("#count").startswith("1 of 4")
    wait_for(lambda: loop.labels(0) == [None] * 4)
    for key in ("ArrowRight", "ArrowUp"):
        press(page, key)
    wait_for(lambda: loop.labels(0) == ["right", "equal", None, None])
    page.reload()
    assert shown(page) == third
    page.click("#undo")
    page.wait_for_selector(f"#stage[data-pair='{second}']")
    press(page, "ArrowLeft")
    wait_for(lambda: loop.labels(0) == ["right", "left", None, None])
    assert page.inner_text("#toast") == ""


def test_one_long_press_never_labels_two(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=4), serve()
    page.goto(server.page("cartpole-1"))
    page.wait_for_selector(READY)
    page.wait_for_timeout(SETTLE)
    for _ in range(8):  # Playwright sends repeats while a key stays down
        page.keyboard.down("ArrowLeft")
        page.wait_for_timeout(60)
    page.keyboard.up("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # at once after a new pair: not a judgement
    page.wait_for_timeout(300)
    assert loop.labels(0) == ["left", "left", None, None]


def test_buttons_and_a_space_after_a_click(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=3), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    page.wait_for_timeout(SETTLE)
    page.get_by_role("button", name="Right better").click()
    press(page, " ")  # pauses; does not press the button again
    assert page.get_attribute("#play", "aria-label") == "Play"
    page.get_by_role("button", name="Can’t tell").click()
    wait_for(lambda: loop.labels(0) == ["right", "skip", None])


def test_a_server_that_restarts_loses_nothing(page: Any, serve: Any, make_session: Any, console: Any) -> None:
    console.allow(GONE)
    loop, server = make_session(pairs=5), serve()
    page.goto(server.page("cartpole-1"))
    press(page, "ArrowLeft")
    wait_for(lambda: loop.labels(0)[0] == "left")
    server.stop()
    press(page, "ArrowRight")
    press(page, "ArrowUp")
    page.wait_for_selector("#trouble:has-text('The server is gone')")
    page.wait_for_selector("#trouble:has-text('2 labels are not saved yet')")
    assert loop.labels(0) == ["left", None, None, None, None]
    serve(server.port)
    page.wait_for_selector("#trouble", state="hidden")
    wait_for(lambda: loop.labels(0) == ["left", "right", "equal", None, None])
    for key in ("ArrowDown", "ArrowLeft"):
        press(page, key)
    wait_for(lambda: loop.labels(0) == ["left", "right", "equal", "skip", "left"])
    page.wait_for_selector("#watch-view")
    with loop.session.read() as db:
        assert len(db.execute(tables.label_table.select()).all()) == 5


def test_an_unsaved_label_is_tried_again_and_survives_a_reload(
    page: Any, serve: Any, make_session: Any, console: Any
) -> None:
    console.allow(GONE + "|status of 503")
    loop, server = make_session(pairs=3), serve()
    page.goto(server.page("cartpole-1"))
    page.route("**/labels", lambda route: route.abort())
    press(page, "ArrowRight")
    page.wait_for_selector("#trouble:has-text('One label is not saved yet')")
    page.unroute_all(behavior="wait")
    page.on("dialog", lambda dialog: dialog.accept())  # the browser asks before it leaves
    page.reload()
    wait_for(lambda: loop.labels(0) == ["right", None, None])
    assert shown(page) == loop.session.pairs(0, 0)[1].id
    assert page.inner_text("#count") == "2 of 3"
    page.route("**/labels", lambda route: route.fulfill(status=503, json={"detail": "The database is busy."}))
    press(page, "ArrowUp")
    page.wait_for_selector("#trouble:has-text('The database is busy.')")
    page.unroute_all(behavior="wait")  # the event stream never broke: only the page's own patience helps
    wait_for(lambda: loop.labels(0) == ["right", "equal", None])
    page.wait_for_selector("#trouble", state="hidden")


def test_labels_of_another_tab_are_not_asked_again(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=3), serve()
    page.goto(server.page("cartpole-1"))
    first, second, _ = (p.id for p in loop.session.pairs(0, 0))
    assert shown(page) == first
    loop.session.add_label("elsewhere", first, "left")
    page.wait_for_selector(f"#stage[data-pair='{second}']")
    assert page.inner_text("#count") == "2 of 3"


@pytest.mark.parametrize(
    ("width", "height", "frame"),
    [(390, 844, (600, 400)), (390, 844, (160, 210)), (844, 390, (600, 400)), (1280, 720, (480, 480)),
     (3840, 2160, (160, 210))],
)  # fmt: skip
def test_everything_fits_without_scrolling(
    browser: Any, serve: Any, make_session: Any, width: int, height: int, frame: tuple[int, int]
) -> None:
    make_session(pairs=1, width=frame[0], height=frame[1], frames=4)
    server = serve()
    phone = width < 1000
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=2 if phone else 1, has_touch=phone
    )
    with contextlib.closing(context):
        page = context.new_page()
        page.goto(server.page("cartpole-1"))
        shown(page)
        scroll, inside, clips = page.evaluate(
            """() => {
              const boxes = (what) => [...document.querySelectorAll(what)].map((e) => e.getBoundingClientRect());
              const inside = boxes("canvas, .choices button, .undo, #goal, .topbar *").every((b) =>
                b.left >= 0 && b.top >= 0 && b.right <= innerWidth + 0.5 && b.bottom <= innerHeight + 0.5);
              const { scrollWidth, scrollHeight } = document.documentElement;
              const clips = boxes("canvas").map((b) => [b.left, b.top, b.width, b.height]);
              return [[scrollWidth - innerWidth, scrollHeight - innerHeight], inside, clips];
            }"""
        )
        assert scroll == [0, 0]
        assert inside
        (x1, y1, w1, h1), (x2, y2, w2, h2) = clips
        assert (w1, h1) == (w2, h2)
        assert abs(w1 / h1 - frame[0] / frame[1]) < 0.03
        assert x2 >= x1 + w1 or y2 >= y1 + h1  # they do not cover each other
        assert w1 * h1 > width * height / 12


def test_the_goal_can_be_edited(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    page.click("#goal")
    page.keyboard.type("Fall over, left 1")  # keys of the page mean nothing here
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    wait_for(lambda: loop.session.goal() == "Fall over, left 1")
    assert page.inner_text("#goal") == "Fall over, left 1"
    page.click("#goal")
    page.keyboard.type("never mind")
    page.keyboard.press("Escape")
    assert page.inner_text("#goal") == "Fall over, left 1"
    assert loop.labels(0) == [None] * 6
    loop.session.add_event("goal", 0, text="From elsewhere")
    page.wait_for_selector("#goal:has-text('From elsewhere')")


def test_help_and_closing_the_batch(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=3), serve()
    page.goto(server.page("cartpole-1"))
    press(page, "ArrowLeft")
    wait_for(lambda: loop.labels(0)[0])
    page.keyboard.press("?")
    page.wait_for_selector("#menu[open]")
    page.wait_for_timeout(SETTLE)
    page.keyboard.press("ArrowRight")  # means nothing while the list of keys is open
    assert "quarter speed" in page.inner_text("#keys")
    page.click("#close-button")
    page.wait_for_selector("#watch-view")
    assert loop.labels(0) == ["left", None, None]
    assert loop.session.where().phase == "train_reward"
    assert page.inner_text("#now-title") == "Not running"
    assert "rlhf-gym resume cartpole-1" in page.inner_text("#now-command")


def test_the_newest_video_plays(page: Any, serve: Any, make_session: Any) -> None:
    import numpy as np

    loop, server = make_session(pairs=0), serve()
    frames = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), dtype=np.uint8)
    write_video(loop.session.video(store.START), frames)
    with loop.session.lock():
        page.goto(server.page("cartpole-1"))
        page.wait_for_selector("#agent video")
        assert page.inner_text("#agent figcaption") == "The untrained agent · true return 21.5"
        page.wait_for_function("() => document.querySelector('#agent video').currentTime > 0.1")
        files.write_atomic(
            loop.session.video(0), loop.session.video(store.START).read_bytes()
        )  # whole, as the loop does
        loop.record(0, 75.0)
        page.wait_for_selector("#agent figcaption:has-text('after round 0 · true return 75')")


def test_the_list_keeps_itself_up_to_date(page: Any, serve: Any, make_session: Any) -> None:
    make_session(pairs=1)
    server = serve()
    page.goto(server.url)
    assert page.inner_text(".card h2") == "cartpole-1"
    make_session("pong-1", pairs=0)
    page.wait_for_selector(".card h2:has-text('pong-1')")
    page.click("text=cartpole-1")
    shown(page)
