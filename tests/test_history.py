"""The browser of labels: what the API tells of every pair, and looking at one again in a real Chromium."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pages import API, GONE, SETTLE, client, press, serve, shown, wait_for
from test_labeling import add_repeats, axe_finds, label_all, rows

from rlhf_gym import store
from rlhf_gym.store import Opinion

__all__ = ["client", "serve"]  # fixtures

HISTORY = f"{API}/history"
REPLAY = "#replay .stage[data-ready=true]"


def ask(client: TestClient, **query: Any) -> dict[str, Any]:
    answer = client.get(HISTORY, params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(answer: dict[str, Any]) -> list[int]:
    return [p["id"] for p in answer["pairs"]]


def judged(make_session: Any, **settings: Any) -> tuple[Any, list[int]]:
    """A trained round of six labeled pairs with opinions, and the next batch, of which nothing is labeled."""
    loop = make_session(pairs=6, **settings)
    label_all(loop.session, 0, "left", "right", "equal", "skip", "left", "right")
    loop.record(0, 50.0)
    pairs = [p.id for p in loop.session.pairs(0, 0)]
    says = (0.9, 0.97, 0.6, 0.2, 0.4, 0.3)  # agrees, a likely slip, -, -, differs, agrees
    loop.session.put_opinions([Opinion(pair, 0, p, i % 2) for i, (pair, p) in enumerate(zip(pairs, says, strict=True))])
    loop.collect(1, 3)
    return loop, pairs


# ---------------------------------------------------------------------------------------------- the API


def test_a_session_without_labels_or_opinions(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=2)
    assert ask(client) == {"total": 0, "slips": 0, "slip_below": 0.2, "rounds": [], "judge": None, "pairs": []}
    first = loop.session.pairs(0, 0)[0]
    loop.session.add_label("a", first.id, "left", strength="strong", response_ms=1234)
    answer = ask(client, order="slips")
    assert (answer["total"], answer["rounds"], answer["judge"]) == (1, [0], None)
    [pair] = answer["pairs"]
    assert pair.items() >= {
        "id": first.id, "position": 0, "round": 0, "attempt": 0, "choice": "left", "strength": "strong",
        "response_ms": 1234, "counts": True, "p_left": None, "members": None, "p_said": None, "slip": False,
    }.items()  # fmt: skip
    assert pair["labeled"] == pytest.approx(rows(loop.session)[0].created)
    assert client.get(pair["left"]["url"]).status_code == 200


def test_likely_slips_come_first(client: TestClient, make_session: Any) -> None:
    _, pairs = judged(make_session)
    answer = ask(client, order="slips")
    a, b, c, d, e, f = pairs
    assert ids(answer) == [b, e, f, a, d, c]  # 0.03, 0.4, 0.7, 0.9, and what is not decided, newest first
    assert [p["p_said"] for p in answer["pairs"]] == [pytest.approx(p) for p in (0.03, 0.4, 0.7, 0.9)] + [None, None]
    assert [p["id"] for p in answer["pairs"] if p["slip"]] == [b]
    assert (answer["slips"], answer["judge"]) == (1, 0)
    assert [p["members"] for p in answer["pairs"]] == [1, 0, 1, 0, 1, 0]
    assert ids(ask(client)) == pairs[::-1]
    assert ids(ask(client, order="oldest")) == pairs


def test_a_slip_is_what_is_less_likely_than_a_fifth(client: TestClient, make_session: Any) -> None:
    loop, pairs = judged(make_session)
    loop.session.put_opinions([Opinion(pairs[0], 0, 0.2, 0), Opinion(pairs[4], 0, 0.1999, 0)])
    assert {p["id"]: p["slip"] for p in ask(client, choice="left")["pairs"]} == {pairs[0]: False, pairs[4]: True}


def test_filters_and_pages(client: TestClient, make_session: Any) -> None:
    loop, pairs = judged(make_session)
    loop.session.add_label("next", loop.session.pairs(1, 0)[1].id, "left")
    for choice, expected in {"left": [0, 4], "right": [1, 5], "equal": [2], "skip": [3], "none": []}.items():
        assert ids(ask(client, choice=choice, round=0, order="oldest")) == [pairs[i] for i in expected]
    answer = ask(client, round=1)
    assert (answer["total"], answer["rounds"]) == (1, [0, 1])  # the rounds to choose from stay
    assert ask(client, round=7)["pairs"] == []
    pages = [ask(client, order="oldest", limit=4, offset=offset) for offset in (0, 4, 8)]
    assert [len(page["pairs"]) for page in pages] == [4, 3, 0]
    assert [pair for page in pages for pair in ids(page)][:6] == pairs
    assert {page["total"] for page in pages} == {7}


def test_a_label_taken_back_or_never_given_is_listed_once_its_batch_is_over(
    client: TestClient, make_session: Any
) -> None:
    loop = make_session(pairs=3)
    a, b, c = (p.id for p in loop.session.pairs(0, 0))
    loop.session.add_label("1", a, "left", response_ms=5)
    loop.session.add_label("2", b, "left", response_ms=5)
    loop.session.add_label("3", b, None)
    assert ids(ask(client)) == [a]  # the batch is open: the rest is still to be judged
    assert ids(ask(client, choice="none")) == []
    client.post(f"{API}/close")
    assert ids(ask(client)) == [c, b, a]
    answer = ask(client, choice="none")
    assert ids(answer) == [c, b]
    assert [(p["choice"], p["labeled"], p["response_ms"], p["counts"]) for p in answer["pairs"]] == [
        (None, None, None, True)
    ] * 2


def test_hidden_repeats_stay_hidden_until_their_batch_is_over(client: TestClient, make_session: Any) -> None:
    loop, pairs = judged(make_session)
    add_repeats(loop, 1, pairs[:2])
    *_, again, other = loop.session.pairs(1, 0)
    loop.session.add_label("again", again.id, "right")
    loop.session.put_opinions([Opinion(p.id, 0, 0.9, 0) for p in loop.session.pairs()])
    assert other.id not in ids(ask(client))
    repeat = ask(client)["pairs"][0]
    assert (repeat["id"], repeat["kind"], repeat["repeat_of"]) == (again.id, None, None)
    assert ask(client, kind="repeat")["pairs"] == []
    assert again.id not in ids(ask(client, kind="uniform"))  # nor are the others of this batch marked as none
    assert ask(client, kind="uniform")["total"] == 6
    left = [p for p in loop.session.pairs(1, 0) if p.choice is None]
    for i, pair in enumerate(left):
        loop.session.add_label(f"rest-{i}", pair.id, "left")
    with loop.session.lock():  # all are labeled, but the loop waits a moment: the last can be taken back
        loop.session.write_progress(phase="label", round=1, done=5, total=5)
        client.app.state.sessions.open("cartpole-1")._running = (0.0, False)
        assert ask(client, kind="repeat")["pairs"] == []
        loop.session.write_progress(phase="train_reward", round=1, done=0, total=5)
        told = ask(client, kind="repeat", order="oldest")["pairs"]
    assert [(p["id"], p["repeat_of"]) for p in told] == [(again.id, pairs[0]), (other.id, pairs[1])]


def test_labels_set_aside_do_not_count_and_are_no_slips(client: TestClient, make_session: Any) -> None:
    loop, pairs = judged(make_session)
    client.post(f"{API}/forget")
    loop.session.add_label("anew", pairs[4], "left")
    answer = ask(client, order="slips")
    assert ids(answer) == [pairs[4], *(p for p in reversed(pairs) if p != pairs[4])]
    assert [p["counts"] for p in answer["pairs"]] == [True] + [False] * 5
    assert answer["slips"] == 0


def test_clips_that_were_never_drawn(client: TestClient, make_session: Any) -> None:
    loop, _ = judged(make_session)
    undraw(loop)
    for pair in ask(client)["pairs"]:
        assert (pair["left"]["url"], pair["right"]["url"]) == (None, None)


def undraw(loop: Any) -> None:
    nothing = dict.fromkeys(("sheet", "frame_width", "frame_height", "columns", "frames"))
    with loop.session.write() as db:
        db.execute(store.clip_table.update().values(**nothing))


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=101", "offset=-1", "offset=1e3", f"offset={2**53 + 1}", "round=-1", "round=x", f"round={2**70}",
        "choice=up", "choice=", "kind=secret", "order=random", "order=",
    ],
)  # fmt: skip
def test_a_bad_query_is_refused_with_a_sentence(client: TestClient, make_session: Any, query: str) -> None:
    make_session()
    answer = client.get(f"{HISTORY}?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(query.partition("=")[0])


def test_the_history_of_nobody(client: TestClient, make_session: Any) -> None:
    make_session()
    assert client.get("/api/s/nobody/history").status_code == 404


# ---------------------------------------------------------------------------------------------- in Chromium


SIZES = [(1280, 800), (390, 844)]


def look(page: Any, server: Any) -> None:
    """The dashboard, while labels are wanted."""
    page.goto(server.page("cartpole-1"))
    shown(page)
    page.click("#views [data-to=dashboard]")
    page.wait_for_selector("#labels-list button")


def cards(page: Any) -> list[int]:
    found: list[int] = page.locator("#labels-list button").evaluate_all("all => all.map((e) => Number(e.dataset.pair))")
    return found


def until_cards(page: Any, expected: list[int]) -> None:
    wait_in(page, lambda: cards(page) == expected)


def wait_in(page: Any, condition: Any) -> None:
    """Until it holds; the page runs meanwhile."""
    for _ in range(250):
        if condition():
            return
        page.wait_for_timeout(20)
    raise AssertionError("waited in vain")


def card(page: Any, pair: int) -> Any:
    return page.locator(f"#labels-list [data-pair='{pair}']")


def replay(page: Any, pair: int) -> None:
    card(page, pair).click()
    page.wait_for_selector(REPLAY)
    page.wait_for_timeout(SETTLE)


@pytest.fixture(params=SIZES, ids=["desktop", "phone"])
def sized(request: pytest.FixtureRequest, page: Any) -> Any:
    width, height = request.param
    page.set_viewport_size({"width": width, "height": height})
    return page


def test_the_list_is_filtered_and_slips_come_first(sized: Any, serve: Any, make_session: Any) -> None:
    page, server = sized, serve()
    _, pairs = judged(make_session)
    a, b, c, d, e, f = pairs
    look(page, server)
    assert cards(page) == [b, e, f, a, d, c]
    assert page.inner_text("#labels-count") == "6 pairs · 1 likely slip"
    texts = [text.replace("\u00a0", " ") for text in page.locator("#labels-list .model").all_inner_texts()]
    assert texts == [
        "the model would have said left, 97 %", "the model would have said right, 60 %", "the model agrees, 70 %",
        "the model agrees, 90 %", "the model leans to right, 80 %", "the model leans to left, 60 %",
    ]  # fmt: skip
    tones = page.locator("#labels-list button").evaluate_all("all => all.map((e) => e.dataset.tone)")
    assert tones == ["slip", "differs", "agrees", "agrees", "agrees", "agrees"]
    assert card(page, b).locator(".sign").inner_text() == "→"
    name = card(page, b).get_attribute("aria-label").replace("\u00a0", " ")
    assert name == "Round 0 · pair 2: Right better; the model would have said left, 97 %. Look again"
    page.select_option("[name=order]", "oldest")
    until_cards(page, pairs)
    page.select_option("[name=choice]", "left")
    until_cards(page, [a, e])
    page.select_option("[name=choice]", "none")
    until_cards(page, [])
    assert page.locator("#labels-none").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.getElementById('watch-view').scrollWidth <= innerWidth")


def test_pages_of_cards_with_the_pictures_in_view_alone(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=61), serve()
    pairs = [p.id for p in loop.session.pairs(0, 0)]
    for i, pair in enumerate(pairs):
        loop.session.add_label(f"l{i}", pair, "left")
    loop.record(0, 50.0)
    loop.collect(1, 2)
    page.set_viewport_size({"width": 390, "height": 844})
    look(page, server)
    assert cards(page) == pairs[:-25:-1]
    page.click("#labels-more")
    until_cards(page, pairs[:-49:-1])
    assert page.evaluate("document.activeElement.dataset.pair") == str(pairs[-25])
    page.click("#labels-more")
    until_cards(page, pairs[::-1])
    assert page.locator("#labels-more").is_hidden()
    kept = "all => all.filter((c) => c.width).length"
    card(page, pairs[0]).scroll_into_view_if_needed()
    wait_in(page, lambda: card(page, pairs[0]).locator("canvas").evaluate_all(kept) == 2)
    wait_in(page, lambda: 2 <= page.locator("#labels-list canvas").evaluate_all(kept) < 40)
    page.wait_for_timeout(500)
    painted = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0 && v < 200)"
    assert card(page, pairs[0]).locator("canvas").evaluate_all(f"all => all.map({painted})") == [True, True]


def test_a_replay_shows_the_same_frame_on_both_sides(sized: Any, serve: Any, make_session: Any) -> None:
    page, server = sized, serve()
    loop, pairs = judged(make_session)
    look(page, server)
    card(page, pairs[1]).focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(REPLAY)
    seen = page.evaluate(
        """() => new Promise((resolve) => {
          const seen = [];
          const look = () => {
            seen.push([...document.querySelectorAll("#replay canvas")].map((c) => Number(c.dataset.frame)));
            seen.length < 40 ? requestAnimationFrame(look) : resolve(seen);
          };
          look();
        })"""
    )
    assert all(left == right for left, right in seen)
    assert len({left for left, _ in seen}) > 5
    assert page.inner_text("#replay-title") == "Round 0 · pair 2"
    stacked = page.locator("#replay.stacked").count()
    assert page.inner_text("#replay .said") == ("Lower better" if stacked else "Right better")
    said = "upper" if stacked else "left"
    assert page.inner_text("#replay .model").replace("\u00a0", " ") == f"The model would have said {said}, 97 %."
    for key in (" ", "r", ".", "."):
        page.keyboard.press(key)
    frames = page.locator("#replay canvas").evaluate_all("all => all.map((c) => c.dataset.frame)")
    assert frames == ["2", "2"]
    page.keyboard.press("n")  # the next of the list: the one that differs
    wait_in(page, lambda: page.inner_text("#replay-title") == "Round 0 · pair 5")
    page.keyboard.press("p")
    page.get_by_role("button", name="The next pair").click()
    wait_in(page, lambda: page.inner_text("#replay-title") == "Round 0 · pair 5")
    page.wait_for_selector(REPLAY)
    for _ in range(12):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('#replay')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#replay", state="hidden")
    wait_in(page, lambda: page.evaluate("document.activeElement.dataset.pair") == str(pairs[4]))
    assert len(rows(loop.session)) == 6  # nothing was judged


def test_a_label_is_changed_by_key_and_by_button(sized: Any, serve: Any, make_session: Any) -> None:
    page, server = sized, serve()
    loop, pairs = judged(make_session)
    look(page, server)
    replay(page, pairs[1])
    page.keyboard.press("Shift+ArrowLeft")
    wait_for(lambda: len(rows(loop.session)) == 7)
    row = rows(loop.session)[-1]
    assert (row.pair, row.choice, row.strength, row.labeler) == (pairs[1], "left", "strong", "human")
    page.wait_for_selector("#toast:has-text('counts from the next round')")
    assert page.locator("#replay #toast").is_visible()  # in front of the dialog, not behind
    assert card(page, pairs[1]).get_attribute("data-choice") == "left"
    assert card(page, pairs[1]).locator(".sign").inner_text() == "←←"
    assert card(page, pairs[1]).locator(".said").inner_text() == "Left much better · counts from the next round"
    assert card(page, pairs[1]).get_attribute("data-tone") == "agrees"
    assert cards(page)[0] == pairs[1]  # it keeps its place
    page.keyboard.press("Shift+ArrowLeft")  # as it was: says nothing new
    page.get_by_role("button", name="Put it back").click()
    wait_for(lambda: loop.labels(0)[1] == "right")
    page.locator("#replay").get_by_role("button", name="Can’t tell").click()
    wait_for(lambda: loop.labels(0)[1] == "skip")
    page.keyboard.press(" ")  # after a click: pauses, and does not press the button again
    assert page.get_attribute("#replay .play", "aria-label") == "Play"
    assert len(rows(loop.session)) == 9
    page.keyboard.press("Escape")
    page.wait_for_selector("#replay", state="hidden")
    assert page.locator("#app > #toast").count() == 1
    assert loop.labels(1) == [None] * 3


def test_the_persons_own_keys_judge_here_too(page: Any, serve: Any, make_session: Any) -> None:
    server = serve()
    loop, pairs = judged(make_session)
    look(page, server)
    page.keyboard.press("?")
    page.get_by_text("Left hand").click()
    page.keyboard.press("Escape")
    replay(page, pairs[1])
    assert page.locator("#replay .choices kbd").all_inner_texts() == ["A", "W", "S", "D"]
    page.keyboard.press("w")
    wait_for(lambda: loop.labels(0)[1] == "equal")
    page.keyboard.press("q")  # undo
    wait_for(lambda: loop.labels(0)[1] == "right")
    page.keyboard.press("Escape")
    page.wait_for_selector("#replay", state="hidden")
    page.keyboard.press("?")  # the list of keys and the replay's buttons do not mix
    page.get_by_text("Arrow keys").click()
    page.keyboard.press("Escape")


def test_a_key_in_a_replay_never_labels_the_pair_of_the_batch(page: Any, serve: Any, make_session: Any) -> None:
    server = serve()
    loop, pairs = judged(make_session)
    loop.session.add_label("x", loop.session.pairs(1, 0)[0].id, "left")
    for pair in loop.session.pairs(1, 0)[1:]:
        loop.session.add_label(f"x{pair.id}", pair.id, "left")
    with loop.session.lock():
        loop.session.write_progress(phase="train_reward", round=1, done=0, total=3)
        page.goto(server.page("cartpole-1"))
        page.wait_for_selector("#labels-list button")
        replay(page, pairs[1])
        loop.record(1, 60.0)
        loop.collect(2, 2)  # clips are ready, while one looks at a pair of the past
        shown(page)
        page.wait_for_timeout(SETTLE)
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("ArrowUp")
        page.locator("#replay .verdicts").click()
        page.keyboard.press("ArrowLeft")
        wait_for(lambda: loop.labels(0)[1] == "left")
        page.keyboard.press("Escape")
        page.wait_for_selector("#replay", state="hidden")
        assert loop.labels(2) == [None, None]
        press(page, "ArrowRight")
        wait_for(lambda: loop.labels(2) == ["right", None])


def test_a_server_that_is_gone_and_back_loses_no_change(page: Any, serve: Any, make_session: Any, console: Any) -> None:
    console.allow(GONE)
    server = serve()
    loop, pairs = judged(make_session)
    look(page, server)
    replay(page, pairs[1])
    server.stop()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#replay #trouble:has-text('One label is not saved yet')")
    assert card(page, pairs[1]).get_attribute("data-choice") == "left"
    assert loop.labels(0)[1] == "right"
    serve(server.port)
    wait_in(page, lambda: loop.labels(0)[1] == "left")
    wait_in(page, lambda: page.locator("#trouble").is_hidden())
    assert len(rows(loop.session)) == 7


def test_the_list_follows_what_happens_elsewhere(page: Any, serve: Any, make_session: Any) -> None:
    server = serve()
    loop, pairs = judged(make_session)
    look(page, server)
    loop.session.add_label("elsewhere", pairs[1], "left")
    wait_in(page, lambda: card(page, pairs[1]).get_attribute("data-choice") == "left")
    wait_in(page, lambda: cards(page)[0] == pairs[4])


def test_clips_without_pictures_can_be_looked_up(page: Any, serve: Any, make_session: Any) -> None:
    server = serve()
    loop, pairs = judged(make_session)
    undraw(loop)
    loop.session.add_event("close", 1, attempt=0)
    page.goto(server.page("cartpole-1"))
    page.wait_for_selector("#labels-list button")
    card(page, pairs[1]).click()
    page.wait_for_selector("#replay .stage-note:has-text('no picture')")
    page.wait_for_timeout(SETTLE)
    page.keyboard.press("ArrowUp")
    wait_for(lambda: loop.labels(0)[1] == "equal")


def test_nothing_to_list_nothing_shown(page: Any, serve: Any, make_session: Any) -> None:
    _, server = make_session(pairs=2), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    page.click("#views [data-to=dashboard]")
    page.wait_for_timeout(500)
    assert page.locator("#labels").is_hidden()
    assert json.loads(page.get_attribute("#app", "data-state"))["labeled"] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_serious_among_labels(
    browser: Any, serve: Any, make_session: Any, scheme: str, size: tuple[int, int]
) -> None:
    server = serve()
    loop, pairs = judged(make_session)
    loop.session.add_event("forget", 0, until_label=1)
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=size[0] < 500,
        reduced_motion="reduce",
    )  # fmt: skip
    with contextlib.closing(context):
        page = context.new_page()
        look(page, server)
        found = {"list": axe_finds(page)}
        replay(page, pairs[1])
        assert page.get_attribute("#replay .play", "aria-label") == "Play"  # nothing moves unasked
        found["replay"] = axe_finds(page)
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#toast:has-text('next round')")
        found["changed"] = axe_finds(page)
    assert {where: problems for where, problems in found.items() if problems} == {}
