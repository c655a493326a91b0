"""Order among the sessions: titles, archive, trash and thumbnails, over the HTTP API and in a real Chromium."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from pages import API, client, serve, wait_for
from PIL import Image
from test_labeling import axe_finds

from rlhf_gym import catalog, tables

__all__ = ["client", "serve"]  # fixtures

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
TURN = 3500  # ms in which the list surely asks the server again


def listed(client: TestClient) -> dict[str, dict[str, Any]]:
    return {s["name"]: s for s in client.get("/api/sessions").json()["sessions"]}


def refusal(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert re.fullmatch(r"[^\n]{10,300}\.", detail)
    return str(detail)


# ---------------------------------------------------------------------------------------------- thumbnails


def test_a_thumbnail_is_one_frame_of_the_newest_clips(client: TestClient, make_session: Any) -> None:
    loop = make_session(width=600, height=400)
    url = listed(client)["cartpole-1"]["thumbnail"]
    answer = client.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert "immutable" in answer.headers["cache-control"]
    clip = loop.session.clips()[1]
    x, y = 18 % 8 * 600, 18 // 8 * 400  # frame 18 of 30
    with Image.open(io.BytesIO(answer.content)) as shown, Image.open(loop.session.path / clip.sheet) as sheet:
        assert shown.size == (320, 213)
        frame = sheet.crop((x, y, x + 600, y + 400))
        frame.thumbnail((320, 320))
        assert shown.tobytes() == frame.tobytes()

    loop.record(0, 50.0)
    loop.collect(1, 2)
    newer = listed(client)["cartpole-1"]["thumbnail"]
    assert newer != url
    assert "no-cache" in client.get(url).headers["cache-control"]  # the old address shows the new picture, for now
    os.utime(loop.session.path / loop.session.newest_picture().sheet, ns=(1, 1))
    assert listed(client)["cartpole-1"]["thumbnail"] != newer
    loop.record(1, 60.0)
    loop.session.add_batch([dict(round=2, attempt=0, path="a", fps=30.0, steps=9, seed=0, start=0)], [])
    assert client.get(newer).status_code == 200  # of a batch before, where the newest one has no pictures


def test_no_thumbnail_without_a_picture(client: TestClient, make_session: Any, tmp_path: Path) -> None:
    make_session(pairs=0)
    assert listed(client)["cartpole-1"]["thumbnail"] is None
    assert "no picture" in refusal(client.get(f"{API}/thumbnail.png"), 404)
    assert "<img" not in client.get("/").text
    assert client.get("/api/s/nobody/thumbnail.png").status_code == 404

    loop = make_session("pong-1")
    sheet = loop.session.path / loop.session.newest_picture().sheet
    sheet.write_bytes(sheet.read_bytes()[:200])
    refusal(client.get("/api/s/pong-1/thumbnail.png"), 404)
    sheet.write_bytes(b"no picture")
    refusal(client.get("/api/s/pong-1/thumbnail.png"), 404)
    (tmp_path / "secret.png").write_bytes(b"secret")
    for values in ({"columns": 0}, {"frames": 10_000, "columns": 8}, {"sheet": "../../secret.png"}):
        with loop.session.write() as db:
            db.execute(tables.clip_table.update().where(tables.clip_table.c.id == 1).values(**values))
        refusal(client.get("/api/s/pong-1/thumbnail.png"), 404)
    assert listed(client)["pong-1"]["thumbnail"] is None


# ---------------------------------------------------------------------------------------------- title, archive, trash


def test_a_title_is_an_event_and_the_name_stays(client: TestClient, make_session: Any) -> None:
    loop = make_session()
    answer = client.post(f"{API}/title", json={"text": "  Slow \n and\tsteady\0 "})
    assert answer.json() == {"name": "cartpole-1", "title": "Slow and steady", "archived": False}
    assert client.get(API).json()["title"] == "Slow and steady"
    assert listed(client)["cartpole-1"]["title"] == "Slow and steady"
    page = client.get("/s/cartpole-1").text
    assert "<title>Slow and steady · rlhf-gym</title>" in page
    client.post(f"{API}/title", json={"text": "Slow and steady"})  # nothing new
    client.post(f"{API}/title", json={"text": "<b>&"})
    assert "&lt;b&gt;&amp;" in client.get("/").text
    assert client.post(f"{API}/title", json={"text": " "}).json()["title"] == ""
    assert client.get(API).json()["title"] == "cartpole-1"
    assert [e["payload"]["text"] for e in loop.session.events("title")] == ["Slow and steady", "<b>&", ""]


def test_the_archive_is_an_event_too(client: TestClient, make_session: Any) -> None:
    loop = make_session()
    for archived in (True, True, False):
        assert client.post(f"{API}/archive", json={"archived": archived}).json()["archived"] is archived
        assert listed(client)["cartpole-1"]["archived"] is archived
        assert ("Archived (1)" in client.get("/").text) is archived
    assert [e["payload"] for e in loop.session.events("archived")] == [{"archived": True}, {"archived": False}]
    assert loop.session.where().phase == "label"  # all else stays as it is


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("title", {}), ("title", {"text": None}), ("title", {"text": 5}), ("title", {"text": "x" * 81}),
        ("title", {"text": "x", "name": "y"}), ("title", []), ("title", {"text": "\ud800"}), ("archive", {}),
        ("archive", {"archived": "true"}), ("archive", {"archived": 1}), ("archive", {"archived": None}),
    ],
)  # fmt: skip
def test_what_is_no_title_is_refused(client: TestClient, make_session: Any, what: str, body: Any) -> None:
    loop = make_session()
    headers = {"Content-Type": "application/json"}
    refusal(client.post(f"{API}/{what}", content=json.dumps(body), headers=headers), 422)
    assert loop.session.events() == []


@pytest.mark.parametrize("what", ["title", "archive", "delete"])
@pytest.mark.parametrize("name", ["nobody", ".trash", "..", "Pong", "%2e%2e%2fdata", "%00"])
def test_no_such_session(client: TestClient, make_session: Any, tmp_path: Path, what: str, name: str) -> None:
    make_session()
    answer = client.post(f"/api/s/{name}/{what}", json={"text": "x"} if what == "title" else {"archived": True})
    assert answer.status_code in (404, 422)
    assert answer.json()["detail"]
    assert catalog.session_names(tmp_path / "data") == ["cartpole-1"]


def test_deleting_moves_to_the_trash_and_moving_back_restores(
    client: TestClient, make_session: Any, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    make_session(pairs=2)
    assert client.get(API).json()["pairs"] == 2  # the server has it open
    answer = client.post(f"{API}/delete")
    assert answer.json() == {"moved_to": str((data / ".trash" / "cartpole-1").resolve())}
    assert listed(client) == {}
    assert client.get(API).status_code == 404
    refusal(client.post(f"{API}/delete"), 404)
    make_session(pairs=3)
    assert client.get(API).json()["pairs"] == 3
    assert client.post(f"{API}/delete").json()["moved_to"].endswith("cartpole-1-2")
    assert [p.name for p in data.iterdir()] == [".trash"]
    (data / ".trash" / "cartpole-1").rename(data / "cartpole-1")
    assert client.get(API).json()["pairs"] == 2
    assert [p.choice for p in catalog.open_session(data, "cartpole-1").pairs()] == [None, None]


def test_what_runs_is_not_deleted_and_what_is_torn_can_be(
    client: TestClient, make_session: Any, tmp_path: Path
) -> None:
    loop = make_session()
    with loop.session.lock():
        assert "is running: stop it" in refusal(client.post(f"{API}/delete"), 409)
    assert client.get(API).status_code == 200
    torn = make_session("torn-1").session
    torn.close()
    (torn.path / "config.json").write_text("{")
    assert client.post("/api/s/torn-1/delete").status_code == 200
    assert list(listed(client)) == ["cartpole-1"]


def test_an_open_event_stream_ends_with_its_session(serve: Any, make_session: Any, tmp_path: Path) -> None:
    make_session()
    server = serve()
    base, headers = f"http://127.0.0.1:{server.port}{API}", {"Authorization": f"Bearer {server.token}"}
    with httpx.stream("GET", f"{base}/events", headers=headers, timeout=10) as stream:
        lines = stream.iter_lines()
        assert any(line.startswith("data: ") for line in lines)
        assert httpx.post(f"{base}/delete", headers=headers).status_code == 200
        assert not any(line.startswith("data: ") for line in lines)  # and it ends
    assert [p.name for p in (tmp_path / "data").iterdir()] == [".trash"]


# ---------------------------------------------------------------------------------------------- in Chromium


@pytest.fixture(params=SIZES, ids=str)
def page(request: pytest.FixtureRequest, context: Any) -> Any:
    width, height = SIZES[request.param]
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": height})
    return page


def choose(page: Any, session: str, what: str) -> None:
    page.click(f"#more-{session}")
    page.click(f"[data-session='{session}'] [data-do={what}]")


def focused(page: Any) -> str:
    return str(page.evaluate("document.activeElement.id"))


def fits(page: Any) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_a_session_is_renamed(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(width=600, height=400), serve()
    page.goto(server.url)
    assert page.locator(".thumb img").evaluate("async (i) => (await i.decode(), [i.naturalWidth, i.naturalHeight])") == [
        320, 213,
    ]  # fmt: skip
    choose(page, "cartpole-1", "rename")
    page.keyboard.type("Never mind")
    page.keyboard.press("Escape")
    assert (page.inner_text(".card h2"), focused(page)) == ("cartpole-1", "more-cartpole-1")
    page.keyboard.press("Enter")  # and the same by keyboard alone
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.type("Slow and")
    loop.session.add_label("elsewhere", 1, "left")  # what is typed survives the list's refreshing
    page.wait_for_timeout(TURN)
    page.keyboard.type(" steady")
    assert fits(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:has-text('Slow and steady')")
    assert "cartpole-1 · CartPole-v1" in page.inner_text(".card")
    wait_for(lambda: loop.session.wishes().title == "Slow and steady")
    while focused(page) != "open-cartpole-1":
        page.wait_for_timeout(20)
    page.wait_for_selector(".facts dd:text-is('1')")  # the label from elsewhere
    page.keyboard.press("Enter")
    page.wait_for_selector("#title:has-text('Slow and steady')", state="attached")
    while not page.title().endswith("· Slow and steady"):
        page.wait_for_timeout(20)
    page.goto(server.url)
    choose(page, "cartpole-1", "rename")
    page.fill(".rename input", "")
    page.click("text=Save")
    page.wait_for_selector("h2:has-text('cartpole-1')")
    assert loop.session.wishes().title == ""


def test_a_session_is_archived_and_taken_back(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(), serve()
    make_session("pong-1", pairs=0)
    page.goto(server.url)
    choose(page, "cartpole-1", "archive")
    page.wait_for_selector("text=Archived (1)")
    assert page.locator(".card:visible h2").all_inner_texts() == ["pong-1"]
    assert "in the archive" in page.inner_text("#toast")
    while focused(page) != "archive-summary":
        page.wait_for_timeout(20)
    page.keyboard.press("Enter")
    assert page.locator(".card:visible h2").all_inner_texts() == ["pong-1", "cartpole-1"]
    loop.session.add_label("elsewhere", 1, "left")
    page.wait_for_selector("[data-session=cartpole-1] dd:text-is('1')")  # refreshed, and still open
    assert page.locator("#archive[open]").count() == 1
    assert focused(page) == "archive-summary"
    choose(page, "cartpole-1", "archive")
    page.wait_for_selector("#archive", state="detached")
    assert sorted(page.locator(".card:visible h2").all_inner_texts()) == ["cartpole-1", "pong-1"]
    assert not loop.session.wishes().archived


def test_a_session_is_deleted_after_one_question(
    page: Any, serve: Any, make_session: Any, tmp_path: Path, console: Any
) -> None:
    console.allow("status of 409")
    loop, server = make_session(), serve()
    make_session("pong-1", pairs=0)
    page.goto(server.url)
    choose(page, "cartpole-1", "delete")
    assert page.inner_text("#delete-title") == "Delete “cartpole-1”?"
    assert str(tmp_path / "data" / ".trash") in page.inner_text("#delete")
    page.wait_for_timeout(TURN)
    assert page.locator("#delete[open]").count() == 1
    page.keyboard.press("Enter")  # what a hasty Enter does
    page.wait_for_selector("#delete", state="hidden")
    with loop.session.lock():
        page.wait_for_selector("[data-session=cartpole-1] [data-do=delete]:disabled", state="attached")
        page.click("#more-cartpole-1")
        assert page.inner_text("[data-session=cartpole-1] [data-do=delete]") == "Delete (stop it first)"
        page.keyboard.press("Escape")
    page.wait_for_selector("[data-session=cartpole-1] [data-do=delete]:enabled", state="attached")
    choose(page, "cartpole-1", "delete")
    page.click("#delete .danger")
    page.wait_for_selector("[data-session=cartpole-1]", state="detached")
    moved = tmp_path / "data" / ".trash" / "cartpole-1"
    assert str(moved) in page.inner_text("#toast")
    assert moved.is_dir()
    assert fits(page)
    moved.rename(tmp_path / "data" / "cartpole-1")
    page.wait_for_selector("[data-session=cartpole-1]")


def test_menus_open_one_at_a_time_and_stay_open(page: Any, serve: Any, make_session: Any) -> None:
    loop, server = make_session(), serve()
    make_session("pong-1", pairs=0)
    page.goto(server.url)
    page.click("#more-pong-1")
    loop.session.add_label("elsewhere", 1, "left")
    page.wait_for_timeout(TURN)
    assert page.locator("[data-session=pong-1] .more[open]").count() == 1
    page.keyboard.press("Escape")
    assert (page.locator(".more[open]").count(), focused(page)) == (0, "more-pong-1")
    page.wait_for_selector("[data-session=cartpole-1] dd:text-is('1')")
    assert focused(page) == "more-pong-1"  # the list is new, the keyboard is where it was
    page.click("#more-cartpole-1")
    page.locator("#more-pong-1").focus()
    page.keyboard.press("Enter")
    assert page.locator(".more[open]").count() == 1
    page.click("h1")
    assert page.locator(".more[open]").count() == 0
    assert page.url.endswith("/")
    small = "all => all.filter((e) => e.offsetWidth && (e.offsetWidth < 44 || e.offsetHeight < 44)).length"
    page.click("#more-cartpole-1")
    assert page.locator(".more summary, .more button").evaluate_all(small) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_serious_on_the_list(
    browser: Any, serve: Any, make_session: Any, scheme: str, size: str
) -> None:
    make_session().session.add_event("title", 0, text="Slow and steady")
    make_session("old-1").session.add_event("archived", 0, archived=True)
    torn = make_session("torn-1").session.path / "config.json"
    torn.write_text("{")
    server = serve()
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    found = {}
    with contextlib.closing(context):
        page = context.new_page()
        page.goto(server.url)
        page.click("#archive-summary")
        page.click("#more-cartpole-1")
        found["menu"] = axe_finds(page)
        page.click("[data-session=cartpole-1] [data-do=rename]")
        found["rename"] = axe_finds(page)
        page.keyboard.press("Escape")
        choose(page, "cartpole-1", "delete")
        found["delete"] = axe_finds(page)
        page.click("#delete .danger")
        page.wait_for_selector("#toast:has-text('cartpole-1')")
        found["toast"] = axe_finds(page)
        page.goto(f"http://127.0.0.1:{server.port}/docs")
        found["docs"] = axe_finds(page)
    assert {where: problems for where, problems in found.items() if problems} == {}
