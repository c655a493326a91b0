"""Requests, databases, settings and clips that nobody would make: each is answered in a sentence, or as it should be.

The requests are made from the pages' own OpenAPI schema (schemathesis), with the same seed each time; `--full` makes
more of them.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from conftest import FakeLoop
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    negative_data_rejection,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rlhf_gym import catalog, store
from rlhf_gym.config import Config
from webui.app import create_app

TOKEN = "a-token-for-the-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
FAST, FULL = 3, 40  # requests of each operation, for each way to make them

# ---------------------------------------------------------------------------------------------- the pages' API


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions that label, train and are done; `fodder` is what gets deleted."""
    data_dir = tmp_path_factory.mktemp("fuzz") / "data"
    for name, rounds in (("labels", 0), ("trains", 0), ("done", 1), ("empty", 0)):
        config = Config(env_id="CartPole-v1", goal="Keep it up.", pairs_per_round=4, rounds=rounds)
        session = catalog.create_session(data_dir, name, config)
        loop = FakeLoop(session, 60, 40, 8)
        if name != "empty":
            loop.record(store.START, 20.0)
            loop.collect(0, 4)
            session.video(store.START).write_bytes(b"a video")
        if name in ("trains", "done"):
            for pair in session.pairs(0, 0):
                session.add_label(f"label-{pair.id}", pair.id, "left", response_ms=900)
            session.put_opinions([store.Opinion(p.id, 0, 0.1, 2) for p in session.pairs(0, 0)])
            session.put_metrics(0, "train_reward", 1, {"reward/loss": 0.5})
        if name == "done":
            loop.record(0, 90.0)
            session.video(0).write_bytes(b"a video")
            session.verdict(0).write_text(json.dumps({"judge": 0, "fps": 30.0, "predicted": [0.5], "mean": 0.5}))
        session.close()
    return data_dir


@pytest.fixture(scope="module")
def app(data_dir: Path) -> Iterator[Any]:
    app = create_app(data_dir, TOKEN)
    yield app
    app.state.sessions.close()


def operations(app: Any) -> list[Any]:
    """All but the event stream, which does not end."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={**BEARER, "Host": "127.0.0.1"})
    found = [result.ok() for result in schema.get_all_operations()]
    return [op for op in found if not op.path.endswith("/events")]


def places(operation: Any) -> list[dict[str, Any]]:
    """Path parameters: those of sessions that there are, and any (with {})."""
    if "{session}" not in operation.path:
        return [{}]
    if operation.path.endswith("/delete"):
        return [{}, {"session": "fodder"}]
    names = ["labels", "trains", "done", "empty"]
    more: dict[str, Any] = {"clip": 1} if "{clip}" in operation.path else {}
    more |= {"name": "start"} if "{name}" in operation.path else {}
    return [{}, *({"session": name, **more} for name in names)]


def test_the_api_answers_as_its_schema_says(app: Any, data_dir: Path, request: pytest.FixtureRequest) -> None:
    full = request.config.getoption("--full")
    statuses: Counter[int] = Counter()
    seen: set[str] = set()
    for operation in operations(app):
        ways = [(place, mode) for place in places(operation) for mode in GenerationMode]
        if not full:  # one request of most ways
            ways = [ways[0], ways[1], *ways[2::3]]
        for place, mode in ways:
            numbers = not place and ("{clip}" in operation.path or "{name}" in operation.path)
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or numbers):
                continue  # there is nothing to get wrong: a session's name may be any text
            fuzz(operation, place, mode, FULL if full else FAST, data_dir, statuses)
        seen.add(operation.label)
    assert len(seen) >= 20, seen
    assert statuses.total() >= (2000 if full else 150), statuses
    assert {200, 201, 404, 409, 422} <= set(statuses), statuses
    print(f"{statuses.total()} requests: {dict(sorted(statuses.items()))}")


def fuzz(
    operation: Any, place: dict[str, Any], mode: GenerationMode, cases: int, data_dir: Path, statuses: Counter[int]
) -> None:
    @seed(1)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode, **({"path_parameters": place} if place else {})))
    def requests(case: Any) -> None:
        if place.get("session") == "fodder" and not (data_dir / "fodder").exists():
            shutil.copytree(data_dir / "empty", data_dir / "fodder")
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "pair" in case.body:
            case.body["pair"] = 1 + case.body["pair"] % 5  # there are four
        checks = [*CHECKS, negative_data_rejection] if mode is GenerationMode.NEGATIVE and place else CHECKS
        response = case.call_and_validate(base_url="http://127.0.0.1", headers=BEARER, checks=checks)
        statuses[response.status_code] += 1

    requests()


EXTREMES = ("9223372036854775808", "-9223372036854775809", "1" + "0" * 400, "NaN", "Infinity", "-1e999", "1e308", "1.5",
            '"' + "x" * 20_000 + '"', "[" * 200 + "]" * 200, '"\\ud800"', '"\\u0000"', "true", "null", "{}")  # fmt: skip


def test_numbers_and_texts_of_any_size_are_refused_or_taken(app: Any) -> None:
    """Put in place of each value of every body and query, one by one."""
    schema, asked = app.openapi(), 0
    with TestClient(app, "http://127.0.0.1", headers=BEARER, raise_server_exceptions=False) as client:
        for path, methods in schema["paths"].items():
            for method, operation in methods.items():
                if path.endswith("/events"):
                    continue
                address = path.format(session="labels", clip=1, name="start")
                for parameter in operation.get("parameters", []):
                    for value in EXTREMES if parameter["in"] == "query" else ():
                        answer = client.request(method, address, params={parameter["name"]: value.strip('"')})
                        assert answer.status_code in (200, 404, 422), (path, parameter["name"], value[:40])
                        asked += 1
                body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
                shape = schema["components"]["schemas"].get(body.get("$ref", "").rpartition("/")[2], {})
                for name in shape.get("properties", ()):
                    for value in EXTREMES:
                        fields = {"id": '"x"', "pair": "1", "choice": '"left"', "do": '"pause"', "text": '""'}
                        known = {k: v for k, v in fields.items() if k in shape["properties"]} | {name: value}
                        content = "{" + ", ".join(f'"{k}": {v}' for k, v in known.items()) + "}"
                        headers = {"Content-Type": "application/json"}
                        answer = client.request(method, address, content=content, headers=headers)
                        assert answer.status_code < 500, (path, name, value[:40], answer.text)
                        assert answer.status_code >= 400 or value in ("null", "true", '"\\u0000"'), (
                            path,
                            name,
                            value[:40],
                        )
                        asked += 1
    assert asked > 200, asked
