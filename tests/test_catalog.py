"""Sessions in a data directory: their names, the list of them, and the trash."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows import CONFIG, clip, collect, pair, session, train

from rlhf_gym import catalog
from rlhf_gym.config import UserError
from rlhf_gym.store import START, Session

__all__ = ["session"]  # a fixture

# ---------------------------------------------------------------------------------------------- sessions by name


@pytest.mark.parametrize(
    "name",
    ["../x", "..", ".", "", "a/b", "/tmp/x", "a\\b", ".hidden", "-x", "A", "ä", "a b", "a\n", "x" * 65, "a:b", "a\0"],
)
def test_no_name_leaves_the_data_directory(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for refuse in (
        lambda: catalog.check_name(name),
        lambda: catalog.create_session(data, name, CONFIG),
        lambda: catalog.open_session(data, name),
    ):
        with pytest.raises(UserError, match="is not allowed"):
            refuse()
    assert list(tmp_path.iterdir()) == [data]
    assert list(data.iterdir()) == []


@given(st.text(min_size=1, max_size=80))
def test_a_name_that_is_allowed_is_one_plain_file_name(name: str) -> None:
    try:
        catalog.check_name(name)
    except UserError:
        return
    assert Path("data", name).parent == Path("data")
    assert name not in (".", "..")
    assert name.isascii()
    assert name == name.lower()


def test_new_names_count_on(tmp_path: Path) -> None:
    assert catalog.new_name(tmp_path, "CartPole-v1") == "cartpole-1"
    assert catalog.new_name(tmp_path / "not there", "CartPole-v1") == "cartpole-1"
    for number in (1, 2, 4):
        (tmp_path / f"cartpole-{number}").mkdir()  # even one that is no session, or not yet
    assert catalog.new_name(tmp_path, "CartPole-v1") == "cartpole-3"
    assert catalog.new_name(tmp_path, "ALE/Pong-v5") == "pong-1"
    assert catalog.new_name(tmp_path, "rlhf_gym/Dot-v0") == "dot-1"


@given(st.text(max_size=90))
def test_every_environment_has_a_name_that_is_allowed(env_id: str) -> None:
    catalog.check_name(catalog.new_name(Path("/nonexistent"), env_id))


def test_sessions_are_listed_newest_first(tmp_path: Path) -> None:
    for i, name in enumerate(("b", "c", "a")):
        catalog.create_session(tmp_path, name, CONFIG).close()
        os.utime(tmp_path / name / "config.json", (1000.0 + i, 1000.0 + i))
    (tmp_path / "half").mkdir()  # killed before config.json was written: no session
    (tmp_path / "NO").mkdir()
    (tmp_path / "NO" / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("x")
    assert catalog.session_names(tmp_path) == ["a", "c", "b"]
    assert catalog.session_names(tmp_path / "not there") == []


def test_an_unknown_session_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'No session "pong" in .*/\. It has none yet\. Start one: rlhf-gym run'):
        catalog.open_session(tmp_path, "pong")
    catalog.create_session(tmp_path, "cartpole-1", CONFIG).close()
    with pytest.raises(UserError, match="Sessions: cartpole-1"):
        catalog.open_session(tmp_path, "pong")


def test_a_data_directory_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"Cannot write to .*file.*--data-dir"):
        catalog.create_session(tmp_path / "file", "one", CONFIG)


def test_a_summary_is_json(session: Session) -> None:
    train(session, START)
    collect(session)
    session.add_label("a", session.pairs()[0].id, "left")
    session.put_metrics(START, "record", 0, {"eval/mean": 9.5, "eval/mean_length": 9.5})
    summary = json.loads(json.dumps(session.summary(), allow_nan=False))
    assert summary.pop("disk_bytes") > 0
    assert time.time() - summary.pop("last_activity") < 60
    assert summary == dict(
        name="one", env_id="CartPole-v1", goal="", labeler="synthetic", round=0, phase="label", running=False,
        labels=1, pairs=3, true_returns=[{"round": START, "mean": 9.5}], title="", archived=False,
    )  # fmt: skip


def test_a_copied_directory_is_a_copied_session(session: Session, tmp_path: Path) -> None:
    """Even one that is copied while it is open: what was committed is in its files."""
    import shutil

    session.add_label("a", collect(session)[0], "left")
    shutil.copytree(session.path, tmp_path / "elsewhere" / "two")
    copy = catalog.open_session(tmp_path / "elsewhere", "two")
    assert [p.choice for p in copy.pairs()] == ["left", None, None]
    copy.close()


# ---------------------------------------------------------------------------------------------- the trash


def test_a_session_in_the_trash_is_whole_and_comes_back(session: Session, tmp_path: Path) -> None:
    data = tmp_path / "data"
    collect(session)
    session.add_label("a", session.pairs()[0].id, "left")
    assert catalog.trash_session(data, session) == data / ".trash" / "one"
    assert catalog.session_names(data) == []
    assert not session.running()  # and asking does not make the directory again
    assert [p.name for p in data.iterdir()] == [".trash"]
    with pytest.raises(UserError, match='No session "one"'):
        catalog.open_session(data, "one")
    (data / ".trash" / "one").rename(data / "one")
    back = catalog.open_session(data, "one")
    assert [p.choice for p in back.pairs()] == ["left", None, None]
    back.close()


def test_the_trash_overwrites_nothing(tmp_path: Path) -> None:
    name = "x" * 64
    moved = [catalog.trash_session(tmp_path, catalog.create_session(tmp_path, name, CONFIG)) for _ in range(3)]
    assert [p.name for p in moved] == [name, "x" * 58 + "-2", "x" * 58 + "-3"]
    for path in moved:
        assert catalog.check_name(path.name)  # so that it can be moved back as it is
        assert (path / "config.json").is_file()


def test_a_session_that_runs_is_not_trashed(session: Session, tmp_path: Path) -> None:
    other = Session(session.path)
    with other.lock(), pytest.raises(UserError, match="'one' is running: stop it, then delete it"):
        catalog.trash_session(tmp_path / "data", session)
    assert catalog.session_names(tmp_path / "data") == ["one"]
    other.close()


def test_a_trash_that_cannot_be_made_is_one_sentence(session: Session, tmp_path: Path) -> None:
    (tmp_path / "data" / ".trash").write_text("in the way")
    with pytest.raises(UserError, match=r"could not be moved to .*\.trash"):
        catalog.trash_session(tmp_path / "data", session)
    assert session.where().phase == "collect"  # it is usable as before


def test_the_newest_picture(session: Session) -> None:
    assert session.newest_picture() is None
    for number in range(2):
        session.add_batch(
            [clip(i, number, sheet=f"{number}-{i}.png" if i else None) for i in range(2)], [pair(0, number)]
        )
    collect(session, round=2)  # nothing was rendered
    newest = session.newest_picture()
    assert newest is not None
    assert newest.sheet == "1-1.png"
