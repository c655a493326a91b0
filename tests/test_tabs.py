"""Nothing is lost in the browser: several tabs of one server, a label sent twice, a server or a database that is away."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from pages import API, client, label, press, serve, settle, shown, wait_for
from processes import TINY, Spawned
from test_labeling import rows

from rlhf_gym import catalog, store, tables
from webui.state import Open

__all__ = ["client", "serve"]  # fixtures

LABELS = "**/labels"  # where labels are posted
# what Chromium says of a server that is killed, by how far its answer had come
REFUSED = (
    "ERR_FAILED|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_INCOMPLETE_CHUNKED|ERR_EMPTY_RESPONSE"
    "|ERR_CONTENT_LENGTH_MISMATCH"
)


def open_tabs(context: Any, server: Any, *names: str) -> list[Any]:
    """A tab of each of these sessions; in a headless Chromium all of them count as visible."""
    tabs = [context.new_page() for _ in names]
    for tab, name in zip(tabs, names, strict=True):
        tab.goto(server.page(name))
    return tabs


def follow(tab: Any, pair: int, seconds: float = 15.0) -> None:
    """Waits until the tab shows this pair."""
    tab.wait_for_selector(f"#stage[data-ready=true][data-pair='{pair}']", timeout=1000 * seconds)


def wait_in(tab: Any, condition: Any, seconds: float = 15.0) -> None:
    """Like wait_for, while the browser's requests are routed."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        tab.wait_for_timeout(20)


def strip(tab: Any) -> list[list[Any]]:
    """Pair and choice of each thumbnail."""
    said: list[list[Any]] = tab.locator("#strip button").evaluate_all(
        "all => all.map((e) => [Number(e.dataset.pair), e.dataset.choice])"
    )
    return said


def count(tab: Any) -> str:
    return str(tab.locator("#count span").first.inner_text())


# ---------------------------------------------------------------------------------------------- more tabs than six


def test_eight_tabs_of_a_session_all_work(context: Any, serve: Any, make_session: Any) -> None:
    """A browser keeps six connections to a server, and an event stream takes one for good."""
    loop, server = make_session(pairs=4), serve()
    first, second, third, _ = (p.id for p in loop.session.pairs(0, 0))
    tabs = open_tabs(context, server, *["cartpole-1"] * 8)
    assert [shown(tab) for tab in tabs] == [first] * 8
    tabs[-1].click("#views [data-to=dashboard]")
    tabs[-1].wait_for_selector("#watch-view:visible")
    press(tabs[6], "ArrowLeft")
    wait_for(lambda: loop.labels(0)[0] == "left")
    for tab in tabs[:7]:
        follow(tab, second)
    for tab in tabs[:3]:
        tab.close()  # the one that came first, too
    press(tabs[5], "ArrowRight")
    wait_for(lambda: loop.labels(0)[1] == "right")
    for tab in tabs[3:7]:
        follow(tab, third)
    tabs[7].wait_for_selector("#labels-count:has-text('2 pairs')", timeout=3000)
    tabs[6].goto(server.url)
    assert tabs[6].inner_text(".card h2") == "cartpole-1"


def test_tabs_of_many_sessions_leave_connections_free(
    context: Any, serve: Any, make_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"cartpole-{i}" for i in range(1, 7)]
    loops, server = [make_session(name, pairs=2) for name in names], serve()
    read, asked = Open.state, []

    def state(self: Open, fresh: bool = True) -> Any:
        asked.append((self.session.name, fresh))
        return read(self, fresh)

    monkeypatch.setattr(Open, "state", state)

    def streamed() -> list[str]:
        """Sessions whose event stream is open: it looks four times a second for something new."""
        asked.clear()
        time.sleep(0.6)
        return sorted({name for name, fresh in asked if not fresh})

    tabs = open_tabs(context, server, *names)
    for tab, loop in zip(tabs, loops, strict=True):
        first, second = (p.id for p in loop.session.pairs(0, 0))
        assert shown(tab) == first
        loop.session.add_label("elsewhere", first, "left")
        follow(tab, second, 3)
    assert streamed() == names[:3]
    for tab in tabs[:2]:
        tab.close()
    wait_for(lambda: streamed() == names[2:5])
    press(tabs[5], "ArrowUp")  # asked about every second
    wait_for(lambda: loops[5].labels(0) == ["left", "equal"])
    tabs[5].wait_for_selector("#watch-view", timeout=3000)


@pytest.mark.parametrize("worker", ["none", "broken"])
def test_a_browser_without_shared_workers(page: Any, serve: Any, make_session: Any, console: Any, worker: str) -> None:
    console.allow("status of 404")
    loop, server = make_session(pairs=2), serve()
    page.add_init_script(
        "delete window.SharedWorker;"
        if worker == "none"
        else "const Real = SharedWorker; SharedWorker = class extends Real { constructor() { super('/static/none.js'); } };"
    )
    page.goto(server.page("cartpole-1"))
    first, second = (p.id for p in loop.session.pairs(0, 0))
    assert shown(page) == first
    loop.session.add_label("elsewhere", first, "left")
    follow(page, second)


# ---------------------------------------------------------------------------------------------- a label sent twice


@pytest.mark.parametrize("second", ["left", "right"])
def test_two_tabs_answer_the_same_pair_and_the_newest_counts(
    context: Any, serve: Any, make_session: Any, second: str
) -> None:
    loop, server = make_session(pairs=3), serve()
    ids = [p.id for p in loop.session.pairs(0, 0)]
    tabs = open_tabs(context, server, "cartpole-1", "cartpole-1")
    held: list[Any] = []
    for tab, choice in zip(tabs, ("left", second), strict=True):
        tab.route(LABELS, lambda route: held.append(route))
        press(tab, f"Arrow{choice.title()}")
    wait_in(tabs[1], lambda: len(held) == 2)
    for number, route in enumerate(held, 1):
        route.continue_()
        wait_in(tabs[1], lambda n=number: len(rows(loop.session)) == n)
    assert [row.choice for row in rows(loop.session)] == ["left", second]
    assert loop.labels(0) == [second, None, None]
    for tab in tabs:
        wait_in(tab, lambda t=tab: strip(t) == [[ids[0], second]] and count(t) == "2 of 3")
        assert shown(tab) == ids[1]


def test_a_label_whose_answer_is_lost_or_that_two_tabs_hold_counts_once(
    context: Any, serve: Any, make_session: Any, console: Any
) -> None:
    console.allow(REFUSED)
    loop, server = make_session(pairs=3), serve()
    first, second, _ = (p.id for p in loop.session.pairs(0, 0))
    [tab] = open_tabs(context, server, "cartpole-1")
    lost: list[int] = []

    def lose(route: Any) -> None:
        lost.append(route.fetch().status)
        route.abort()

    tab.route(LABELS, lose)
    press(tab, "ArrowLeft")
    wait_in(tab, lambda: lost == [201, 200])
    tab.wait_for_selector("#trouble:has-text('One label is not saved yet')")
    waiting = tab.evaluate("Object.entries(sessionStorage)")
    assert len(waiting) == 1
    copy = context.new_page()  # a tab that is duplicated has its labels, too
    copy.add_init_script(f"sessionStorage.setItem({waiting[0][0]!r}, {waiting[0][1]!r})")
    copy.goto(server.page("cartpole-1"))
    follow(copy, second)
    tab.unroute_all(behavior="wait")  # one more attempt may be under way
    tab.wait_for_selector("#trouble", state="hidden")
    assert [(row.pair, row.choice) for row in rows(loop.session)] == [(first, "left")]
    assert [count(t) for t in (tab, copy)] == ["2 of 3"] * 2


def test_a_double_click_is_one_label(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=3), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    settle(page)
    box = page.get_by_role("button", name="Right better").bounding_box()
    page.mouse.click(box["x"] + 5, box["y"] + 5, click_count=2, delay=200)  # the next pair has been there for a while
    wait_for(lambda: loop.labels(0)[0] == "right")
    page.wait_for_timeout(200)
    assert loop.labels(0) == ["right", None, None]


# ---------------------------------------------------------------------------------------------- two tabs, one truth


def test_what_is_done_in_one_tab_is_seen_in_the_other(context: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=5), serve()
    ids = [p.id for p in loop.session.pairs(0, 0)]
    one, two = open_tabs(context, server, "cartpole-1", "cartpole-1")
    for key in ("ArrowLeft", "ArrowLeft"):
        press(one, key)
    follow(two, ids[2])
    wait_in(two, lambda: count(two) == "3 of 5")
    since = two.get_attribute("#stage", "data-since")

    one.keyboard.press("z")
    wait_in(two, lambda: count(two) == "2 of 5" and strip(two) == [[ids[0], "left"]])
    assert shown(two) == ids[2]  # what is on screen stays, and does not begin anew
    assert two.get_attribute("#stage", "data-since") == since
    press(two, "ArrowUp")
    follow(two, ids[1])  # it is to be labeled again

    wait_in(one, lambda: strip(one) == [[ids[0], "left"], [ids[2], "equal"]])
    one.locator("#strip button").first.click()
    press(one, "ArrowRight")  # a change of mind
    wait_in(two, lambda: strip(two) == [[ids[2], "equal"], [ids[0], "right"]])
    two.keyboard.press("z")  # takes back what was said last, in whichever tab
    follow(two, ids[0])
    wait_for(lambda: loop.labels(0) == [None, None, "equal", None, None])
    for tab in (one, two):
        wait_in(tab, lambda t=tab: count(t) == "2 of 5" and strip(t) == [[ids[2], "equal"]])

    two.locator("#strip button").first.click()
    press(one, "ArrowDown")
    wait_in(two, lambda: len(strip(two)) == 2)
    assert two.locator("#change-note").is_visible()  # a look at an old pair is not cut short either
    assert shown(two) == ids[2]


def test_a_tab_by_itself_asks_for_pairs_once(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=8), serve()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/pairs" in request.url else None)
    page.goto(server.page("cartpole-1"))
    for key in ("ArrowLeft", "ArrowRight", "z", "ArrowUp", "ArrowLeft", "ArrowLeft", "z", "z"):
        press(page, key)
    wait_for(lambda: loop.labels(0) == ["left", "equal", *[None] * 6])
    page.wait_for_timeout(600)  # longer than the stream takes to tell
    assert len(asked) == 1


def test_goal_pause_and_stop_are_seen_in_both_tabs(context: Any, serve: Any, make_session: Any, console: Any) -> None:
    console.allow(REFUSED)
    loop, server = make_session(pairs=1), serve()
    one, two = open_tabs(context, server, "cartpole-1", "cartpole-1")
    two.click("#goal")
    one.click("#goal")
    one.keyboard.type("Spin")
    one.keyboard.press("Enter")
    wait_for(lambda: loop.session.goal() == "Spin")
    two.wait_for_timeout(500)
    two.keyboard.press("Escape")
    two.wait_for_selector("#goal:has-text('Spin')", timeout=1000)  # not the one from before it was edited here

    with loop.session.lock():
        press(one, "ArrowLeft")
        training = dict(phase="train_agent", round=0, done=5, total=20, unit="steps")
        loop.session.write_progress(**training)
        one.click("#watch-view [data-steer=pause]")
        wait_for(lambda: loop.session.events("pause"))
        loop.session.write_progress(**training, paused=True)  # as the loop does
        for tab in (one, two):
            tab.wait_for_selector("#watch-view [data-steer=continue]")
        two.click("#watch-view [data-steer=stop]")
        two.click("#sure [value=yes]")
        wait_for(lambda: loop.session.events("stop"))
        two.wait_for_selector("#sure", state="hidden")
    for tab in (one, two):
        tab.wait_for_selector("#now-title:has-text('Not running')")
    server.stop()
    for tab in (one, two):
        tab.wait_for_selector("#trouble:has-text('Stopped; everything is kept.')")


# ---------------------------------------------------------------------------------------------- labels that do not fit


def test_a_pair_of_another_session_is_refused(client: TestClient, make_session: Any) -> None:
    make_session("cartpole-1", pairs=1)
    other = make_session("cartpole-2", pairs=3).session.pairs(0, 0)[2].id
    answer = client.post(f"{API}/labels", json=label(other))
    assert (answer.status_code, answer.json()["detail"]) == (
        404, f"Session 'cartpole-1' has no pair {other}: ask for the next ones.",
    )  # fmt: skip


def test_the_page_says_why_a_label_was_refused_and_goes_on(
    page: Any, serve: Any, make_session: Any, console: Any
) -> None:
    console.allow("status of (404|422)")
    loop, server = make_session(pairs=3), serve()
    first, second, third = (p.id for p in loop.session.pairs(0, 0))
    page.goto(server.page("cartpole-1"))
    shown(page)
    with loop.session.write() as db:
        db.execute(tables.pair_table.delete().where(tables.pair_table.c.id == first))
    press(page, "ArrowLeft")
    page.wait_for_selector(f"#toast:has-text('has no pair {first}')")
    wait_in(page, lambda: count(page) == "1 of 2")
    assert shown(page) == second
    page.evaluate(
        """(pair) => {
          const key = `rlhf-gym outbox cartpole-1 ${JSON.parse(document.getElementById("app").dataset.state).created}`;
          const body = { id: "not an id!", pair, choice: "left" };
          sessionStorage.setItem(key, JSON.stringify([{ kind: "labels", body, batch: "0-0", round: 0 }]));
        }""",
        third,
    )
    page.reload()
    page.wait_for_selector("#toast:has-text(\"id 'not an id!'\")")
    press(page, "ArrowRight")
    wait_for(lambda: loop.labels(0) == ["right", None])
    assert shown(page) == third
    assert page.evaluate("sessionStorage.length") == 0


def test_labels_for_a_session_never_go_to_another_of_its_name(
    page: Any, serve: Any, make_session: Any, console: Any, tmp_path: Path
) -> None:
    console.allow(REFUSED)
    loop, server = make_session(pairs=3), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    server.stop()
    press(page, "ArrowLeft")
    page.wait_for_selector("#trouble:has-text('One label is not saved yet')")
    loop.session.close()
    loop.session.path.rename(tmp_path / "elsewhere")
    new = make_session(pairs=4)
    page.on("dialog", lambda dialog: dialog.accept())  # the browser asks before it leaves
    serve(server.port)
    page.wait_for_selector("#count:has-text('1 of 4')")
    page.wait_for_timeout(500)
    assert new.labels(0) == [None] * 4


def test_the_page_of_a_session_that_was_deleted_says_so(
    page: Any, serve: Any, make_session: Any, console: Any, tmp_path: Path
) -> None:
    console.allow("status of 404")
    loop, server = make_session(pairs=2), serve()
    make_session("other-1")
    page.goto(server.page("cartpole-1"))
    shown(page)
    moved_to = server._sessions.trash("cartpole-1")
    page.wait_for_selector("#trouble:has-text('No session \"cartpole-1\"')")
    assert "Sessions: other-1." in page.inner_text("#trouble")
    assert "gone" not in page.inner_text("#trouble")
    moved_to.rename(loop.session.path)
    page.wait_for_selector("#trouble", state="hidden")
    press(page, "ArrowLeft")
    wait_for(lambda: loop.labels(0) == ["left", None])


# ---------------------------------------------------------------------------------------------- a database that is away


@pytest.fixture
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The server has nothing to complain about."""
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno >= logging.WARNING] == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The data directory, on a disk of two megabytes."""
    data = tmp_path / "data"
    data.mkdir()
    if not sys.platform.startswith("linux") or os.getuid() != 0:
        pytest.skip("only root on Linux may mount a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", data], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield data
    subprocess.run(["umount", "--lazy", data], check=True)


def lock_database(session: store.Session) -> sqlite3.Connection:
    """Another program writes to the database, and takes its time."""
    other = sqlite3.connect(session.path / "session.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    return other


def impatient(opened: Open, ms: int) -> None:
    """Lets a server wait that long for a locked database, not half a minute."""
    sa.event.listen(opened.session.engine, "connect", lambda db, _: db.execute(f"PRAGMA busy_timeout={ms}"))
    opened.session.engine.dispose()


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.full)])
def test_labels_wait_while_another_program_writes(page: Any, serve: Any, make_session: Any, seconds: int) -> None:
    loop, server = make_session(pairs=4), serve()
    posted: list[int] = []
    page.on("response", lambda r: posted.append(r.status) if r.request.method == "POST" else None)
    page.goto(server.page("cartpole-1"))
    with closing(lock_database(loop.session)) as other:
        press(page, "ArrowLeft")
        page.wait_for_selector("#trouble:has-text('One label is not saved yet')", timeout=2000)
        for key in ("ArrowRight", "ArrowUp"):
            press(page, key)
        page.wait_for_selector("#trouble:has-text('3 labels are not saved yet')", timeout=2000)
        page.wait_for_timeout(1000 * seconds)
        assert "gone" not in page.inner_text("#trouble")
        assert count(page) == "4 of 4"
        assert (posted, loop.labels(0)) == ([], [None] * 4)
        other.execute("ROLLBACK")
    page.wait_for_selector("#trouble", state="hidden", timeout=3000)
    wait_in(page, lambda: loop.labels(0) == ["left", "right", "equal", None])
    wait_in(page, lambda: len(posted) >= 3)  # a label is on disk before the browser hears of it
    assert posted == [201, 201, 201]


@pytest.mark.usefixtures("no_traceback")
def test_a_database_that_stays_locked_is_told_in_a_sentence(
    page: Any, serve: Any, make_session: Any, console: Any
) -> None:
    console.allow("status of 503")
    loop, server = make_session(pairs=2), serve()
    page.goto(server.page("cartpole-1"))
    shown(page)
    impatient(server._sessions.open("cartpole-1"), 200)
    with closing(lock_database(loop.session)) as other:
        press(page, "ArrowRight")
        page.wait_for_selector("#trouble:has-text('cannot be used just now (database is locked)')")
        assert page.inner_text("#trouble").startswith("One label is not saved yet, trying again.")
        assert loop.labels(0) == [None, None]
        other.execute("ROLLBACK")
    page.wait_for_selector("#trouble", state="hidden")
    wait_in(page, lambda: loop.labels(0) == ["right", None])


def test_too_many_who_wait_for_the_database_are_told_so(
    client: TestClient, make_session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = make_session(pairs=1)
    pool = client.app.state.sessions.open("cartpole-1").session.engine.pool  # type: ignore[attr-defined]
    monkeypatch.setattr(pool, "_timeout", 0.1)
    busy = [pool.connect() for _ in range(15)]
    answer = client.post(f"{API}/labels", json=label(loop.session.pairs(0, 0)[0].id))
    assert answer.status_code == 503
    assert re.fullmatch(r"[^\n]*\(too many wait for it\): nothing was changed, try again\.", answer.json()["detail"])
    for connection in busy:
        connection.close()


@pytest.mark.usefixtures("no_traceback")
def test_a_label_waits_until_the_full_disk_has_room(
    small_disk: Path, page: Any, serve: Any, make_session: Any, console: Any
) -> None:
    console.allow("status of 503")
    loop, server = make_session(pairs=3, frames=8), serve()
    page.goto(server.page("cartpole-1"))
    press(page, "ArrowLeft")
    wait_in(page, lambda: loop.labels(0) == ["left", None, None])
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    press(page, "ArrowRight")
    page.wait_for_selector("#trouble:has-text('(database or disk is full): nothing was changed')")
    assert loop.labels(0) == ["left", None, None]
    filler.unlink()
    page.wait_for_selector("#trouble", state="hidden")
    wait_in(page, lambda: loop.labels(0) == ["left", "right", None])
    press(page, "ArrowUp")
    wait_in(page, lambda: loop.labels(0) == ["left", "right", "equal"])


# ---------------------------------------------------------------------------------------------- a server that is killed


def test_labels_given_while_the_program_is_killed_and_resumed(page: Any, console: Any, tmp_path: Path) -> None:
    """The tab is even reloaded meanwhile: what waits in it stays."""
    console.allow(REFUSED)
    settings = dict(zip(TINY[::2], TINY[1::2], strict=True))
    del settings["--labeler"]
    words = [word for pair in settings.items() for word in pair]
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    here = ("--no-browser", "--port", port)
    with Spawned("run", "CartPole-v1", "--session", "one", *here, *words, cwd=tmp_path) as one:
        url = one.wait_for(r"http://\S+\?token=\S+").group()
        one.wait_for_phase("label", "one")
        session = catalog.open_session(tmp_path / "data", "one")
        page.goto(url)
        press(page, "ArrowLeft")
        wait_in(page, lambda: session.last_label_id() == 1 and page.evaluate("sessionStorage.length") == 0)
        one.process.kill()
        one.process.wait()
    for key in ("ArrowRight", "ArrowUp"):
        press(page, key)
    page.wait_for_selector("#trouble:has-text('The server is gone')")
    page.wait_for_selector("#trouble:has-text('2 labels are not saved yet')")
    page.on("dialog", lambda dialog: dialog.accept())  # the browser asks before it leaves
    address = page.url
    with pytest.raises(Exception, match="ERR_CONNECTION_REFUSED"):
        page.reload()
    assert session.last_label_id() == 1
    with Spawned("resume", "one", *here, cwd=tmp_path) as one:
        one.wait_for(r"http://\S+\?token=\S+")
        page.goto(address)  # the browser tries again by itself, too
        wait_in(page, lambda: session.last_label_id() == 3)
        assert [p.choice for p in session.pairs(0, 0)] == ["left", "right", "equal", None, None, None]
        wait_in(page, lambda: count(page) == "4 of 6")
        one.process.kill()
        one.process.wait()
        press(page, "ArrowLeft")
        page.wait_for_selector("#trouble:has-text('One label is not saved yet')")
    with Spawned("resume", "one", *here, cwd=tmp_path):  # this time the tab just stays open
        page.wait_for_selector("#trouble", state="hidden", timeout=60_000)
        wait_in(page, lambda: [p.choice for p in session.pairs(0, 0)][:4] == ["left", "right", "equal", "left"])
        for key in ("ArrowRight", "ArrowDown"):
            press(page, key)
        page.wait_for_selector("#watch-view")
        wait_in(page, lambda: session.last_label_id() == 6)
        page.goto("about:blank")
    session.close()
