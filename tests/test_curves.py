"""The curves: series of metrics, the arithmetic of the gap, and the charts in a real Chromium."""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import sys
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from pages import API, client, serve
from test_labeling import axe_finds
from test_wall import SIZES, until

from rlhf_gym.episodes import Gains
from rlhf_gym.store import START
from webui.metrics import MOST_POINTS, plotly_url, thin

__all__ = ["client", "serve"]  # fixtures

LOOK = '{"line": "#cccccc", "ink": "#000000", "quiet": "#777777", "left": "#0000ff", "right": "#ff8800", "accent": "#008866"}'


def put_history(loop: Any, trues: list[float], predictions: list[float], pairs: int = 4) -> None:
    """Rounds from the untrained agent on, each with all that the loop measures."""
    session = loop.session
    for i, (true, predicted) in enumerate(zip(trues, predictions, strict=True)):
        number = START + i
        loop.record(number, true)
        session.put_metrics(number, "record", 0, {"eval/std": 3.0, "eval/episodes": 10.0})
        session.verdict(number).write_text(json.dumps({"judge": len(trues) - 2, "mean": predicted}))
        if number == START:
            continue
        for pair in loop.collect(number, pairs):
            session.add_label(f"l{pair.id}", pair.id, "left")
        values = {"loss": 0.5, "floor": 0.1, "accuracy": 0.9, "held_out_loss": 0.6, "held_out_accuracy": 0.7 + 0.01 * i}
        more = {"reward/prequential_accuracy": 0.6, "labels/consistency": 0.8}
        for step in (200, 400):
            session.put_metrics(number, "train_reward", step, {f"reward/{k}": v for k, v in values.items()} | more)
        for step in range(5):
            found = {"charts/true_return": true + step, "charts/predicted_return": step, "charts/SPS": 2000.0 + step}
            session.put_metrics(number, "train_agent", 1000 * number + 200 * (step + 1), found)


GOOD = [20.0, 100.0, 200.0, 300.0], [0.1, 0.2, 0.3, 0.4]
PARTED = [20.0, 400.0, 300.0, 200.0], [0.1, 0.2, 0.3, 0.4]

# ---------------------------------------------------------------------------------------------- the API


def series_of(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {one["name"]: one for one in answer.json()["series"]}


def test_series_by_name(client: TestClient, make_session: Any) -> None:
    put_history(make_session(pairs=0), *GOOD)
    names = {"names": ["eval/mean", "charts/SPS", "reward/accuracy", "charts/episode_length"]}
    found = series_of(client.get(f"{API}/metrics", params=names))
    assert list(found) == names["names"]
    assert (found["eval/mean"]["rounds"], found["eval/mean"]["values"]) == ([-1, 0, 1, 2], GOOD[0])
    assert found["charts/SPS"]["steps"][:6] == [200, 400, 600, 800, 1000, 1200]
    assert found["reward/accuracy"]["steps"] == [200, 400] * 3
    assert found["charts/episode_length"]["values"] == []  # known, not measured here
    everything = series_of(client.get(f"{API}/metrics"))
    assert set(everything) > {"eval/mean_length", "reward/floor"}


def test_labels_come_in(client: TestClient, make_session: Any) -> None:
    put_history(make_session(pairs=0), *GOOD)
    labels = client.get(f"{API}/metrics").json()["labels"]
    assert labels["counts"] == list(range(1, 13))
    assert labels["times"] == sorted(labels["times"])


@pytest.mark.parametrize(
    "name", ["charts/nothing", "", "eval/mean,eval/std", "'; DROP TABLE metric; --", "\x00", "x" * 10_000]
)
def test_an_unknown_name_is_a_sentence(client: TestClient, make_session: Any, name: str) -> None:
    make_session()
    answer = client.get(f"{API}/metrics", params={"names": ["eval/mean", name]})
    assert answer.status_code == 404
    assert "has no metric" in answer.json()["detail"]
    assert "eval/mean" in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 400


def test_too_many_names_and_no_session(client: TestClient, make_session: Any) -> None:
    make_session()
    assert client.get(f"{API}/metrics", params={"names": ["eval/mean"] * 101}).status_code == 422
    assert client.get("/api/s/nobody/metrics").status_code == 404


def test_many_points_are_thinned(client: TestClient, make_session: Any) -> None:
    loop = make_session(pairs=0)
    for number in range(3):
        for step in range(700):
            loop.session.put_metrics(number, "train_agent", 700 * number + step, {"charts/SPS": float(step)})
    found = series_of(client.get(f"{API}/metrics", params={"names": "charts/SPS"}))["charts/SPS"]
    assert (found["total"], len(found["values"])) == (2100, pytest.approx(MOST_POINTS, abs=5))
    assert len(found["values"]) <= MOST_POINTS
    assert found["steps"][-1] == 2099
    ends = [
        s
        for s, r, after in zip(found["steps"], found["rounds"], [*found["rounds"][1:], None], strict=True)
        if r != after
    ]
    assert ends == [699, 1399, 2099]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 50))
def test_thinning_keeps_the_last_and_no_more_than_it_may(lengths: list[int], most: int) -> None:
    rounds = [number for number, length in enumerate(lengths) for _ in range(length)]
    kept = thin(rounds, most)
    assert len(kept) <= most or len(kept) == len(rounds) <= most
    assert kept == sorted(set(kept))
    assert kept[-1] == len(rounds) - 1
    if len(lengths) < most:
        assert {rounds[i] for i in kept} == set(rounds)


def test_plotly_is_served_from_its_package(client: TestClient, make_session: Any) -> None:
    make_session()
    url = plotly_url()
    assert importlib.metadata.version("plotly") in url
    assert url in client.get("/s/cartpole-1", headers={"Accept": "text/html"}).text
    packed = client.get(url, headers={"Accept-Encoding": "gzip"})
    plain = client.get(url, headers={"Accept-Encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.content == plain.content
    assert b"plotly.js v" in plain.content[:200]
    assert len(gzip.compress(plain.content, 1)) < len(plain.content) / 2
    assert "immutable" in plain.headers["cache-control"]
    assert "plotly" not in sys.modules  # a second to import, and nothing of it is wanted
    other = client.get("/plotly/0.1.js")
    assert (other.status_code, other.headers["cache-control"]) == (404, "no-store")
    assert url in other.json()["detail"]


# ---------------------------------------------------------------------------------------------- the arithmetic


@pytest.fixture
def gap(page: Any, serve: Any, make_session: Any) -> Any:
    """gap(expression) -> its value, with gap.js and charts.js at hand as `gap` and `charts`."""
    make_session(pairs=0)
    page.goto(serve().page("cartpole-1"))

    def evaluate(expression: str) -> Any:
        load = "const gap = await import('/static/js/gap.js'); const charts = await import('/static/js/charts.js');"
        return page.evaluate(f"async () => {{ {load} return {expression}; }}")

    return evaluate


def test_lines_are_compared_between_their_lowest_and_highest(gap: Any) -> None:
    assert gap("gap.unit([10, 20, 15])") == [0, 1, 0.5]
    assert gap("gap.unit([7, 7])") == [0.5, 0.5]


@pytest.mark.parametrize(
    ("upper", "lower", "areas"),
    [
        ([0, 1], [1, 0], [[[0.5, 0.5], [1, 1], [1, 0]]]),  # crosses half way
        ([1, 0], [0, 1], [[[0, 1], [0.5, 0.5], [0, 0]]]),
        ([0, 0], [1, 1], []),
        ([0.5, 0.5], [0.5, 0.5], []),
        ([1, 1], [0, 0], [[[0, 1], [1, 1], [1, 0], [0, 0]]]),
        ([0, 1, 0], [0, 0, 0], [[[0, 0], [1, 1], [2, 0], [1, 0]]]),  # touches at both ends
        ([1, 0, 1], [0, 0, 0], [[[0, 1], [1, 0], [0, 0]], [[1, 0], [2, 1], [2, 0]]]),  # touches between
        ([0, 3, 0], [1, 1, 1], [[[1 / 3, 1], [1, 3], [5 / 3, 1], [1, 1]]]),
        ([0, 0, 1], [0, 0, 0], [[[1, 0], [2, 1], [2, 0]]]),
    ],
)  # fmt: skip
def test_where_one_line_stands_above_the_other(gap: Any, upper: Any, lower: Any, areas: Any) -> None:
    found = gap(f"gap.above({list(range(len(upper)))}, {upper}, {lower})")
    assert len(found) == len(areas)
    for points, expected in zip(found, areas, strict=True):
        assert [tuple(p) for p in points] == [pytest.approx(tuple(p)) for p in expected]


def told(
    trues: list[float | None], means: list[float | None], bases: dict[int, int] | None = None, std: float = 3.0
) -> str:
    rounds = [
        {
            "round": n,
            "from": None if n < 0 else (bases or {}).get(n, n - 1),
            "mean_return": true,
            "mean": mean,
            "std": std,
        }
        for n, (true, mean) in enumerate(zip(trues, means, strict=True), -1)
    ]
    return json.dumps(rounds)


@pytest.mark.parametrize(
    ("trues", "means", "since"),
    [
        (*GOOD, None),
        (*PARTED, 0),
        ([20, 400, 410, 300, 200], [0.1, 0.2, 0.3, 0.4, 0.5], 1),
        ([20, 100, 400, 200], [0.1, 0.2, 0.3, 0.4], None),  # one round is no trend
        ([20, 400, 300, 420], [0.1, 0.2, 0.3, 0.4], None),  # it has recovered
        ([20, 400, 300, 310, 200], [0.1, 0.2, 0.3, 0.35, 0.4], 0),  # a wobble on the way down
        ([20, 400, 399, 398], [0.1, 0.2, 0.3, 0.4], None),  # not clearly
        ([20, 400, 300, 200], [0.4, 0.4, 0.3, 0.2], None),  # the model saw it
        ([400, 300, 200], [0.1, 0.2, 0.3], -1),
        ([20, 400, None, 300, 200], [0.1, 0.2, 0.25, 0.3, 0.4], 0),
        ([20, 400, 300, 200], [None, None, None, None], None),
        ([20], [0.1], None),
        ([], [], None),
    ],
)
def test_since_when_prediction_and_truth_part(gap: Any, trues: Any, means: Any, since: int | None) -> None:
    assert gap(f"gap.partedSince({told(trues, means)})") == since


def test_a_fall_within_the_noise_is_none(gap: Any) -> None:
    assert gap(f"gap.partedSince({told(*PARTED, std=300.0)})") is None
    assert gap(f"gap.partedSince({told(*PARTED, std=300.0)}, 1000)") == 0


def test_rounds_that_were_left_behind_do_not_alarm(gap: Any) -> None:
    trues, means = [20.0, 400.0, 300.0, 200.0, 420.0], [0.1, 0.2, 0.3, 0.4, 0.5]
    assert gap(f"gap.lineage({told(trues, means, {3: 0})}).map((r) => r.round)") == [-1, 0, 3]
    assert gap(f"gap.partedSince({told([*PARTED[0], 190.0], means, {3: 0})})") is None
    assert gap(f"gap.partedSince({told([*PARTED[0], 190.0], means)})") == 0
    assert gap(f"gap.lineage({told([1, 2], [1, 2], {0: 0})}).length") == 1  # nonsense ends, too


def test_steps_go_on_after_going_back(gap: Any) -> None:
    back = "{rounds: [0, 0, 1, 1, 2, 2], steps: [10, 20, 30, 40, 30, 40]}"
    assert gap(f"gap.steadySteps({back})") == [10, 20, 30, 40, 40, 50]
    assert gap("gap.lastOfRounds({rounds: [0, 0, 2], values: [1, 2, 3]})") == {"rounds": [0, 2], "values": [2, 3]}


@pytest.mark.parametrize(
    ("predicted", "true", "rounds", "alarms"),
    [
        ([0.2, 2.44], [0.1, -3.06], [2, 2], True),
        ([2.4, 2.4], [-3, -0.9], [2, 2], False),  # it has recovered
        ([0.2, 0.9], [0.1, -3], [2, 2], False),
        ([2.4], [-3], [1], False),  # in a round before
        ([], [], [], False),  # not measured
    ],
)
def test_an_agent_that_exploits_the_reward_model_in_training_is_an_alarm(
    gap: Any, predicted: list[float], true: list[float], rounds: list[int], alarms: bool
) -> None:
    def series(values: list[float], of: list[int]) -> dict[str, Any]:
        return {"rounds": of, "steps": [100 * (i + 1) for i in range(len(of))], "values": values}

    found = {
        "charts/true_return": series([9.0, 8.0, 7.0], [1, 2, 2]),
        "charts/predicted_gain": series(predicted, rounds), "charts/true_gain": series(true, rounds),
    }  # fmt: skip
    data = f"{{rounds: [], series: {json.dumps(found)}, labels: {{times: [], counts: []}}}}"
    said = gap(f"charts.charts({data}, {LOOK}).training.alarm")
    assert bool(said) == alarms
    if alarms:
        gains = Gains({})
        gains.now = {"charts/predicted_gain": predicted[-1], "charts/true_gain": true[-1]}
        assert said == gains.warning(2).replace("'", "’")  # the words of the terminal


@pytest.mark.parametrize(
    ("kept", "rounds", "told"), [([1, 0], [1, 2], True), ([0, 1], [1, 2], False), ([0], [1], False)]
)
def test_that_the_agent_of_before_was_kept_stands_beside_the_curve(
    gap: Any, kept: list[int], rounds: list[int], told: bool
) -> None:
    truth = {"rounds": [1, 2, 2], "steps": [10, 20, 30], "values": [9.0, 8.0, 7.0]}
    found = {
        "charts/true_return": truth,
        "charts/kept": {"rounds": rounds, "steps": [15, 30][: len(kept)], "values": kept},
    }
    data = f"{{rounds: [], series: {json.dumps(found)}, labels: {{times: [], counts: []}}}}"
    said = gap(f"charts.charts({data}, {LOOK}).training.alarm")
    assert (
        said
        == told * "The reward model likes the agent of before better than the one trained in round 2: that one is kept."
    )


def test_nothing_known_is_no_chart(gap: Any) -> None:
    empty = "{rounds: [], series: {}, labels: {times: [], counts: []}}"
    assert set(gap(f"Object.values(charts.charts({empty}, {LOOK}))")) == {None}


# ---------------------------------------------------------------------------------------------- the panel

DRAWN = "document.querySelectorAll('#curves .scatterlayer .trace').length"


def open_curves(page: Any, server: Any, size: tuple[int, int] = (1280, 800)) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(server.page("cartpole-1"))
    page.wait_for_selector("#curves", state="visible")
    page.evaluate("document.getElementById('curves').scrollIntoView()")
    until(page, f"{DRAWN} > 0")


@SIZES
def test_all_charts_are_drawn(page: Any, serve: Any, make_session: Any, size: tuple[int, int]) -> None:
    put_history(make_session(pairs=0), *PARTED)
    open_curves(page, serve(), size)
    until(
        page, f"{DRAWN} === 13"
    )  # gap, true, predicted; true, predicted; 2 accuracies; floor, 2 losses; 3 single ones
    drawn = page.evaluate(
        "[...document.querySelectorAll('.chart')].filter((c) => c.querySelector('.js-line')).map((c) => c.id)"
    )
    names = ("returns", "training", "accuracy", "loss", "consistency", "labels", "speed")
    assert drawn == [f"chart-{name}" for name in names]
    label = page.get_attribute("#chart-returns .plot", "aria-label")
    assert label == "True and predicted return by round: true 200, predicted 0.40 after round 2"
    assert page.get_attribute("#chart-accuracy .plot", "aria-label").endswith(
        "held out 73 %, beforehand 60 % in round 2"
    )
    assert page.get_attribute("#chart-labels .plot", "aria-label") == "Labels so far: labels 12"
    alarm = page.inner_text("#chart-returns .alarm")
    assert alarm.startswith("Since round 0 the predicted return rose while the true one fell")
    assert alarm.endswith("Watch it on the wall, label such pairs, or go back.")
    assert page.evaluate("document.querySelectorAll('#chart-training .shapelayer path').length") == 2
    assert page.evaluate("document.querySelectorAll('#chart-returns .fills path.js-fill').length") == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.querySelectorAll('.modebar-btn').length") == 0
    page.hover("#chart-returns .nsewdrag")
    until(page, "document.querySelectorAll('#chart-returns .hoverlayer text').length > 0")


def test_no_gap_and_no_alarm_where_all_is_well(page: Any, serve: Any, make_session: Any) -> None:
    put_history(make_session(pairs=0), [10.0, 200.0, 250.0, 300.0], [0.1, 0.2, 0.3, 0.4])
    open_curves(page, serve())
    until(page, "document.querySelectorAll('#chart-returns .js-line').length === 2")
    assert page.evaluate("document.querySelectorAll('#chart-returns .fills path.js-fill').length") == 0
    assert not page.is_visible("#chart-returns .alarm")
    assert page.locator("#chart-returns .keys span").all_inner_texts() == ["true", "predicted"]


def test_the_gap_lies_between_the_lines(page: Any, serve: Any, make_session: Any) -> None:
    """The shaded area's corners on the screen are those of the two lines, though each line has its own axis."""
    put_history(make_session(pairs=0), *PARTED)
    open_curves(page, serve())
    until(page, "document.querySelectorAll('#chart-returns .js-line').length === 3")  # the gap has one without width
    numbers = "((d) => d.match(/-?[\\d.]+,-?[\\d.]+/g).map((p) => p.split(',').map(Number)))"
    area, _, *lines = page.evaluate(
        f"[...document.querySelectorAll('#chart-returns .js-fill, #chart-returns .js-line')].map((p) => {numbers}(p.getAttribute('d')))"
    )
    crossing, above, below = area[:3]
    true, predicted = lines
    assert [above, below] == [pytest.approx(predicted[-1], abs=0.1), pytest.approx(true[-1], abs=0.1)]
    (x0, y0), (x1, y1) = true[-2:]
    share = (crossing[0] - x0) / (x1 - x0)
    assert crossing[1] == pytest.approx(y0 + share * (y1 - y0), abs=0.1)


def test_the_charts_change_with_the_theme(page: Any, serve: Any, make_session: Any) -> None:
    put_history(make_session(pairs=0), *GOOD)
    page.emulate_media(color_scheme="light")
    open_curves(page, serve())
    colour = "getComputedStyle(document.querySelector('#chart-accuracy .js-line')).stroke"
    until(page, f"{colour} === 'rgb(23, 105, 94)'")
    page.emulate_media(color_scheme="dark")
    until(page, f"{colour} === 'rgb(99, 205, 185)'")


def test_the_curves_go_on_while_one_watches(page: Any, serve: Any, make_session: Any) -> None:
    loop = make_session(pairs=0)
    put_history(loop, *GOOD)
    with loop.session.lock():
        open_curves(page, serve())
        loop.record(3, 444.0)
        until(page, "document.querySelector('#chart-returns .plot').ariaLabel.includes('true 444')")
        until(page, "document.querySelectorAll('#chart-returns .point').length === 9")


def test_plotly_is_loaded_only_when_the_curves_are_seen(page: Any, serve: Any, make_session: Any) -> None:
    put_history(make_session(pairs=0), *GOOD)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    tall = "document.querySelector('.hero')?.style.setProperty('min-height', '3000px')"
    page.add_init_script(f"document.addEventListener('DOMContentLoaded', () => ({tall}))")
    page.goto(serve().page("cartpole-1"))
    page.wait_for_selector("#curves", state="visible")
    page.wait_for_timeout(500)
    assert not any("plotly" in url for url in asked)
    page.evaluate("document.getElementById('curves').scrollIntoView()")
    until(page, f"{DRAWN} > 0")
    assert sum("plotly" in url for url in asked) == 1


def test_a_session_that_has_just_begun_has_no_curves(page: Any, serve: Any, make_session: Any) -> None:
    make_session(pairs=0)
    with page.expect_response("**/metrics?*"):
        page.goto(serve().page("cartpole-1"))
    page.wait_for_timeout(200)
    assert not page.is_visible("#curves")


@SIZES
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    page: Any, serve: Any, make_session: Any, size: tuple[int, int], scheme: str
) -> None:
    put_history(make_session(pairs=0), *PARTED)
    page.emulate_media(color_scheme=scheme)
    open_curves(page, serve(), size)
    until(page, f"{DRAWN} === 13")
    assert axe_finds(page) == []
