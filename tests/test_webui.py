"""The pages' HTTP API with a test client, and the server with real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from pages import API, TOKEN, client, label, serve, stranger, wait_for

from rlhf_gym import catalog, store, tables
from rlhf_gym.config import UserError
from webui import charts
from webui.app import create_app
from webui.server import Server, _listen, load_token

# ---------------------------------------------------------------------------------------------- reading

__all__ = ["client", "serve", "stranger"]  # fixtures


def test_state_and_pairs(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=5)
    state = client.get(API).json()
    assert (state["view"], state["phase"], state["round"]) == ("label", "label", 0)
    assert (state["pairs"], state["labeled"], state["running"]) == (5, 0, False)
    assert state["goal"] == "Keep the pole up."
    assert state["true_returns"] == [{"round": -1, "mean": 21.5}]

    first, *rest = loop.session.pairs(0, 0)
    loop.session.add_label("x", first.id, "skip")
    batch = client.get(f"{API}/pairs", params={"limit": 2}).json()
    assert (batch["total"], batch["labeled"]) == (5, 1)
    assert [p["id"] for p in batch["pairs"]] == [rest[0].id, rest[1].id]
    clip = batch["pairs"][0]["right"]
    assert clip.items() >= {"width": 120, "height": 80, "columns": 8, "frames": 30, "fps": 30.0}.items()
    more = client.get(f"{API}/pairs", params={"after": rest[1].id}).json()
    assert [p["id"] for p in more["pairs"]] == [p.id for p in rest[2:]]


def test_pairs_say_nothing_that_could_sway_the_person(client: TestClient, make_session: Any) -> None:
    make_session()
    pair = client.get(f"{API}/pairs").json()["pairs"][0]
    assert set(pair) == {"id", "position", "left", "right"}
    assert set(pair["left"]) == {"id", "url", "width", "height", "columns", "frames", "fps", "ended_frame"}


def test_sheets_are_served_and_kept_only_under_their_version(client: TestClient, make_session: Any) -> None:
    loop = make_session()
    clip = client.get(f"{API}/pairs").json()["pairs"][0]["left"]
    answer = client.get(clip["url"])
    sheet = loop.session.path / loop.session.clips([clip["id"]])[clip["id"]].sheet
    assert answer.content == sheet.read_bytes()
    assert answer.headers["content-type"] == "image/png"
    assert "immutable" in answer.headers["cache-control"]
    for stale in (f"{API}/clips/{clip['id']}.png", f"{API}/clips/{clip['id']}.png?v=1"):
        assert "no-cache" in client.get(stale).headers["cache-control"]
    os.utime(sheet, ns=(1, 1))  # another picture of the same name has another address
    assert client.get(f"{API}/pairs").json()["pairs"][0]["left"]["url"] != clip["url"]


def test_sheet_outside_the_session_is_refused(client: TestClient, make_session: Any, tmp_path: Path) -> None:
    loop = make_session()
    (tmp_path / "secret.png").write_bytes(b"secret")
    with loop.session.write() as db:
        db.execute(tables.clip_table.update().where(tables.clip_table.c.id == 1).values(sheet="../../secret.png"))
    assert client.get(f"{API}/clips/1.png").status_code == 404
    assert client.get(f"{API}/pairs").json()["pairs"][0]["left"]["url"] is None


def test_videos_answer_ranges(client: TestClient, make_session: Any) -> None:
    loop = make_session()
    loop.session.video(store.START).write_bytes(bytes(range(200)))
    url = client.get(API).json()["video"]["url"]
    assert url.startswith(f"{API}/videos/start.mp4?v=")
    part = client.get(url, headers={"Range": "bytes=100-149"})
    assert part.status_code == 206
    assert part.content == bytes(range(100, 150))
    assert client.get(url, headers={"Range": "bytes=900-"}).status_code == 416
    loop.record(0, 30.0)
    loop.session.video(0).write_bytes(b"newer")
    assert client.get(API).json()["video"]["round"] == 0


@pytest.mark.parametrize(
    "path",
    [
        "/api/s/nobody", "/s/nobody", "/api/s/..%2f..%2fetc", "/api/s/CartPole", f"{API}/clips/999.png",
        f"{API}/videos/r007.mp4", f"{API}/videos/r000000.mp4", "/nothing", "/static/../app.py", "/static/%2e%2e/app.py",
        "/static/js/..%2f..%2f..%2fapp.py", f"{API}/clips/..%2f..%2fconfig.json", "/api/s/%00", "/static/",
    ],
)  # fmt: skip
def test_what_is_not_there_is_404(client: TestClient, make_session: Any, path: str) -> None:
    make_session()
    answer = client.get(path)
    assert answer.status_code in (404, 422), answer.text
    assert "detail" in answer.json()
    assert "create_app" not in answer.text


def test_unknown_session_names_the_known_ones(client: TestClient, make_session: Any) -> None:
    make_session()
    assert re.search(r'No session "pong".*cartpole-1.*rlhf-gym run', client.get("/api/s/pong").json()["detail"])
    page = client.get("/s/pong", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert "<html" in page.text
    assert "cartpole-1" in page.text


@pytest.mark.parametrize(
    ("running", "rounds", "phase", "progress", "view"),
    [
        (False, 0, "label", None, "label"),  # one can label while nothing runs
        (True, 0, "label", None, "label"),
        (True, 0, "train_reward", {"phase": "train_reward"}, "train"),
        (False, 0, "train_reward", {"phase": "train_reward"}, "paused"),
        (False, 0, "collect", None, "paused"),
        (False, 1, "finished", None, "finished"),
        (True, 1, "finished", {"phase": "finished"}, "finished"),
        (False, 5, "collect", {"phase": "finished"}, "paused"),
        (True, 0, "train_reward", {"phase": "label"}, "label"),  # a moment to take the last label back
        (False, 0, "train_reward", {"phase": "label"}, "paused"),
        (True, 0, "collect", {"phase": 7, "numbers": "?"}, "train"),  # nonsense in progress.json breaks nothing
    ],
)
def test_view(
    client: TestClient, make_session: Any, running: bool, rounds: int, phase: str, progress: Any, view: str
) -> None:
    loop = make_session(rounds=rounds)
    if phase != "label":
        for pair in loop.session.pairs(0, 0):
            loop.session.add_label(f"l{pair.id}", pair.id, "left")
    if phase in ("collect", "finished"):
        loop.record(0, 50.0)
    if progress:
        loop.session.write_progress(**progress)
    with loop.session.lock() if running else contextlib.nullcontext():
        state = client.get(API).json()
    assert (state["view"], state["phase"], state["running"]) == (view, phase, running)


def test_synthetic_labels_are_not_asked_of_a_person(client: TestClient, make_session: Any) -> None:
    make_session(labeler="synthetic")
    assert client.get(API).json()["view"] == "paused"


def test_list_survives_a_session_it_cannot_read(client: TestClient, make_session: Any) -> None:
    make_session("fine-1")
    foreign = make_session("foreign-1").session.path / "config.json"
    foreign.write_text(json.dumps({**json.loads(foreign.read_text()), "format": 99}))
    torn = make_session("torn-1")
    torn.session.close()
    for file in torn.session.path.glob("session.db*"):
        file.unlink()
    (torn.session.path / "session.db").write_bytes(b"no database at all" * 100)
    rows = {s["name"]: s for s in client.get("/api/sessions").json()["sessions"]}
    assert rows["fine-1"]["labels"] == 0
    assert "format 99" in rows["foreign-1"]["error"]
    assert "not a database" in rows["torn-1"]["error"]
    page = client.get("/").text
    assert "fine-1" in page
    assert "format 99" in page
    assert client.get("/api/s/foreign-1").status_code == 409
    assert client.get("/api/s/torn-1").status_code == 503


def test_another_session_of_the_same_name_is_opened_anew(client: TestClient, make_session: Any, tmp_path: Path) -> None:
    make_session(pairs=2).session.close()
    assert client.get(API).json()["pairs"] == 2
    (tmp_path / "data" / "cartpole-1").rename(tmp_path / "gone")
    assert client.get(API).status_code == 404
    make_session(pairs=3)
    assert client.get(API).json()["pairs"] == 3


# ---------------------------------------------------------------------------------------------- writing


def test_a_label_is_on_disk_before_the_answer_and_counts_once(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=2)
    pair = loop.session.pairs(0, 0)[0].id
    body = label(pair, "right", strength="strong", response_ms=1234)
    assert client.post(f"{API}/labels", json=body).status_code == 201
    with catalog.open_session(loop.session.path.parent, "cartpole-1").read() as db:
        row = db.execute(tables.label_table.select()).one()
    stored = (row.pair, row.choice, row.strength, row.labeler, row.response_ms)
    assert stored == (pair, "right", "strong", "human", 1234)
    again = client.post(f"{API}/labels", json=body)
    assert (again.status_code, again.json()) == (200, {"label": row.id, "counts_from": 0})
    other = client.post(f"{API}/labels", json={**body, "choice": "left"})
    assert other.status_code == 409
    assert loop.session.last_label_id() == row.id


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (label(999_999), 404), (label(2**60), 422), (label(0), 422), (label(-1), 422), (label("1"), 422),
        (label(True), 422), (label(1.0), 422), (label(1, "up"), 422), (label(1, 1), 422), (label(1, None), 422),
        (label(1, "left "), 422), (label(1, id=""), 422), (label(1, id="x" * 65), 422), (label(1, id="a b"), 422),
        (label(1, id=5), 422), (label(1, id="\ud800"), 422), (label(1, strength="huge"), 422),
        (label(1, response_ms=-1), 422), (label(1, response_ms=2**31), 422), (label(1, response_ms=1.5), 422),
        (label(1, labeler="synthetic"), 422), ({}, 422), ([], 422), ("left", 422), (None, 422),
    ],
)  # fmt: skip
def test_bad_labels_are_refused_in_a_sentence(client: TestClient, make_session: Any, body: Any, status: int) -> None:
    loop = make_session(pairs=1)
    answer = client.post(f"{API}/labels", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert re.fullmatch(r"[^\n]{10,300}\.", answer.json()["detail"])
    assert loop.labels(0) == [None]


def test_bodies_that_are_no_json_or_too_large(client: TestClient, make_session: Any) -> None:
    make_session(pairs=1)
    json_type = {"Content-Type": "application/json"}
    for content in (b"{", b"\xff\xfe", b"[" * 50_000, b"NaN"):
        answer = client.post(f"{API}/labels", content=content, headers=json_type)
        assert answer.status_code in (400, 422), (content[:10], answer.text)
        assert isinstance(answer.json()["detail"], str)
    large = b'{"id": "' + b"x" * 70_000 + b'"}'
    assert client.post(f"{API}/labels", content=large, headers=json_type).status_code == 413
    chunks = client.post(f"{API}/labels", content=iter([large[:40_000], large[40_000:]]), headers=json_type)
    assert chunks.status_code == 413
    assert "less" in chunks.json()["detail"]


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=99999999999999999999", "limit=0", "limit=1001"])
def test_bad_queries(client: TestClient, make_session: Any, query: str) -> None:
    make_session(pairs=1)
    assert client.get(f"{API}/pairs?{query}").status_code == 422


def test_labels_of_many_tabs_at_once_are_all_kept(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=3)
    ids = [p.id for p in loop.session.pairs(0, 0)]

    def post(i: int) -> int:
        return client.post(f"{API}/labels", json=label(ids[i % 3], id=f"label-{i // 2}-{i % 3}")).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(post, range(48)))
    assert set(statuses) <= {200, 201}
    with loop.session.read() as db:
        uids = [row.uid for row in db.execute(tables.label_table.select())]
    assert sorted(uids) == sorted({f"label-{i // 2}-{i % 3}" for i in range(48)})


def test_undo_step_by_step(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=3)
    ids = [p.id for p in loop.session.pairs(0, 0)]
    assert client.post(f"{API}/undo", json={"id": "u0"}).status_code == 409  # nothing to take back
    for i in (0, 1):
        client.post(f"{API}/labels", json=label(ids[i], id=f"l{i}"))
    answer = client.post(f"{API}/undo", json={"id": "u1"})
    assert answer.status_code == 200
    assert answer.json()["pair"]["id"] == ids[1]
    assert loop.labels(0) == ["left", None, None]
    retry = client.post(f"{API}/undo", json={"id": "u1"})
    assert (retry.status_code, retry.json()["pair"]["id"]) == (200, ids[1])
    assert loop.labels(0) == ["left", None, None]
    client.post(f"{API}/undo", json={"id": "u2"})
    assert loop.labels(0) == [None, None, None]
    assert client.post(f"{API}/undo", json={"id": "l0"}).status_code == 409  # an id that was a label's


def test_the_last_label_can_be_taken_back_until_training_begins(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=1)
    for i, choice in enumerate(("left", "equal")):  # a batch of ties alone is due to be collected anew
        client.post(f"{API}/labels", json=label(1, choice, id=f"l{i}"))
        assert loop.session.where().phase != "label"
        assert client.post(f"{API}/undo", json={"id": f"u{i}"}).status_code == 200
        assert loop.session.where().phase == "label"
    client.post(f"{API}/labels", json=label(1, id="l2"))
    loop.session.partial(0, "train_reward").write_bytes(b"begun")
    answer = client.post(f"{API}/undo", json={"id": "u2"})
    assert answer.status_code == 409
    assert "gone into training" in answer.json()["detail"]
    assert loop.labels(0) == ["left"]


def test_close_trains_on_what_is_labeled(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=3)
    client.post(f"{API}/labels", json=label(loop.session.pairs(0, 0)[0].id))
    assert client.post(f"{API}/close").json()["phase"] == "train_reward"
    assert loop.session.where().phase == "train_reward"
    [event] = loop.session.events("close")
    assert (event["round"], event["payload"]) == (0, {"attempt": 0})
    assert client.post(f"{API}/close").status_code == 409
    assert client.get(f"{API}/pairs").json()["pairs"] == []


def test_goal(client: TestClient, make_session: Any) -> None:
    loop = make_session()
    assert client.post(f"{API}/goal", json={"text": "  Fall\nover.  "}).json()["goal"] == "Fall over."
    assert loop.session.goal() == "Fall over."
    for bad in ({"text": "x" * 501}, {"text": 5}, {"text": "\ud800"}, {}):
        content = json.dumps(bad)
        answer = client.post(f"{API}/goal", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
    assert client.post(f"{API}/goal", json={"text": ""}).json()["goal"] == ""


# ---------------------------------------------------------------------------------------------- who may


def test_strangers_see_nothing(stranger: TestClient, make_session: Any) -> None:
    loop = make_session()
    pair = loop.session.pairs(0, 0)[0].id
    assert stranger.get("/", headers={"Accept": "text/html"}).status_code == 401
    for path in ("/", API, f"{API}/events", f"{API}/clips/1.png", "/docs", "/openapi.json", f"{API}?token={TOKEN}"):
        answer = stranger.get(path)
        assert answer.status_code == 401, path
        assert "cartpole" not in answer.text
    assert stranger.post(f"{API}/labels", json=label(pair)).status_code == 401
    assert stranger.get("/?token=wrong").status_code == 401
    assert stranger.get("/", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert stranger.get("/", headers={"Cookie": "rlhf_gym_8000=wrong"}).status_code == 401
    assert stranger.get("/static/style.css").status_code == 200


def test_the_address_with_the_token_sets_the_cookie(stranger: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=1)
    answer = stranger.get(f"/s/cartpole-1?token={TOKEN}")
    assert answer.status_code == 200  # not a redirect: those lose a strict cookie
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"rlhf_gym_8000={TOKEN};")
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert stranger.get(API).status_code == 200
    body = label(loop.session.pairs(0, 0)[0].id)
    here = {"Origin": "http://127.0.0.1:8000"}
    for origin in ({}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:8001"}):
        assert stranger.post(f"{API}/labels", json=body, headers=origin).status_code == 403, origin
    assert loop.labels(0) == [None]
    assert stranger.post(f"{API}/labels", json=body, headers=here).status_code == 201


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8000", True), ("localhost:9999", True), ("localhost", True), ("[::1]:8000", True),
        ("192.168.1.5:8000", True), ("evil.example", False), ("127.0.0.1.evil.example:8000", False), ("", False),
        ("localhost.evil.example", False), ("[::1", False),
    ],
)  # fmt: skip
def test_host(client: TestClient, make_session: Any, host: str, allowed: bool) -> None:
    make_session()
    answer = client.get(API, headers={"Host": host})
    assert answer.status_code == (200 if allowed else 421)


def test_a_configured_host_is_answered_to(tmp_path: Path) -> None:
    with TestClient(create_app(tmp_path, host="gym.lan"), "http://gym.lan:8000") as client:
        assert client.get("/api/sessions").status_code == 200
        assert client.get("/api/sessions", headers={"Host": "evil.lan"}).status_code == 421


def test_every_answer_carries_the_security_headers(client: TestClient, make_session: Any) -> None:
    make_session()
    for path in ("/", "/s/cartpole-1", "/s/nobody", API, "/api/s/nobody", f"{API}/clips/1.png", "/static/js/label.js"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert headers["cache-control"]
    assert client.get(API).headers["cache-control"] == "no-store"


def test_pages_need_nothing_inline_and_nothing_from_elsewhere(client: TestClient, make_session: Any) -> None:
    loop = make_session(goal="<script>alert('x')</script>\"'")
    loop.session.write_progress(message="<b>", phase="collect")
    for path in ("/", "/s/cartpole-1", "/docs", "/s/nobody"):
        page = client.get(path, headers={"Accept": "text/html"}).text
        assert "<html" in page
        assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=|javascript:", page), path
        assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page), path


def test_docs_describe_every_route(client: TestClient, make_session: Any) -> None:
    make_session()
    page, schema = client.get("/docs").text, client.get("/openapi.json").json()
    assert len(schema["paths"]) >= 9
    for path in schema["paths"]:
        assert path in page
    assert 'id="LabelBody"' in page


# ---------------------------------------------------------------------------------------------- the server


def test_events_follow_the_session_and_end_with_the_server(serve: Any, make_session: Any) -> None:
    loop, server = make_session(pairs=2), serve()
    states: list[dict[str, Any]] = []
    ended = threading.Event()

    def follow() -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.stream("GET", f"http://127.0.0.1:{server.port}{API}/events", headers=headers, timeout=30) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    states.append(json.loads(line[6:]))
        ended.set()

    threading.Thread(target=follow, daemon=True).start()
    wait_for(lambda: states)
    assert states[0]["labeled"] == 0
    loop.session.add_label("a", loop.session.pairs(0, 0)[0].id, "left")
    wait_for(lambda: states[-1]["labeled"] == 1, 2)
    with loop.session.lock():
        loop.session.write_progress(phase="label", round=0, done=1, total=2)
        wait_for(lambda: states[-1]["progress"] and states[-1]["progress"]["done"] == 1, 3)
    count = len(states)
    time.sleep(0.6)
    assert len(states) <= count + 1  # quiet while nothing changes (but for the loop's end)
    before = time.monotonic()
    server.stop()
    assert ended.wait(1.0)
    assert time.monotonic() - before < 1.0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{server.port}/")


def test_unknown_session_has_no_event_stream(client: TestClient) -> None:
    assert client.get("/api/s/nobody/events").status_code == 404


def test_a_port_in_use_is_refused_when_chosen_and_passed_over_when_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"Port {port} on 127.0.0.1 cannot be used .*--port"):
            Server(tmp_path, port=port, token=TOKEN).start()
        monkeypatch.setattr("webui.server.DEFAULT_PORT", port)
        with contextlib.closing(_listen("127.0.0.1", None)) as other:
            assert port < other.getsockname()[1] < port + 20


def test_a_host_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no address here"):
        Server(tmp_path, host="256.1.1.1.invalid", port=0, token=TOKEN).start()


def test_the_token_is_made_once_and_is_private(tmp_path: Path) -> None:
    token = load_token(tmp_path / "config")
    file = tmp_path / "config" / "token"
    assert len(token) >= 24
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600
        file.chmod(0o644)
    assert load_token(tmp_path / "config") == token
    if os.name == "posix":
        assert file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["token"]
    file.write_text("")
    assert len(load_token(tmp_path / "config")) >= 24


def test_pages_and_store_never_load_torch() -> None:
    code = (
        "import sys, webui.server, webui.app, rlhf_gym.store;"
        "print([m for m in ('torch', 'gymnasium', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout


def test_charts() -> None:
    assert charts.sparkline([1, 3, 2], 100, 20, 0) == "0.0,20.0 50.0,0.0 100.0,10.0"
    assert charts.sparkline([5], 100, 20, 0) == "100.0,10.0"
    assert [charts.ago(0, s) for s in (5, 300, 7200, 200_000)] == ["just now", "5 min ago", "2 h ago", "2 days ago"]
