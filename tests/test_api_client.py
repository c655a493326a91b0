"""A labeling client of someone else's, written against /docs and /openapi.json alone, over a real port."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from pages import serve, wait_for
from PIL import Image

__all__ = ["serve"]  # a fixture

PATIENCE = 10.0  # seconds


class Refused(Exception):
    """The one sentence of a 4xx answer."""


class LabelingClient:
    """Labels a session from afar: all it knows is the server's address, its key, and the pages at /docs."""

    def __init__(self, server: str, key: str, network: httpx.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=server, headers=headers, timeout=PATIENCE, transport=network)
        self.used: set[tuple[str, str]] = set()  # method and path of every request, for the test

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Tries until an answer comes, always with the same body and so the same id; a 4xx is for good."""
        self.used.add((method, path.partition("?")[0]))
        for delay in (0.05, 0.1, 0.2, 0.4, 0.8):
            try:
                answer = self.http.request(method, path, **more)
                if answer.status_code < 500:
                    break
            except httpx.TransportError:
                pass
            time.sleep(delay)
        if answer.status_code >= 400:
            raise Refused(answer.json()["detail"])
        return answer

    def find(self) -> str:
        """The newest session that waits for a person."""
        sessions = self.request("GET", "/api/sessions").json()["sessions"]
        wait = [s for s in sessions if "error" not in s and (s["labeler"], s["phase"]) == ("human", "label")]
        return str(wait[0]["name"])

    def states(self, session: str) -> Iterator[dict[str, Any]]:
        """The session's state, now and whenever it changes; opens the stream anew when it ends, or is silent too long."""
        path = f"/api/s/{session}/events"
        self.used.add(("GET", path))
        while True:
            with contextlib.suppress(httpx.TransportError), self.http.stream("GET", path) as stream:
                data: list[str] = []
                for line in stream.iter_lines():
                    if line.startswith("data:"):
                        data.append(line.removeprefix("data:").removeprefix(" "))
                    elif not line and data:
                        yield json.loads("\n".join(data))
                        data = []

    def pairs(self, session: str, ahead: int = 2) -> Iterator[dict[str, Any]]:
        """The pairs of the batch at hand, `ahead` of them fetched before they are needed, with their frames."""
        after: dict[str, int] = {}
        while batch := self.request("GET", f"/api/s/{session}/pairs", params={"limit": ahead, **after}).json()["pairs"]:
            for pair in batch:
                yield {**pair, "left": self.frames(pair["left"]), "right": self.frames(pair["right"])}
            after = {"after": batch[-1]["id"]}

    def frames(self, clip: dict[str, Any]) -> list[Image.Image]:
        """A clip as pictures, cut out of its sprite sheet."""
        sheet = Image.open(io.BytesIO(self.request("GET", clip["url"]).content)).convert("RGB")
        corners = [(i % clip["columns"], i // clip["columns"]) for i in range(clip["frames"])]
        width, height = clip["width"], clip["height"]
        return [sheet.crop((c * width, r * height, (c + 1) * width, (r + 1) * height)) for c, r in corners]

    def label(self, session: str, pair: int, choice: str) -> dict[str, Any]:
        body = {"id": uuid.uuid4().hex, "pair": pair, "choice": choice}
        return dict(self.request("POST", f"/api/s/{session}/labels", json=body).json())

    def undo(self, session: str) -> int:
        """Takes the newest label back; returns its pair."""
        return int(self.request("POST", f"/api/s/{session}/undo", json={"id": uuid.uuid4().hex}).json()["pair"]["id"])

    def last(self, session: str, limit: int) -> list[dict[str, Any]]:
        return list(self.request("GET", f"/api/s/{session}/labels", params={"limit": limit}).json())

    def label_batches(self, session: str, judge: Callable[[dict[str, Any]], str], batches: int) -> None:
        """Labels one batch after the other, as they come."""
        done: set[tuple[int, int]] = set()
        for state in self.states(session):
            if state["phase"] == "label" and (batch := (state["round"], state["attempt"])) not in done:
                for pair in self.pairs(session):
                    self.label(session, pair["id"], judge(pair))
                done.add(batch)
            if len(done) == batches:
                return


class Flaky(httpx.BaseTransport):
    """A network that loses the answer to every second request to write, after the server has got it."""

    def __init__(self) -> None:
        self.inner, self.posts = httpx.HTTPTransport(), 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.inner.handle_request(request)
        self.posts += request.method == "POST"
        if request.method == "POST" and self.posts % 2:
            answer.close()
            raise httpx.ReadError("lost")
        return answer

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def labeler(serve: Any, make_session: Any) -> Iterator[LabelingClient]:
    server = serve()
    client = LabelingClient(f"http://127.0.0.1:{server.port}", server.token, Flaky())
    yield client
    client.http.close()


def test_another_client_labels_batch_after_batch(labeler: LabelingClient, make_session: Any) -> None:
    make_session("acrobot-1", labeler="synthetic")
    loop = make_session(pairs=5)
    make_session("pong-1", pairs=0)
    session = labeler.find()
    assert session == "cartpole-1"

    clips = loop.session.clips()
    seen: list[int] = []

    def judge(pair: dict[str, Any]) -> str:
        """Looks at every pixel there is."""
        seen.append(pair["id"])
        stored = loop.session.pairs(ids=[pair["id"]])[0]
        for side, clip in (("left", clips.get(stored.left_clip)), ("right", clips.get(stored.right_clip))):
            if clip is None:
                continue  # of a later batch
            assert len(pair[side]) == 30
            with Image.open(loop.session.path / clip.sheet) as sheet:
                for i in (0, 7, 8, 29):
                    x, y = i % 8 * 120, i // 8 * 80
                    assert pair[side][i].tobytes() == sheet.convert("RGB").crop((x, y, x + 120, y + 80)).tobytes()
            assert pair[side][0].tobytes() != pair[side][-1].tobytes()
        return ("left", "right", "equal", "skip")[pair["position"] % 4]

    def train() -> None:
        wait_for(lambda: loop.session.where().phase == "train_reward", PATIENCE)
        loop.record(0, 50.0)
        loop.collect(1, 3)

    training = threading.Thread(target=train)
    training.start()
    labeler.label_batches(session, judge, batches=2)
    training.join()
    assert loop.labels(0) == ["left", "right", "equal", "skip", "left"]
    assert loop.labels(1) == ["left", "right", "equal"]
    assert seen == [p.id for p in loop.session.pairs()]
    assert loop.session.last_label_id() == 8  # nothing was counted twice, though half of the answers were lost

    assert labeler.undo(session) == seen[-1]
    assert labeler.label(session, seen[-1], "skip")["counts_from"] == 1
    old = labeler.last(session, 100)[0]
    assert (old["id"], old["round"], old["choice"]) == (seen[0], 0, "left")
    assert labeler.label(session, old["id"], "right")["counts_from"] == 1  # round 0 has trained without it
    assert loop.labels(0)[0] == "right"
    assert labeler.last(session, 1)[0]["id"] == old["id"]
    assert not list(labeler.pairs(session))

    documented = labeler.http.get("/openapi.json").json()["paths"]
    templates = {
        (method.upper(), re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)))
        for path, methods in documented.items() for method in methods
    }  # fmt: skip
    assert len(labeler.used) >= 10
    for method, path in labeler.used:
        assert any(method == m and re.fullmatch(template, path) for m, template in templates), (method, path)


def test_another_client_is_refused_in_sentences(labeler: LabelingClient, make_session: Any) -> None:
    loop = make_session(pairs=1)
    for refused, sentence in (
        (lambda: labeler.label("nobody", 1, "left"), r'No session "nobody".*cartpole-1'),
        (lambda: labeler.label("cartpole-1", 99, "left"), "no pair 99: ask for the next ones"),
        (lambda: labeler.label("cartpole-1", 1, "up"), "choice 'up'.*See /docs"),
        (lambda: labeler.undo("cartpole-1"), "nothing to take back"),
        (lambda: labeler.request("GET", "/api/s/cartpole-1/clips/99.png"), "no picture of a clip 99"),
    ):
        with pytest.raises(Refused, match=sentence):
            refused()
    labeler.http.headers["Authorization"] = "Bearer another-key"
    with pytest.raises(Refused, match="Authorization: Bearer"):
        labeler.find()
    assert loop.labels(0) == [None]


def test_the_documentation_says_what_such_a_client_needs(
    page: Any, serve: Any, make_session: Any, labeler: LabelingClient
) -> None:
    """In a browser without any other network (see the fixture `context`), and in openapi.json."""
    make_session()
    schemas = labeler.http.get("/openapi.json").json()["components"]["schemas"]
    for name in ("Clip", "Batch", "LabelBody", "LabelAnswer", "Trashed"):
        described = [f for f in schemas[name]["properties"].values() if "description" in f or "$ref" in str(f)]
        assert len(described) >= len(schemas[name]["properties"]) - 2, name
    assert "hold its last frame" in schemas["Clip"]["description"]
    server = serve()
    page.goto(server.url)
    page.click("text=HTTP API")
    text = page.inner_text("main")
    for word in (
        "Authorization: Bearer", "sprite sheet", "ended_frame", "server-sent events", "same id", "undo",
        "/api/s/{session}/thumbnail.png", "/api/s/{session}/title", "/api/s/{session}/archive",
        "/api/s/{session}/delete",
    ):  # fmt: skip
        assert word in text, word
    dead = """() => [...document.querySelectorAll("main a[href^='#']")].map((a) => a.getAttribute("href"))
      .filter((href) => !document.getElementById(href.slice(1)))"""
    assert page.evaluate(dead) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_was_said_of_another_session_of_the_name_is_refused(serve: Any, make_session: Any) -> None:
    loop = make_session("cartpole-1")
    server = serve()
    url = f"http://127.0.0.1:{server.port}/api/s/cartpole-1"
    with httpx.Client(headers={"Authorization": f"Bearer {server.token}"}) as client:
        created = client.get(url).json()["created"]
        for kind, said in (("labels", {"pair": 1, "choice": "left"}), ("undo", {})):
            other = client.post(f"{url}/{kind}", json={"id": f"other-{kind}", "created": created - 1, **said})
            assert other.status_code == 409
            assert "another one" in other.json()["detail"]
            assert loop.labels(0) == [None] * 6
        assert client.post(
            f"{url}/labels", json={"id": "ours", "created": created, "pair": 1, "choice": "left"}
        ).is_success
        assert loop.labels(0)[0] == "left"
