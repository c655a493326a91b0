"""What tests of the pages share: clients, servers over tmp_path/data, and keys pressed when the page takes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from webui.app import create_app
from webui.server import Server

TOKEN = "a-token-for-the-tests"
API = "/api/s/cartpole-1"
GONE = r"ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE|ERR_FAILED"
READY = "#stage[data-ready=true]"
SETTLE = 200  # ms: the page ignores keys for the first 150 of a new pair


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A client that shows the token."""
    app = create_app(tmp_path / "data", TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    yield TestClient(app, "http://127.0.0.1:8000", headers=headers, raise_server_exceptions=False)
    app.state.sessions.close()


@pytest.fixture
def stranger(client: TestClient) -> TestClient:
    """A client that shows nothing."""
    return TestClient(client.app, "http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Servers over tmp_path/data; they outlive the page, whose last requests are nobody's trouble."""
    started: list[Server] = []

    def start(port: int = 0) -> Server:
        server = Server(tmp_path / "data", port=port, token=TOKEN)
        server.start()
        started.append(server)
        return server

    yield start
    if "context" in request.fixturenames:  # what a page asks of a server that is gone is no problem of the page's
        for page in request.getfixturevalue("context").pages:
            page.close()
    for server in started:
        server.stop()


def label(pair: int, choice: Any = "left", id: Any = "label-1", **more: Any) -> dict[str, Any]:
    return {"id": id, "pair": pair, "choice": choice, **more}


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def shown(page: Any) -> int:
    return int(page.wait_for_selector(READY).get_attribute("data-pair"))


def settle(page: Any) -> None:
    """Waits until the pair on screen has been there for a moment, by the page's own clock."""
    while not page.evaluate(f"performance.now() - document.querySelector('{READY}')?.dataset.since > {SETTLE}"):
        page.wait_for_timeout(20)


def press(page: Any, key: str) -> None:
    """A key, once the pair on screen takes one."""
    page.wait_for_selector(READY)
    settle(page)
    page.keyboard.press(key)
