"""Who gets what from the pages: nothing outside the session's own clips and videos, whatever an address says."""

from __future__ import annotations

import ipaddress
import itertools
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from processes import Spawned

from rlhf_gym import store
from webui.app import create_app
from webui.security import HEADERS
from webui.server import Server

TOKEN = "a-token-for-the-tests"
API = "/api/s/cartpole-1"
SECRET = b"nobody may read this"


@pytest.fixture
def data_dir(make_session: Any, tmp_path: Path) -> Path:
    """A session, and secrets wherever a path that leads out of it could end."""
    loop = make_session(pairs=1)
    loop.session.video(store.START).write_bytes(b"a video")
    for directory in (tmp_path, tmp_path / "data", loop.session.path, loop.session.path / "checkpoints"):
        for name in ("secret.png", "secret.mp4", "secret.js", "start.mp4", "1.png", "secret"):
            (directory / name).write_bytes(SECRET)
    return tmp_path / "data"


@pytest.fixture
def client(data_dir: Path) -> Iterator[TestClient]:
    app = create_app(data_dir, TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    yield TestClient(app, "http://127.0.0.1:8000", headers=headers, raise_server_exceptions=False)
    app.state.sessions.close()


@pytest.fixture
def server(data_dir: Path) -> Iterator[Server]:
    server = Server(data_dir, port=0, token=TOKEN)
    server.start()
    yield server
    server.stop()


# ---------------------------------------------------------------------------------------------- addresses

UP = (
    "../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%2E%2E%2F", "%252e%252e%252f", "..%252f", "..\\", "..%5c", "%2e%2e%5c",
    "..%c0%af", "%c0%ae%c0%ae%c0%af", "%e0%80%ae%e0%80%ae%e0%80%af", "..%ef%bc%8f", "%uff0e%uff0e/", ".%00./", "..;/",
    "....//", ".../", ".%2e/", "%2e./", "..%00/", "../%00", "..%0d%0a/", "..%09/", "/../", "//../", "./../", "..%20/",
)  # fmt: skip
ABSOLUTE = ("/", "//", "%2f", "%2F%2F", "%252f", "\\", "%5c%5c", "C:/", "C:%5c", "file:///", "file:%2f%2f%2f", "~/")
ENDS = ("secret.png", "secret.mp4", "secret", "secret.png%00.png", "secret.png.", "secret.png%20", "secret.png::$DATA",
        "secret.png/", "secret.png/.", "secret.png%2f%2e", "1.png", "start.mp4", "config.json", "session.db")  # fmt: skip
PLACES = (f"{API}/clips/", f"{API}/videos/", "/api/s/", "/s/", "/static/", "/static/js/", "/plotly/", "/")


def raw(server: Server, path: str) -> bytes:
    """The whole answer to a request whose address no client has tidied up."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("place", PLACES)
def test_no_address_leads_out(server: Server, data_dir: Path, place: str) -> None:
    root = str(data_dir.parent).lstrip("/")
    paths = [place + up * n + end for up, n, end in itertools.product(UP, (1, 3), ENDS[:7])]
    paths += [place + ENDS[0].replace("secret", f"x{up}secret") for up in UP]
    paths += [f"{place}{start}{root}/{end}" for start, end in itertools.product(ABSOLUTE, ENDS[:4])]
    paths += [place + end for end in ENDS]
    for path in paths:
        answer = raw(server, path.replace(" ", "%20"))
        status = int(answer.split()[1])
        own = path == f"{API}/clips/1.png" or path == f"{API}/videos/start.mp4"
        assert status == 200 if own else status in (307, 400, 401, 404, 405, 421, 422), (path, answer[:200])
        assert SECRET not in answer, path
        if status == 307:  # a slash too many: to an address of ours
            assert b"location: http://127.0.0.1/" in answer.lower(), (path, answer[:300])


def test_no_directory_is_listed(server: Server) -> None:
    for path in ("/static", "/static/", "/static/js", "/static/js/", f"{API}/clips", f"{API}/clips/", f"{API}/videos/",
                 "/s/", "/api/", "/api/s", "/api/s/", "/plotly/", "/plotly"):  # fmt: skip
        answer = raw(server, path)
        assert int(answer.split()[1]) in (307, 404, 405), (path, answer[:200])
        for name in (b"label.js", b"start.mp4", b"0000.png", b"cartpole-1/"):
            assert name not in answer.partition(b"\r\n\r\n")[2].replace(path.encode(), b""), path


@pytest.mark.parametrize("name", ["clips/r000/0000.png", "videos/start.mp4", "videos/live.mp4"])
def test_a_link_in_place_of_a_file_is_not_followed(client: TestClient, data_dir: Path, name: str) -> None:
    """Also one that turns up while the pages have the session open."""
    assert client.get(API).status_code == 200
    path = data_dir / "cartpole-1" / name
    path.unlink(missing_ok=True)
    path.symlink_to(data_dir.parent / "secret.png")
    for address in (f"{API}/clips/1.png", f"{API}/videos/start.mp4", f"{API}/videos/live.mp4", f"{API}/thumbnail.png"):
        assert SECRET not in client.get(address).content
    address = f"{API}/clips/1.png" if name.startswith("clips") else f"{API}/{name}"
    assert client.get(address).status_code == 404


@pytest.mark.parametrize("name", ["clips", "clips/r000", "videos"])
def test_a_linked_directory_is_not_followed(client: TestClient, data_dir: Path, name: str) -> None:
    assert client.get(API).status_code == 200
    shutil.copytree(data_dir / "cartpole-1" / name, data_dir.parent / "outside")
    for file in (data_dir.parent / "outside").rglob("*.*"):
        file.write_bytes(SECRET)
    shutil.rmtree(data_dir / "cartpole-1" / name)
    (data_dir / "cartpole-1" / name).symlink_to(data_dir.parent / "outside")
    address = f"{API}/videos/start.mp4" if name == "videos" else f"{API}/clips/1.png"
    assert client.get(address).status_code == 404


def test_a_link_without_a_session_behind_it_is_none(client: TestClient, data_dir: Path) -> None:
    (data_dir / "away").symlink_to(data_dir.parent)
    (data_dir / "loop").symlink_to(data_dir / "loop")
    for name in ("away", "loop"):
        for address in (
            f"/api/s/{name}",
            f"/s/{name}",
            f"/api/s/{name}/clips/1.png",
            f"/api/s/{name}/videos/start.mp4",
        ):
            assert client.get(address).status_code == 404
        assert client.post(f"/api/s/{name}/delete").status_code == 404
    assert [s["name"] for s in client.get("/api/sessions").json()["sessions"]] == ["cartpole-1"]


# ---------------------------------------------------------------------------------------------- headers


def test_every_answer_carries_the_headers_errors_too(client: TestClient, data_dir: Path) -> None:
    """200, 206, 304, 307, 401, 403, 404, 405, 409, 413, 416, 421, 422, 500, 503, from every kind of route."""
    video, static = f"{API}/videos/start.mp4", "/static/style.css"
    etag = client.get(static).headers["etag"]
    torn = data_dir / "torn-1"
    torn.mkdir()
    (torn / "config.json").write_text((data_dir / "cartpole-1" / "config.json").read_text())
    (torn / "session.db").write_bytes(b"no database" * 500)
    foreign = {"Authorization": "", "Origin": "http://evil.example"}

    @client.app.get("/api/breaks")  # type: ignore[attr-defined]
    def breaks() -> None:
        raise RuntimeError("a mistake of ours")

    answers = [
        client.get("/"), client.get("/docs"), client.get("/openapi.json"), client.get(f"{API}/clips/1.png"),
        client.get(video, headers={"Range": "bytes=0-2"}), client.get(video, headers={"Range": "bytes=900-"}),
        client.get(static, headers={"If-None-Match": etag}), client.get("/s/cartpole-1/", follow_redirects=False),
        client.get(API, headers={"Authorization": ""}), client.post(f"{API}/goal", headers=foreign),
        client.post(f"{API}/goal", headers={"Origin": "http://evil.example"}, json={"text": ""}),
        client.get("/nothing"), client.get("/static/nothing"), client.delete(API), client.post(static),
        client.post(f"{API}/undo", json={"id": "u"}), client.post(f"{API}/goal", content=b" " * 70_000),
        client.get(API, headers={"Host": "evil.example"}), client.get(f"{API}/pairs?limit=x"),
        client.get("/api/s/torn-1"), client.get("/favicon.ico"), client.head("/"), client.options("/"),
        client.get("/api/breaks"),
    ]  # fmt: skip
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 206, 304, 307, 401, 403, 404, 405, 409, 413, 416, 421, 422, 500, 503}
    for answer in answers:
        assert answer.headers.items() >= {k.lower(): v for k, v in HEADERS.items()}.items(), answer
        assert "cache-control" in answer.headers
        assert "server" not in answer.headers
        if (
            answer.status_code not in (200, 206, 304, 307, 416)
            and answer.request.method != "HEAD"
            and "/static/" not in str(answer.url)
        ):
            assert isinstance(answer.json()["detail"], str), answer
    assert "mistake of ours" not in answers[-1].text


@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/9.9", b"NONSENSE", b"GET http://evil.example/ HTTP/1.1", b"\x16\x03\x01"]
)
def test_what_is_no_request_is_refused(server: Server, request_line: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(request_line + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer == b"" or int(answer.split()[1]) in (400, 401, 404), answer
    with urllib.request.urlopen(f"{server.url}", timeout=10) as fine:  # and the next one is answered
        assert fine.status == 200


def test_headers_without_end_are_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n")
        try:
            answer = connection.recv(65536)
        except ConnectionResetError:
            answer = b""
    assert answer == b"" or int(answer.split()[1]) in (400, 431)


# ---------------------------------------------------------------------------------------------- other machines


def addresses() -> list[str]:
    """Of this machine, as others see it."""
    found = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    return sorted(a for a in found if not ipaddress.ip_address(a).is_loopback)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_pages_that_others_can_reach_come_with_a_warning_and_never_without_the_token(
    data_dir: Path, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(data_dir.parent))
    server = Server(data_dir, host=host, port=0, token="")  # nobody can switch it off
    if host == "::" and not ipv6():
        pytest.skip("no IPv6 here")
    server.start()
    try:
        assert len(server.token) >= 24
        said = server.warning
        assert all(word in said for word in ("Other machines", "unencrypted", "ssh -L", f"--host {host}"))
        assert server.token not in said
        for address in ("[::1]" if host == "::" else "127.0.0.1", *(a for a in addresses() if ":" not in a)):
            url = f"http://{address}:{server.port}/api/sessions"
            assert httpx.get(url).status_code == 401
            assert httpx.get(url, headers={"Authorization": f"Bearer {server.token}"}).status_code == 200
    finally:
        server.stop()


def ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1.2.3"])
def test_pages_of_this_machine_alone_need_no_warning(data_dir: Path, host: str) -> None:
    server = Server(data_dir, host=host, port=0, token=TOKEN)
    server.start()
    server.stop()
    assert server.warning == ""


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
def test_the_command_prints_the_warning(tmp_path: Path, host: str, warned: bool) -> None:
    with Spawned("serve", "--no-browser", "--host", host, cwd=tmp_path) as run:
        run.wait_for(r"Open http://127\.0\.0\.1:\d+/\?token=\S+")
        assert ("Other machines can reach these pages" in run.text()) == warned


def test_several_machines_through_ssh_keep_their_cookies_apart(tmp_path: Path) -> None:
    """Both serve on port 8000; the browser sees them on two ports of its own machine, and cookies ignore ports."""
    one, two = (create_app(tmp_path, token, port=8000) for token in ("token-of-machine-1", "token-of-machine-2"))
    jar: dict[str, str] = {}
    for app, port, token in ((one, 8001, "token-of-machine-1"), (two, 8002, "token-of-machine-2")):
        answer = TestClient(app, f"http://127.0.0.1:{port}").get(f"/?token={token}")
        assert answer.status_code == 200
        jar |= dict(answer.cookies)
    cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
    for app, port in ((one, 8001), (two, 8002)):
        assert TestClient(app, f"http://127.0.0.1:{port}").get("/api/sessions", headers=cookies).status_code == 200
