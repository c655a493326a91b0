"""A session that begins with labels of another: what is taken over, what comes of it, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare import same_tensors
from conftest import FakeLoop
from fastapi.testclient import TestClient
from hypothesis import HealthCheck
from hypothesis import given as given_by
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from pages import API, client, serve
from processes import TINY, Kill, command, refused
from test_export import INFO, export_quietly, give_clips, image_session, lines
from test_history import REPLAY
from test_labeling import add_repeats

from rlhf_gym import adopt, catalog
from rlhf_gym.bundle import gather
from rlhf_gym.config import Config, UserError
from rlhf_gym.labels import Labels, load_labels
from rlhf_gym.store import Session, Where

__all__ = ["client", "serve"]  # fixtures

CONFIG = Config(env_id="CartPole-v1")
CART = INFO | {"fps": 50.0}  # INFO is what the drawn sessions of make_session say
OF_ANOTHER = ("round", "attempt", "position", "p_left", "disagreement")  # what is not taken over of a label


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the session `a` of two rounds, drawn, and its export `out`; not to be changed."""
    cwd = tmp_path_factory.mktemp("given")
    for args in (("run", "CartPole-v1", "--session", "a", *TINY, "--render", "--goal", "Stay up"),
                 ("export", "a", "out", "--format", "jsonl")):  # fmt: skip
        result = command(*args, cwd=cwd)
        assert result.status == 0, result.err
    return cwd


@pytest.fixture
def out(given: Path, tmp_path: Path) -> Path:
    """A copy of the export, to be changed."""
    return Path(shutil.copytree(given / "out", tmp_path / "out"))


def begin(source: Path, data_dir: Path, config: Config = CONFIG, info: dict[str, Any] = CART) -> Session:
    """The new session, without a run."""
    return adopt.read(source, config, info).start(data_dir, "cartpole-1", config, info=info)


def tensors(session: Session) -> Labels:
    found = load_labels(session, lambda actions: actions, session.config.seed, 3, session.wishes().forgotten)
    assert found is not None
    return found


def same_labels(one: Session, two: Session) -> Labels:
    a, b = tensors(one), tensors(two)
    assert [p.id for p in a.pairs] == [p.id for p in b.pairs]
    for name in ("left", "right", "target", "weight", "length", "begin", "end", "count", "ended", "obs", "actions"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.first is None) == (b.first is None)
    return b


def kept(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in OF_ANOTHER}


# ---------------------------------------------------------------------------------------------- what comes of it


def test_what_is_made_of_such_a_session_knows_whose_labels_it_has(given: Path, tmp_path: Path) -> None:
    """Pairs that somebody else judged are not shown again as hidden repeats, one's own are."""
    one_round = (*TINY, "--rounds", "1", "--session", "b", "--labels-from", given / "out")
    for args in (
        ("run", "CartPole-v1", *one_round), ("branch", "b", "whole", "--round", "0"),
        ("branch", "b", "bare", "--round", "-1"), ("replay", "b", "--name", "again"),
    ):  # fmt: skip
        result = command(*args, cwd=tmp_path)
        assert result.status == 0, result.err
    headers = {
        name: json.loads((tmp_path / "data" / name / "config.json").read_text())
        for name in ("b", "whole", "bare", "again")
    }
    taken = headers["b"]["labels_from"]
    assert {name: header.get("labels_from") for name, header in headers.items()} == {
        "b": taken, "whole": taken, "bare": None, "again": taken,
    }  # fmt: skip
    assert taken["labels"] == 12


def test_a_session_begins_with_the_labels_of_another_and_goes_on_with_new_pairs(given: Path, tmp_path: Path) -> None:
    result = command("run", "CartPole-v1", *TINY, "--labels-from", given / "out", cwd=tmp_path)
    assert result.status == 0, result.err
    session, other = (catalog.open_session(d / "data", n) for d, n in ((tmp_path, "cartpole-1"), (given, "a")))
    first, second = session.pairs(0), session.pairs(1)
    assert (len(first), len(second), session.where().phase) == (12, 6, "finished")
    assert "Round 0 has the labels of session a: better 9, equal 3, can't tell 0; clips 20." in result.err
    assert "The goal is that of the labels: Stay up" in result.err
    assert session.goal() == "Stay up"
    assert session.header()["labels_from"] == {"session": "a", "labels": 12, "clips": len(other.clips())}
    assert str(given) not in (session.path / "config.json").read_text()
    assert {p.id for p in second} == set(range(13, 19))
    assert all(p.kind != "repeat" for p in second)  # somebody else may have judged the first ones
    assert all(p.p_left is None and p.disagreement is None for p in first)
    found = {m["round"]: m["value"] for m in session.metrics("reward/prequential_pairs")}
    decided = [p for p in second if p.kind == "uniform" and p.choice in ("left", "right")]
    assert found == ({1: len(decided)} if decided else {})
    assert session.metrics("labels/repeats") == [] or any(p.kind == "repeat" for p in first)
    assert session.disk_bytes() > 0


def test_the_same_settings_and_labels_come_to_the_same_first_round(tmp_path: Path) -> None:
    settings = (*TINY, "--rounds", "1")
    for args in (("run", "CartPole-v1", "--session", "a", *settings), ("export", "a", "out", "--format", "jsonl"),
                 ("run", "CartPole-v1", "--session", "b", *settings, "--labels-from", "out")):  # fmt: skip
        result = command(*args, cwd=tmp_path)
        assert result.status == 0, result.err
    assert "Clips without a picture, which the page cannot show: 12." in result.err
    a, b = (catalog.open_session(tmp_path / "data", name) for name in "ab")
    same_labels(a, b)
    assert same_tensors(a.checkpoint(0), b.checkpoint(0)) >= 8
    for name in ("reward/held_out_accuracy", "reward/loss"):
        assert a.metrics(name)[-1] == b.metrics(name)[-1]  # those before are stored once a second


def test_an_export_of_it_says_the_same_again(given: Path, tmp_path: Path) -> None:
    session = begin(given / "out", tmp_path / "data")
    labels = same_labels(catalog.open_session(given / "data", "a"), session)
    assert any(p.repeat_of for p in labels.pairs)
    assert session.where() == Where(0, 0, "train_reward", 12, 12)
    with pytest.raises(ValueError, match="have gone into training"):
        session.take_back("undo")
    export_quietly(session, tmp_path / "again", "jsonl")
    before, after = (lines(d / "labels.jsonl") for d in (given / "out", tmp_path / "again"))
    assert [kept(label) for label in before] == [kept(label) for label in after]
    assert [label["position"] for label in after] == list(range(12))
    before, after = (lines(d / "clips.jsonl") for d in (given / "out", tmp_path / "again"))
    assert [c | {"round": 0} for c in before] == after
    for clip in before:
        assert (given / "out" / clip["sheet"]).read_bytes() == (tmp_path / "again" / clip["sheet"]).read_bytes()
        one, two = (np.load(d / clip["file"], allow_pickle=False) for d in (given / "out", tmp_path / "again"))
        assert set(one) == set(two)
        assert all(np.array_equal(one[name], two[name], equal_nan=True) for name in one)


def test_a_session_itself_will_do(given: Path, tmp_path: Path) -> None:
    session = begin(given / "data" / "a", tmp_path / "data")
    same_labels(catalog.open_session(given / "data", "a"), session)
    assert [kept(label.row()) for label in gather(session).labels] == [
        kept(label) for label in lines(given / "out" / "labels.jsonl")
    ]
    assert all(clip.sheet and (session.path / clip.sheet).is_file() for clip in session.clips().values())


def test_strengths_ties_and_skips_come_along_with_who_said_so_and_when(make_session: Any, tmp_path: Path) -> None:
    loop = make_session("a", pairs=4)
    give_clips(loop, lambda i: np.full((30, 4), i, np.float32))
    a, b, c, d = loop.session.pairs()
    loop.session.add_label("d", d.id, "skip")
    loop.session.add_label("a", a.id, "left", strength="strong", response_ms=900, replays=2, pauses=1, hidden_ms=7)
    loop.session.add_label("b", b.id, "right", labeler="synthetic")
    loop.session.add_label("c", c.id, "equal")
    export_quietly(loop.session, tmp_path / "out", "jsonl")
    session = begin(tmp_path / "out", tmp_path / "new", CONFIG, INFO)
    with session.read() as db:
        columns = "uid, pair, choice, strength, labeler, response_ms, replays, pauses, hidden_ms, created"
        mine, theirs = (
            [tuple(row) for row in s.exec_driver_sql(f"SELECT {columns} FROM label ORDER BY id")]
            for s in (db, loop.session.engine.connect())
        )
    assert mine == theirs
    assert [row[0] for row in mine] == ["d", "a", "b", "c"]  # in the order of their times


def repeating(make_session: Any) -> FakeLoop:
    """Three pairs whose labels no longer count, one that does, and repeats of the first two."""
    loop: FakeLoop = make_session("a", pairs=4)
    session = loop.session
    pairs = [p.id for p in session.pairs()]
    for n, pair in enumerate(pairs[:3]):
        session.add_label(f"first-{n}", pair, "left")
    session.forget(0)
    session.add_label("counts", pairs[3], "left")
    loop.collect(1, 1)
    add_repeats(loop, 1, pairs[:2])
    for pair in session.pairs(1):
        session.add_label(f"second-{pair.id}", pair.id, "right")
    give_clips(loop, lambda i: np.full((30, 4), i, np.float32))
    return loop


def test_a_repeat_without_its_original_stays_in_the_same_hold_outs(make_session: Any, tmp_path: Path) -> None:
    loop = repeating(make_session)
    export_quietly(loop.session, tmp_path / "out", "jsonl")
    session = begin(tmp_path / "out", tmp_path / "new", CONFIG, INFO)
    labels = same_labels(loop.session, session)
    assert [p.repeat_of for p in labels.pairs if p.kind == "repeat"] == [1, 2]
    assert [(p.id, p.choice) for p in session.pairs() if p.choice is None] == [(1, None), (2, None)]
    assert session.where().phase == "train_reward"  # the batch is closed


def test_which_goal_a_label_was_given_under_is_kept(make_session: Any, tmp_path: Path) -> None:
    loop = make_session("a", pairs=3)
    give_clips(loop, lambda i: np.full((30, 4), i, np.float32))
    for n, pair in enumerate(loop.session.pairs()):
        loop.session.add_label(f"label-{n}", pair.id, "left")
        if n == 0:
            loop.session.add_event("goal", 0, text="Fall over.")
    export_quietly(loop.session, tmp_path / "out", "jsonl")
    session = begin(tmp_path / "out", tmp_path / "new", replace(CONFIG, goal="Swing."), INFO)
    assert session.goal() == "Swing."
    assert [label.goal for label in gather(session).labels] == ["Keep the pole up.", "Fall over.", "Fall over."]
    assert begin(tmp_path / "out", tmp_path / "newer", CONFIG, INFO).goal() == "Fall over."


def test_stacks_of_images_are_taken_over(make_session: Any, tmp_path: Path) -> None:
    loop = image_session(make_session, pairs=2)
    for n, pair in enumerate(loop.session.pairs()):
        loop.session.add_label(f"label-{n}", pair.id, "left")
    export_quietly(loop.session, tmp_path / "out", "jsonl")
    info = INFO | {"obs_shape": [3, 40, 40], "image": True, "kind": "pixels"}
    config = replace(CONFIG, frame_stack=3, image_size=40)
    session = begin(tmp_path / "out", tmp_path / "new", config, info)
    labels = same_labels(loop.session, session)
    assert torch.equal(labels.first, tensors(loop.session).first)
    for wrong, said in (({"frame_stack": 4}, "add --frame-stack 3"), ({"image_size": 84}, "add --image-size 40")):
        with pytest.raises(UserError, match=said):
            adopt.read(tmp_path / "out", replace(config, **wrong), info)


# ---------------------------------------------------------------------------------------------- the pages


def test_the_page_lists_the_labels_and_shows_their_clips(given: Path, client: TestClient, tmp_path: Path) -> None:
    begin(given / "out", tmp_path / "data")
    for _ in range(2):
        history = client.get(f"{API}/history", params={"order": "oldest"}).json()
        assert (history["total"], history["rounds"]) == (12, [0])
        assert [p["choice"] for p in history["pairs"]] == [x["choice"] for x in lines(given / "out" / "labels.jsonl")]
        for clip in (pair[side] for pair in history["pairs"] for side in ("left", "right")):
            answer = client.get(clip["url"])
            assert (answer.status_code, answer.content[:4]) == (200, b"\x89PNG")
    for path in (API, f"{API}/goals", f"{API}/labels", f"{API}/pairs", "/api/sessions", "/s/cartpole-1"):
        assert client.get(path).status_code == 200, path


def test_clips_without_a_picture_say_so(out: Path, client: TestClient, tmp_path: Path) -> None:
    for n, path in enumerate(sorted((out / "clips").glob("*.png"))):
        path.unlink() if n % 2 else path.write_bytes(b"no picture")
    session = begin(out, tmp_path / "data")
    assert all(clip.sheet is None for clip in session.clips().values())
    history = client.get(f"{API}/history").json()
    assert {pair[side]["url"] for pair in history["pairs"] for side in ("left", "right")} == {None}
    assert client.get(f"{API}/clips/1.png").status_code == 404
    assert client.get("/s/cartpole-1").status_code == 200


def test_in_the_browser_a_label_of_another_is_looked_at_again(out: Path, page: Any, serve: Any, tmp_path: Path) -> None:
    *_, last = lines(out / "labels.jsonl")
    shown, hidden = next(label for label in lines(out / "labels.jsonl") if label["left"] != last["left"]), last
    (out / f"clips/{hidden['left']:06d}.png").unlink()
    session = begin(out, tmp_path / "data")
    session.checkpoint(0).write_bytes(b"weights")  # as if it had been trained: labels are shown beside the rest
    page.goto(serve().page("cartpole-1"))
    page.locator(f"[data-pair='{shown['pair']}']").click()
    page.wait_for_selector(REPLAY)
    page.keyboard.press("Escape")
    page.locator(f"[data-pair='{hidden['pair']}']").click()
    page.wait_for_function("document.querySelector('#replay .stage-note').textContent.includes('have no picture')")


# ---------------------------------------------------------------------------------------------- what is refused


def nothing_in(data_dir: Path) -> bool:
    return not data_dir.exists() or list(data_dir.iterdir()) == []


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = lines(path)
    changed = change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in (changed if changed is not None else rows)))


def label(**values: Any) -> Callable[[Path], None]:
    """Changes the third label."""
    return lambda out: rewrite(out / "labels.jsonl", lambda rows: rows[2].update(values))


def clip(**values: Any) -> Callable[[Path], None]:
    """Changes the first clip's line."""
    return lambda out: rewrite(out / "clips.jsonl", lambda rows: rows[0].update(values))


def about(**values: Any) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        found = json.loads((out / "dataset.json").read_text())
        (out / "dataset.json").write_text(json.dumps(found | values))

    return change


def settings(**values: Any) -> Callable[[Path], None]:
    return lambda out: about(settings=json.loads((out / "dataset.json").read_text())["settings"] | values)(out)


def arrays(**changes: Any) -> Callable[[Path], None]:
    """Changes arrays of the first clip: a function of what there is, or None to leave it out."""

    def change(out: Path) -> None:
        path = out / lines(out / "clips.jsonl")[0]["file"]
        found = dict(np.load(path))
        for name, value in changes.items():
            found[name] = value(found[name]) if value is not None else None
        np.savez_compressed(path, **{name: value for name, value in found.items() if value is not None})

    return change


def cut_short(name: str, size: int = -40) -> Callable[[Path], None]:
    return lambda out: (out / name).write_bytes((out / name).read_bytes()[:size]) and None


def choices(*few: str) -> Callable[[Path], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        for n, row in enumerate(rows):
            row["choice"] = few[n % len(few)]

    return lambda out: rewrite(out / "labels.jsonl", change)


def emptied(out: Path) -> None:
    (out / "labels.jsonl").write_text("")
    about(labels=0)(out)


def poisoned(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[1] = value
        return array

    return change


FIRST = "clips/000001.npz"
REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no directory": (lambda out: shutil.rmtree(out), "does not exist: give one that"),
    "a file": (lambda out: (shutil.rmtree(out), out.write_text("x")), "is no directory"),
    "no export": (lambda out: (out / "dataset.json").unlink(), "holds no dataset.json, so it is no export"),
    "another format": (about(format="zip"), 'is of format "zip", not rlhf-gym-labels'),
    "a newer version": (about(version=2), "is of version 2 of its format, this rlhf-gym reads 1: update rlhf-gym"),
    "no version": (about(version=None), "is of version null of its format"),
    "no JSON": (cut_short("dataset.json"), "dataset.json cannot be read"),
    "a list": (lambda out: (out / "dataset.json").write_text("[]"), "is no JSON object"),
    "deep": (lambda out: (out / "dataset.json").write_text("[" * 100_000), "cannot be read"),
    "another environment": (about(env_id="evil:Cart\n\x1b[2J"), r'are of "evil:Cart\\n\\u001b\[2J", not of "CartPole-v1"'),
    "kwargs": (about(env_kwargs={"sutton_barto_reward": True}), r"add --env-kwargs '\{\"sutton_barto_reward\": true\}'"),
    "episode ends": (settings(episode_ends="hide"), "episode_ends \"hide\", here it is \"absorb\": add --episode-ends hide"),
    "pixels": (settings(pixels=True), "pixels true, here it is false: add --pixels, or"),
    "untold": (settings(pixels={}), "export again"),
    "info": (about(info={"obs_shape": "4"}), "does not say what its observations and actions are"),
    "another shape": (about(info=CART | {"obs_shape": [5]}), r"observations of shape \[5\], here it has \[4\]"),
    "other actions": (about(info=CART | {"num_actions": 3}), "a number of actions of 3, here it has 2"),
    "another speed": (about(info=INFO), "steps a second of 30.0, here it has 50.0: install the version"),
    "no labels": (emptied, "holds no labels, from which nothing can be learned"),
    "ties and skips": (choices("equal", "skip"), "holds only 6 ties and 6 skips, from which nothing can be learned"),
    "lines lost": (cut_short("labels.jsonl", 1), "labels.jsonl, line 1 cannot be read"),
    "labels lost": (lambda out: rewrite(out / "labels.jsonl", lambda r: r[:-1]), "has 11 lines, 12 by dataset.json"),
    "no lines": (lambda out: (out / "clips.jsonl").unlink(), "holds no file clips.jsonl"),
    "NaN": (lambda out: (out / "labels.jsonl").write_text('{"labeled": NaN}'), "NaN is no number of JSON"),
    "digits": (lambda out: (out / "labels.jsonl").write_text("9" * 10_000), "cannot be read"),
    "twice": (label(uid="synthetic-1-0", pair=1), "line 3: pair 1 stands there twice"),
    "the same uid": (lambda out: rewrite(out / "labels.jsonl", lambda r: [x | {"uid": "x"} for x in r]), 'line 2: uid "x" stands there twice'),
    "the labeler's own uid": (label(uid="synthetic-99-0"), "is not of pair 3"),
    "a missing clip": (label(left=4000), "line 3: there is no clip 4000 in clips.jsonl"),
    "a repeat of nothing": (label(kind="repeat"), "of kind repeat cannot repeat pair null"),
    "a repeat of itself": (label(kind="repeat", repeat_of=3), "cannot repeat pair 3"),
    "a repeat of others": (label(kind="repeat", repeat_of=1), "pair 3 does not show the clips of pair 1"),
    "a word": (label(choice="up"), 'line 3: choice is "up", not one of left, right, equal, skip'),
    "a list for a word": (label(choice=["left"]), r'choice is \["left"\]'),
    "strength": (label(strength=2), "strength is 2, not one of"),
    "a time": (label(labeled=1e300), r"labeled is 1e\+300"),
    "a number of clicks": (label(replays=True), "replays is true, not a whole number"),
    "half a character": (label(uid="\ud800"), r'uid is "\\ud800", not text'),
    "a long uid": (label(uid="x" * 65), "not text of 1 to 64 characters"),
    "a large id": (label(pair=2**62), "pair is 4611686018427387904"),
    "a clip twice": (lambda out: rewrite(out / "clips.jsonl", lambda r: [r[0], r[0], *r[2:]]), "line 2: clip 1 stands there twice"),
    "fps": (clip(fps=0), "fps is 0, not a number from"),
    "steps": (clip(steps=10**9), "steps is 1000000000, not"),
    "out of it": (clip(file="../secret.npz"), r'holds no file "../secret.npz"'),
    "absolute": (clip(file="/etc/passwd"), 'holds no file "/etc/passwd"'),
    "NUL": (clip(file="clips/\0.npz"), "holds no file"),
    "other steps": (clip(steps=7), "has 20 steps, 7 by clips.jsonl"),
    "truncated": (cut_short(FIRST), "000001.npz cannot be read"),
    "gone": (lambda out: (out / FIRST).unlink(), "holds no file"),
    "pickled": (arrays(observations=lambda x: np.array([{}] * len(x), object)), "is no array of"),
    "an array less": (arrays(actions=None), "cannot be read"),
    "NaN observations": (arrays(observations=poisoned(np.nan)), "are NaN, or beyond 1e"),
    "infinite ones": (arrays(observations=poisoned(np.inf)), "are NaN, or beyond 1e"),
    "actions": (arrays(actions=poisoned(2)), "has actions that are none of the 2"),
    "negative ones": (arrays(actions=poisoned(-1)), "has actions that are none of the 2"),
    "float64": (arrays(observations=lambda x: x.astype(np.float64)), "of float64, int64, float32, not float32, int64"),
    "wide": (arrays(observations=lambda x: np.repeat(x, 2, 1)), r"has observations of shape \(8,\)"),
    "fewer rewards": (arrays(rewards=lambda x: x[:-1]), "not 20 steps"),
    "rewards of rewards": (arrays(rewards=lambda x: x[:, None]), "has observations of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_a_sentence_and_leaves_no_session(name: str, out: Path, tmp_path: Path) -> None:
    change, said = REFUSED[name]
    (tmp_path / "secret.npz").write_bytes((out / FIRST).read_bytes())
    change(out)
    with pytest.raises(UserError, match=said) as error:
        begin(out, tmp_path / "data")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000
    assert str(error.value).endswith(".")
    assert nothing_in(tmp_path / "data")


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("name", ["dataset.json", "labels.jsonl", FIRST])
def test_links_that_lead_out_are_not_followed(name: str, out: Path, tmp_path: Path) -> None:
    (out / name).rename(tmp_path / "elsewhere")
    (out / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds no file"):
        begin(out, tmp_path / "data")
    assert nothing_in(tmp_path / "data")


def test_a_picture_that_leads_out_is_none(out: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes((out / "clips/000001.png").read_bytes())
    clip(sheet="../secret.png")(out)
    session = begin(out, tmp_path / "data")
    assert session.clips()[1].sheet is None
    assert session.clips()[2].sheet is not None


def test_large_files_are_not_read(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopt, "MAX_LINES_BYTES", 1000)
    with pytest.raises(UserError, match=r"labels.jsonl has \d+ bytes, more than the 1000 that are read"):
        begin(out, tmp_path / "data")
    monkeypatch.setattr("rlhf_gym.segments.MAX_BYTES", 100)
    monkeypatch.setattr(adopt, "MAX_LINES_BYTES", 10**6)
    with pytest.raises(UserError, match="it is larger than 100 bytes"):
        begin(out, tmp_path / "data")
    assert nothing_in(tmp_path / "data")


def test_a_true_reward_of_nan_is_no_trouble(out: Path, tmp_path: Path) -> None:
    arrays(rewards=poisoned(np.nan))(out)
    session = begin(out, tmp_path / "data")
    assert session.clips()[1].true_return is None


VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 1.5, 1e300, 10**30, 2**53, "", "x", "\ud800", "\0", [], {}, [1], {"a": [[]]}, "left", "repeat",
    "../secret.npz", FIRST, float("inf"),
)  # fmt: skip


@settings_of_hypothesis(deadline=None, derandomize=True, max_examples=60, suppress_health_check=list(HealthCheck))
@given_by(st.data())
def test_any_value_anywhere_is_taken_over_or_one_sentence(given: Path, tmp_path_factory: Any, data: Any) -> None:
    directory = tmp_path_factory.getbasetemp() / "changed"
    if not directory.exists():
        shutil.copytree(given / "out", directory / "out")
    found = json.loads((given / "out" / "dataset.json").read_text())
    rows = {name: lines(given / "out" / f"{name}.jsonl") for name in ("labels", "clips")}
    changed = data.draw(st.sampled_from([found, found["settings"], found["info"], *rows["labels"], *rows["clips"]]))
    name = data.draw(st.sampled_from(sorted(changed)))
    if data.draw(st.integers(0, 4)):
        changed[name] = data.draw(st.sampled_from(VALUES))
    else:
        del changed[name]
    (directory / "out" / "dataset.json").write_text(json.dumps(found))
    for name, each in rows.items():
        (directory / "out" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    shutil.rmtree(directory / "data", ignore_errors=True)
    said = ""
    try:
        session = begin(directory / "out", directory / "data")
        assert session.where() == Where(0, 0, "train_reward", 12, 12)
        session.close()
    except UserError as error:
        said = str(error)
    assert said == "" or (said.isprintable() and nothing_in(directory / "data"))


def test_nothing_of_a_stranger_is_run_or_chosen(out: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('run', 'w').close()\n")
    settings(score="evil:score", labeler="human", seed=99, mistake_rate=0.5)(out)
    result = command("run", "CartPole-v1", *TINY, "--rounds", "1", "--labels-from", "out", cwd=tmp_path)
    assert result.status == 0, result.err
    assert not (tmp_path / "run").exists()
    config = catalog.open_session(tmp_path / "data", "cartpole-1").config
    assert (config.score, config.labeler, config.seed, config.mistake_rate) == ("", "synthetic", 1, 0.0)


def test_the_command_refuses_and_leaves_no_session(given: Path, tmp_path: Path) -> None:
    def asked(*args: object) -> str:
        said = refused(command("run", *args, *TINY, cwd=tmp_path))
        assert nothing_in(tmp_path / "data")
        return said

    shared = given / "out"
    assert "does not exist" in asked("CartPole-v1", "--labels-from", "nowhere")
    assert 'are of "CartPole-v1", not of "Acrobot-v1"' in asked("Acrobot-v1", "--labels-from", shared)
    assert "add --episode-ends absorb" in asked("CartPole-v1", "--labels-from", shared, "--episode-ends", "hide")
    kwargs = ("--env-kwargs", '{"sutton_barto_reward": true}')
    assert "leave out --env-kwargs" in asked("CartPole-v1", "--labels-from", shared, *kwargs)
    where = ("--data-dir", given / "data", "--labels-from", shared)
    assert "exists already" in refused(command("run", "CartPole-v1", "--session", "a", *where, cwd=tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_kill_in_the_middle_leaves_no_session(given: Path, tmp_path: Path) -> None:
    args = ("run", "CartPole-v1", *TINY, "--rounds", "1", "--labels-from", given / "out")
    for where, call in (("rlhf_gym.adopt:take_clip", 3), ("rlhf_gym.adopt:insert", 1)):
        assert command(*args, cwd=tmp_path, kill=Kill(where, call)).status == -9
        assert catalog.session_names(tmp_path / "data") == []
    result = command(*args, cwd=tmp_path)
    assert result.status == 0, result.err
    assert catalog.session_names(tmp_path / "data") == ["cartpole-1"]
    assert "cartpole-1" in command("list", cwd=tmp_path).out


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_session_killed_before_its_first_checkpoint_is_resumed(given: Path, tmp_path: Path) -> None:
    args = ("run", "CartPole-v1", *TINY, "--rounds", "1", "--labels-from", given / "out")
    kill = Kill("rlhf_gym.loop:prepare", 1, before=True)
    assert command(*args, cwd=tmp_path, kill=kill).status == -9
    result = command("resume", "cartpole-1", cwd=tmp_path)
    assert result.status == 0, result.err
    assert "round 0 label" not in result.err
    assert catalog.open_session(tmp_path / "data", "cartpole-1").trained_rounds() == [-1, 0]
