"""A session from a stranger: nothing of it is run without a word, and nothing outside it is read, written or deleted."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import pickle
import shutil
import sqlite3
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from processes import TINY, command, refused

from rlhf_gym import catalog, store, trust
from rlhf_gym.checkpoints import load_state, save_state
from rlhf_gym.config import Config, UserError
from rlhf_gym.home import load_secret
from rlhf_gym.labels import load_labels
from rlhf_gym.segments import Segment, load_clip, save_segment
from rlhf_gym.store import Session
from webui.app import create_app
from webui.state import sheet_path

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks its processes, makes links")

MARK = "the module was run"
EVIL = f"open({MARK!r}, 'w').close()\ndef score(clip):\n    return 1.0\n"
WATCH = ("watch", "one", "--no-open")
EVALUATE = ("evaluate", "one", "--episodes", "1")
RESUME = ("resume", "one")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished session `one`, and a module `evil` that leaves a file when it is imported."""
    cwd = tmp_path_factory.mktemp("made")
    result = command("run", "CartPole-v1", "--session", "one", *TINY, "--rounds", "1", "--render", cwd=cwd)
    assert result.status == 0, result.err
    (cwd / "evil.py").write_text(EVIL)
    return cwd


@pytest.fixture
def cwd(made: Path, tmp_path: Path) -> Path:
    """As it arrives somewhere else: the key of the one who made it stays with them."""
    shutil.copytree(made / "data", tmp_path / "data")
    shutil.copy(made / "evil.py", tmp_path)
    return tmp_path


def change(cwd: Path, **settings: Any) -> None:
    path = cwd / "data" / "one" / "config.json"
    header = json.loads(path.read_text())
    header["config"] |= settings
    path.write_text(json.dumps(header))


def change_checkpoints(cwd: Path, **settings: Any) -> None:
    for path in (cwd / "data" / "one" / "checkpoints").iterdir():
        state = load_state(path)
        meta = json.loads(state["meta"])
        meta["config"] = json.dumps({**json.loads(meta["config"]), **settings})
        save_state(path, {**state, "meta": json.dumps(meta)})


def was_run(cwd: Path) -> bool:
    return (cwd / MARK).exists()


# ---------------------------------------------------------------------------------------------- what would run


BRINGS = {
    "an environment": ({"env_id": "evil:CartPole-v1"}, '"evil:CartPole-v1"'),
    "settings of the environment": ({"env_kwargs": {"sutton_barto_reward": True}}, '"sutton_barto_reward": true'),
    "a score function": ({"score": "evil:score"}, '"evil:score"'),
}


@pytest.mark.parametrize("what", BRINGS)
@pytest.mark.parametrize(
    "args",
    [RESUME, (*RESUME, "--rounds", "2"), ("run", "CartPole-v1", "--session", "one"),
     ("run", "evil:CartPole-v1", "--session", "one"), WATCH, EVALUATE],
    ids=" ".join,
)  # fmt: skip
def test_what_a_strangers_session_brings_is_said_and_not_run(cwd: Path, what: str, args: tuple[str, ...]) -> None:
    settings, shown = BRINGS[what]
    change(cwd, **settings)
    change_checkpoints(cwd, **settings)
    before = (cwd / "data" / "one" / "config.json").read_bytes()
    said = refused(command(*args, cwd=cwd))
    assert not was_run(cwd)
    assert shown in said
    assert "--trust" in said
    assert (cwd / "data" / "one" / "config.json").read_bytes() == before


def test_lists_and_pages_run_nothing(cwd: Path) -> None:
    change(cwd, env_id="evil:CartPole-v1", score="evil:score")
    assert command("list", cwd=cwd).status == 0
    assert json.loads(command("list", "--json", cwd=cwd).out)["sessions"][0]["env_id"] == "evil:CartPole-v1"
    here = Path.cwd()
    os.chdir(cwd)  # where the module lies
    try:
        app = create_app(cwd / "data")
        with TestClient(app, "http://127.0.0.1:8000") as client:
            for path in ("/", "/s/one", "/api/sessions", "/api/s/one", "/api/s/one/wall", "/api/s/one/history"):
                assert client.get(path).status_code == 200, path
            assert client.post("/api/s/one/steer", json={"do": "more"}).status_code == 200
        app.state.sessions.close()
    finally:
        os.chdir(here)
    assert not was_run(cwd)
    assert "evil" not in sys.modules


def test_retraining_asks_too(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_gym import retrain

    change(cwd, env_id="evil:CartPole-v1")
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("HOME", str(cwd))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(UserError, match="--trust"):
        retrain.retrain(retrain.Train(session="one"), [])
    assert not was_run(cwd)


def test_a_confirmed_session_goes_on_and_is_not_asked_about_again(cwd: Path) -> None:
    change(cwd, env_id="evil:CartPole-v1")
    change_checkpoints(cwd, env_id="evil:CartPole-v1")
    result = command(*EVALUATE, "--trust", cwd=cwd)
    assert result.status == 0, result.err
    assert was_run(cwd)
    assert command(*WATCH, cwd=cwd).status == 0
    assert command(*RESUME, cwd=cwd).status == 0
    change(cwd, score="evil:score")  # and what comes after is another thing
    assert "--trust" in refused(command(*RESUME, cwd=cwd))


def test_ones_own_sessions_go_on_without_a_question_moved_or_copied(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "evil.py", tmp_path)
    result = command("run", "evil:CartPole-v1", "--session", "mine", *TINY, "--rounds", "1", cwd=tmp_path)
    assert result.status == 0, result.err
    (tmp_path / "data" / "mine").rename(tmp_path / "data" / "moved")
    shutil.copytree(tmp_path / "data" / "moved", tmp_path / "elsewhere" / "copy")
    for args in (("resume", "moved"), ("evaluate", "copy", "--episodes", "1", "--data-dir", "elsewhere")):
        result = command(*args, cwd=tmp_path)
        assert result.status == 0, result.err
    result = command("resume", "moved", "--score", "evil:score", cwd=tmp_path)  # the user's own word
    assert result.status == 0, result.err
    assert command("resume", "moved", cwd=tmp_path).status == 0
    key = tmp_path / ".config" / "rlhf-gym" / trust.KEY
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text() not in (tmp_path / "data" / "moved" / "config.json").read_text()
    key.unlink()  # another machine, another user
    assert "--trust" in refused(command("resume", "moved", cwd=tmp_path))


def test_a_registered_environment_as_it_is_needs_no_word(cwd: Path) -> None:
    assert command(*EVALUATE, cwd=cwd).status == 0
    assert not (cwd / ".config").exists()  # nothing to sign, so no key


@pytest.mark.parametrize("args", [WATCH, EVALUATE, (*RESUME, "--rounds", "2")], ids=" ".join)
@pytest.mark.parametrize("settings", [{"env_id": "evil:CartPole-v1"}, {"env_kwargs": {"sutton_barto_reward": True}}])
def test_a_checkpoint_brings_nothing_that_its_session_does_not(
    cwd: Path, args: tuple[str, ...], settings: dict[str, Any]
) -> None:
    change_checkpoints(cwd, **settings)
    result = command(*args, cwd=cwd)
    assert result.status == 1
    assert "is of another environment than its session" in result.err.splitlines()[-1]
    assert not was_run(cwd)


def test_the_score_of_a_checkpoint_is_never_used(cwd: Path) -> None:
    change_checkpoints(cwd, score="evil:score")
    for args in (WATCH, EVALUATE, (*RESUME, "--rounds", "2")):
        result = command(*args, cwd=cwd)
        assert result.status == 0, result.err
    assert not was_run(cwd)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (MARK, "w"))


def test_a_checkpoint_that_is_a_program_is_not_run(cwd: Path) -> None:
    for path in (cwd / "data" / "one" / "checkpoints").iterdir():
        torch.save({"meta": Bomb()}, path)
    assert "cannot be read" in refused(command(*EVALUATE, cwd=cwd))
    (cwd / "data" / "one" / "checkpoints" / "r000.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    assert "cannot be read" in refused(command(*WATCH, cwd=cwd))
    assert not was_run(cwd)


def test_a_picture_in_a_format_that_runs_programs_is_none(make_session: Any) -> None:
    """Pillow hands an EPS to Ghostscript, whatever the file is called."""
    loop = make_session(pairs=1)
    for clip in loop.session.clips().values():
        Image.new("RGB", (960, 320)).save(loop.session.path / clip.sheet, "EPS")
    app = create_app(loop.session.path.parent)
    client = TestClient(app, "http://127.0.0.1:8000")
    assert client.get("/api/s/cartpole-1/thumbnail.png").status_code == 404
    app.state.sessions.close()


# ---------------------------------------------------------------------------------------------- the question


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("YES", True), ("", False), ("n", False), ("yo", False)])
def test_on_a_terminal_it_is_asked(
    make_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, goes_on: bool
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    session = make_session(env_id="evil\x1b[2J:X-v0", env_kwargs={"xml_file": "/x"}, score="s:f").session
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr(sys, "stderr", terminal)
    if goes_on:
        trust.require(session, False)
        trust.require(session, False)  # answered for good: there is no second line to read
    else:
        with pytest.raises(UserError, match="not confirmed: nothing of it was run"):
            trust.require(session, False)
    shown = terminal.getvalue()
    assert all(part in shown for part in (r"evil\u001b[2J:X-v0", '{"xml_file": "/x"}', '"s:f"', "[y/N]"))
    assert "\x1b" not in shown
    assert shown.count("[y/N]") == 1


@pytest.mark.parametrize("signature", [None, 5, [], "", "\ud800", "0" * 64, "x"])
def test_no_signature_but_the_right_one_counts(
    make_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signature: Any
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    session = make_session(score="s:f").session
    session.write_config(session.config, signature=signature)
    with pytest.raises(UserError, match="--trust"):
        trust.require(session, False)
    session.write_config(session.config, **trust.signed(session.config))
    trust.require(session, False)


def test_a_session_that_would_log_to_ones_account_is_asked_about() -> None:
    assert trust.brings(Config(env_id="CartPole-v1")) == {}
    assert trust.brings(Config(env_id="CartPole-v1", track=True)) == {"env_id": "CartPole-v1", "track": True}


def test_signatures_tell_settings_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    configs = [
        Config(env_id="a:B-v0"), Config(env_id="a:C-v0"), Config(env_id="a:B-v0", score="s:f"),
        Config(env_id="B-v0", score="s:f"), Config(env_id="B-v0", env_kwargs={"x": 1}),
        Config(env_id="B-v0", env_kwargs={"x": 2}), Config(env_id="B-v0", env_kwargs={"x": {"score": "s:f"}}),
    ]  # fmt: skip
    assert len({trust.sign(c) for c in configs}) == len(configs)
    assert trust.sign(Config(env_id="a:B-v0", goal="up", rounds=3)) == trust.sign(configs[0])
    assert trust.sign(Config(env_id="ALE/Pong-v5")) == ""


def test_without_a_place_for_the_key_a_session_is_made_and_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".config").write_text("no directory")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust.signed(Config(env_id="a:B-v0")) == {}
    assert trust.signed(Config(env_id="CartPole-v1")) == {"signature": ""}


# ---------------------------------------------------------------------------------------------- nothing outside


LINKS: dict[str, Callable[[Path, Path], None]] = {
    "clips": lambda s, out: swap(s / "clips", out),
    "clips/r000": lambda s, out: swap(s / "clips" / "r000", out),
    "videos": lambda s, out: swap(s / "videos", out),
    "checkpoints": lambda s, out: swap(s / "checkpoints", out),
    "tb": lambda s, out: swap(s / "tb", out),
    "videos/r000.mp4": lambda s, out: swap(s / "videos" / "r000.mp4", out / "precious"),
    "videos/.r000.mp4": lambda s, out: swap(s / "videos" / ".r000.mp4", out / "precious"),
    "checkpoints/r000.pt": lambda s, out: swap(s / "checkpoints" / "r000.pt", out / "precious"),
    "session.db": lambda s, out: swap(s / "session.db", out / "precious"),
    "config.json": lambda s, out: swap(s / "config.json", out / "config.json"),
    "progress.json": lambda s, out: swap(s / "progress.json", out / "precious"),
    "loop.lock": lambda s, out: swap(s / "loop.lock", out / "precious"),
    "dangling": lambda s, out: swap(s / "checkpoints" / "r000.train_agent.pt", out / "new"),
}


def swap(path: Path, target: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.fixture
def outside(cwd: Path) -> Path:
    """A directory whose files all have names that a loop would delete or replace."""
    directory = cwd / "outside"
    (directory / "r007").mkdir(parents=True)
    for name in ("precious", ".half-written", ".r000.mp4", "r007/0000.png", "start.train_agent.pt", "r000.npz"):
        (directory / name).write_bytes(b"precious")
    shutil.copy(cwd / "data" / "one" / "config.json", directory)
    return directory


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("what", LINKS)
def test_a_session_with_links_is_refused_and_nothing_outside_is_touched(cwd: Path, outside: Path, what: str) -> None:
    LINKS[what](cwd / "data" / "one", outside)
    before = files_in(outside)
    assert "holds a link" in refused(command(*RESUME, "--rounds", "2", cwd=cwd))
    listed = json.loads(command("list", "--json", cwd=cwd).out)["sessions"]
    assert [(s["name"], "holds a link" in s["error"]) for s in listed] == [("one", True)]
    app = create_app(cwd / "data")
    with TestClient(app, "http://127.0.0.1:8000") as client:
        for path in ("/api/s/one", "/api/s/one/videos/r000.mp4", "/api/s/one/clips/1.png", "/s/one"):
            assert client.get(path).status_code == 409, path
        assert client.get("/").status_code == 200
        assert files_in(outside) == before
        assert client.post("/api/s/one/delete").status_code == 200  # the session goes; what it points to stays
    app.state.sessions.close()
    assert files_in(outside) == before


def test_a_session_directory_may_be_the_users_own_link(cwd: Path) -> None:
    """To a larger disk, say."""
    (cwd / "data" / "one").rename(cwd / "large-disk")
    (cwd / "data" / "one").symlink_to(cwd / "large-disk")
    assert command(*EVALUATE, cwd=cwd).status == 0
    app = create_app(cwd / "data")
    with TestClient(app, "http://127.0.0.1:8000") as client:
        assert client.get("/api/s/one/clips/1.png").status_code == 200
    app.state.sessions.close()


def test_files_that_block_are_refused(cwd: Path) -> None:
    os.mkfifo(cwd / "data" / "one" / "videos" / "r001.npz")
    assert "no plain file" in refused(command(*EVALUATE, cwd=cwd))


@pytest.fixture
def session(cwd: Path) -> Session:
    return catalog.open_session(cwd / "data", "one")


@pytest.mark.parametrize("kind", ["..", "absolute", "link", "directory", "NUL", "long"])
def test_rows_that_lead_out_of_the_session_name_nothing(session: Session, cwd: Path, kind: str) -> None:
    """Neither as a clip to learn from, nor as a picture to show."""
    names = {
        "..": "../../outside.npz", "absolute": str(cwd / "outside.npz"), "link": "clips/r000/link.npz",
        "directory": "clips", "NUL": "clips/\0.npz", "long": "x/" * 5000,
    }  # fmt: skip
    ones = np.ones(3, np.float32)
    save_segment(cwd / "outside.npz", Segment(np.ones((3, 4), np.float32), np.ones(3, int), ones, ones < 0, {}))
    (session.path / "clips" / "r000" / "link.npz").symlink_to(cwd / "outside.npz")
    clip = session.pairs()[0].left_clip
    with session.write() as db:
        row = store.clip_table.update().where(store.clip_table.c.id == clip)
        db.execute(row.values(path=names[kind], sheet=names[kind]))
    with pytest.raises(UserError, match="there is no such file in its session"):
        load_clip(session, session.clips([clip])[clip])
    labels = load_labels(session, lambda actions: actions, 1, 1)
    assert labels is None or all(clip not in (p.left_clip, p.right_clip) for p in labels.pairs)
    app = create_app(cwd / "data")
    with TestClient(app, "http://127.0.0.1:8000") as client:
        assert client.get(f"/api/s/one/clips/{clip}.png").status_code == 404
    app.state.sessions.close()
    session.close()


def test_directories_are_named_by_whole_numbers_whatever_a_row_says(session: Session) -> None:
    """SQLite keeps a text in a column of numbers."""
    for numbers in (("/../../outside", 0), (0, "/../../outside")):
        with pytest.raises(ValueError, match="format code"):
            session.clip_directory(*numbers)
    session.close()


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TRIGGER t AFTER INSERT ON event BEGIN DELETE FROM label; END",
        "CREATE VIEW opinions AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n FROM c",
    ],
)
def test_a_database_that_does_things_by_itself_is_refused(session: Session, cwd: Path, sql: str) -> None:
    session.close()
    with sqlite3.connect(session.path / "session.db") as db:
        db.execute(sql)
    db.close()
    assert "neither table nor index" in refused(command(*RESUME, cwd=cwd))


def test_sqlite_is_told_not_to_trust_the_schema(session: Session) -> None:
    with session.read() as db:
        assert db.exec_driver_sql("PRAGMA trusted_schema").scalar() == 0
    session.close()


def rollback_journal(names: Path) -> bytes:
    """SQLite rolls back from one and deletes the file that it names as its super-journal, wherever that lies."""
    magic = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
    header = magic + struct.pack(">IIIII", 0, 0, 2, 512, 4096)
    name = str(names).encode()
    checked = struct.pack(">II", len(name), sum(name) & 0xFFFFFFFF)
    return header.ljust(512, b"\0") + struct.pack(">I", 0x40000000 // 4096 + 1) + name + checked + magic


def test_a_rollback_journal_does_harm_where_nobody_looks(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    (tmp_path / "precious").write_bytes(b"precious")
    with contextlib.closing(sqlite3.connect(tmp_path / "session.db")) as db:
        db.execute("CREATE TABLE t(x)")
    (tmp_path / "session.db-journal").write_bytes(rollback_journal(tmp_path / "precious"))
    with contextlib.closing(sqlite3.connect(tmp_path / "session.db")) as db:
        db.execute("SELECT * FROM t").fetchall()
    assert not (tmp_path / "precious").exists()


def test_a_rollback_journal_is_refused(cwd: Path, outside: Path) -> None:
    (cwd / "data" / "one" / "session.db-journal").write_bytes(rollback_journal(outside / "precious"))
    before = files_in(outside)
    assert "session.db-journal" in refused(command(*RESUME, cwd=cwd))
    assert files_in(outside) == before


def test_a_copy_that_a_stranger_laid_out_for_the_migration_is_not_opened(cwd: Path, outside: Path) -> None:
    path = cwd / "data" / "one"
    header = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**header, "format": 1}))
    (path / "format-1").mkdir()
    with contextlib.closing(sqlite3.connect(path / "format-1" / "session.db")) as db:
        db.execute("CREATE TABLE t(x)")
    (path / "format-1" / "session.db-journal").write_bytes(rollback_journal(outside / "precious"))
    before = files_in(outside)
    result = command("list", cwd=cwd)
    assert (result.status, files_in(outside)) == (0, before)
    assert sorted(p.name for p in (path / "format-1").iterdir()) == ["config.json", "session.db"]


def test_what_a_strangers_session_says_reaches_no_terminal_raw(cwd: Path) -> None:
    path = cwd / "data" / "one" / "config.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps({**header, "versions": {"gymnasium": "\x1b]0;owned\x07[red]"}}))
    result = command(*RESUME, cwd=cwd)
    assert result.status == 0, result.err
    assert "?]0;owned?[red] ->" in result.err
    assert "\x1b" not in result.err


def test_only_pictures_of_clips_are_served(cwd: Path) -> None:
    session = catalog.open_session(cwd / "data", "one")
    clip = next(iter(session.clips().values()))
    for sheet in ("session.db", "config.json", "clips/../config.json", "checkpoints/start.pt"):
        assert sheet_path(session, dataclasses.replace(clip, sheet=sheet)) is None
    assert sheet_path(session, clip) is not None
    session.close()


def test_of_several_that_start_at_once_all_have_one_secret(tmp_path: Path) -> None:
    for n in range(20):
        barrier, found = threading.Barrier(4), []

        def load(directory: Path, barrier: threading.Barrier, found: list[str]) -> None:
            barrier.wait()
            found.append(load_secret("key", "the key", directory))

        threads = [threading.Thread(target=load, args=(tmp_path / f"{n}", barrier, found)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert set(found) == {(tmp_path / f"{n}" / "key").read_text()}


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1, "config": ' + "[" * 100_000, " " * 2**21])
def test_a_config_that_is_made_to_break_the_reader_is_one_sentence(cwd: Path, text: str) -> None:
    (cwd / "data" / "one" / "config.json").write_text(text)
    refused(command(*RESUME, cwd=cwd))
    assert "error" in json.loads(command("list", "--json", cwd=cwd).out)["sessions"][0]


@pytest.mark.parametrize("env_id", ["\x1b[2J\x1b]0;owned\x07-v0", "[/red]", "\ud800-v0", "a\nb\rc"])
def test_the_list_shows_no_control_characters(cwd: Path, env_id: str) -> None:
    change(cwd, env_id=env_id)
    result = command("list", cwd=cwd)
    assert result.status == 0, result.err
    assert "one" in result.out
    assert not any(ord(c) < 32 and c != "\n" for c in result.out)


@pytest.mark.parametrize("kind", ["title", "plan", "clips", "forget", "close", "rounds", "goal", "star"])
def test_events_of_a_stranger_do_not_hide_the_other_sessions(make_session: Any, kind: str, tmp_path: Path) -> None:
    payloads = ["null", "[]", "5", '{"text": [], "round": {}}', '"\ud800"', "not json"]
    for i, payload in enumerate(payloads):
        with make_session(f"odd-{i}", pairs=0).session.write() as db:
            query = "INSERT INTO event (kind, round, payload, created) VALUES (?, 0, ?, 0)"
            db.exec_driver_sql(query, (kind, payload.encode("utf-8", "replace").decode()))
    make_session("fine", pairs=0)
    app = create_app(tmp_path / "data")
    with TestClient(app, "http://127.0.0.1:8000") as client:
        assert client.get("/").status_code == 200
        rows = {s["name"]: s for s in client.get("/api/sessions").json()["sessions"]}
    app.state.sessions.close()
    assert set(rows) == {"fine", *(f"odd-{i}" for i in range(len(payloads)))}
    assert "error" not in rows["fine"]
