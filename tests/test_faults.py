"""What a machine does to a session: each fault is one sentence, and nothing that was saved is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy.exc
import torch
from compare import NAMES, run, same_session, session_in, without
from fastapi.testclient import TestClient
from processes import TINY, Kill, Result, Spawned, command
from rich.console import Console

from rlhf_gym import catalog, faults, loop, migrate, rows, store, watchdog
from rlhf_gym.checkpoints import load_state
from rlhf_gym.cli import run_command
from rlhf_gym.config import FORMAT_VERSION, Config, UserError
from rlhf_gym.files import MARK, seal, sealed
from rlhf_gym.monitor import Monitor
from rlhf_gym.tables import metric_table, opinion_table
from webui.app import create_app
from webui.state import Sessions

pytestmark = pytest.mark.skipif(os.name != "posix", reason="mounts, forks and signals are POSIX's")


def refused(result: Result, *patterns: str) -> str:
    """Asserts a failure told in one sentence that says all of this; returns the sentence."""
    assert result.status == 1, result.err
    last = result.err.rstrip().splitlines()[-1]
    assert last.startswith("rlhf-gym: "), result.err
    for pattern in patterns:
        assert re.search(pattern, last), f"no {pattern!r} in {last!r}"
    return last


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Any]:
    """mounted(*options) -> a directory of tmp_path on a small file system of its own."""
    where = tmp_path / "disk"
    where.mkdir()
    done = False

    def mount(*options: str) -> Path:
        nonlocal done
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(where)]
        result = subprocess.run(command, capture_output=True, text=True) if os.geteuid() == 0 else None
        if result is None or result.returncode:
            pytest.skip("only root may mount a file system here")
        done = True
        return where

    yield mount
    if done:
        subprocess.run(["umount", str(where)], check=True)


# ---------------------------------------------------------------------------------------------- disks


@pytest.mark.parametrize("free", [130, 270, 340, 480, 620])  # KiB: a clip, metrics, a label, a checkpoint, a clip
def test_a_full_disk_is_told_and_costs_nothing(whole: Path, mounted: Any, free: int) -> None:
    disk = mounted("-o", "size=4m")
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(b"x" * (room - free * 1024))
    refused(run(disk), "disk that holds .* is full: make room")
    (disk / "filler").unlink()
    result = command("resume", "one", cwd=disk)
    assert result.status == 0, result.err
    same_session(whole, disk)


def test_a_directory_that_cannot_be_written_is_told(whole: Path, mounted: Any, tmp_path: Path) -> None:
    disk = mounted("-o", "size=8m")
    shutil.copytree(whole / "data", disk / "data")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    data = ("--data-dir", disk / "data")
    refused(command("resume", "one", "--rounds", "3", *data, cwd=tmp_path), "cannot be written")
    refused(command("run", "CartPole-v1", *TINY, *data, cwd=tmp_path), "Cannot write to .*--data-dir")
    listed = command("list", "--json", *data, cwd=tmp_path)  # what can be read is shown
    assert listed.status == 0
    (row,) = json.loads(listed.out)["sessions"]
    assert (row["phase"], row["labels"]) == ("finished", 12)
    played = command("evaluate", "one", "--episodes", "1", "--json", *data, cwd=tmp_path)
    assert (played.status, json.loads(played.out)["episodes"]) == (0, 1)
    watched = command("watch", "one", *data, cwd=tmp_path)  # beside whoever asks for it
    assert Path(watched.out.strip()) == tmp_path / "one-watch-r001.mp4"
    assert (tmp_path / "one-watch-r001.mp4").stat().st_size > 1000


@pytest.mark.parametrize("free", [8, 40])  # KiB: not even the database can be opened; it can
def test_a_video_on_a_full_disk_is_told(whole: Path, mounted: Any, tmp_path: Path, free: int) -> None:
    disk = mounted("-o", "size=4m")
    shutil.copytree(whole / "data", disk / "data")
    room = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (disk / "filler").write_bytes(b"x" * (room - free * 1024))
    told = refused(command("watch", "one", "--data-dir", disk / "data", cwd=tmp_path), "disk .*is full|No space left")
    assert "watch-r001" in told or "make room" in told


def test_a_finished_session_whose_newest_agent_is_damaged_mends_it(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    newest = tmp_path / "data" / "one" / "checkpoints" / "r001.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    refused(command("evaluate", "one", cwd=tmp_path), "checksum is wrong.*rlhf-gym resume one trains again")
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err
    assert "It is kept as r001.pt.damaged" in result.err
    (newest.parent / "r001.pt.damaged").unlink()
    same_session(whole, tmp_path)


# ---------------------------------------------------------------------------------------------- the database


@contextlib.contextmanager
def locked(database: Path, seconds: float | None) -> Iterator[None]:
    """Another program holds the database's write lock for so long; None: until the with block ends."""
    ready, over = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            ready.set()
            over.wait(seconds)
            other.execute("ROLLBACK")

    thread = threading.Thread(target=hold)
    thread.start()
    ready.wait(10)
    try:
        yield
    finally:
        if seconds is None:
            over.set()
        thread.join()


@pytest.mark.parametrize("seconds", [1.5, pytest.param(10.0, marks=pytest.mark.full)])
def test_a_database_that_is_locked_for_a_while_is_waited_for(whole: Path, tmp_path: Path, seconds: float) -> None:
    assert run(tmp_path, kill=Kill("rlhf_gym.train:update", 3)).status == -9
    with locked(tmp_path / "data" / "one" / "session.db", seconds):
        result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err
    same_session(whole, tmp_path)


def test_a_database_that_stays_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(rows, "BUSY_SECONDS", 0.2)
    monkeypatch.chdir(tmp_path)
    assert run(tmp_path, kill=Kill("rlhf_gym.train:update", 3)).status == -9
    with locked(tmp_path / "data" / "one" / "session.db", None):
        assert run_command(["resume", "one"]) == 1
    assert re.search("locked by another program for .* close that program", capsys.readouterr().err)
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err


def test_a_database_that_is_damaged_in_the_middle_is_told_and_not_touched(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    database = tmp_path / "data" / "one" / "session.db"
    with contextlib.closing(sqlite3.connect(database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(database.read_bytes())
    size = int.from_bytes(data[16:18], "big")
    for page in range(2, len(data) // size):  # every page but the first, which names the tables
        data[page * size : page * size + 64] = b"\xff" * 64
    database.write_bytes(data)
    refused(command("resume", "one", "--rounds", "3", cwd=tmp_path), "database of data/one cannot be read .*malformed")
    listed = command("list", "--json", cwd=tmp_path)
    assert "malformed" in json.loads(listed.out)["sessions"][0]["error"]
    assert bytes(data) == database.read_bytes()


def test_a_mistake_of_our_own_is_not_told_as_damage(tmp_path: Path) -> None:
    session = catalog.create_session(tmp_path, "one", Config(env_id="CartPole-v1"))
    for statement in ("INSERT INTO clip (id) VALUES (1)", "SELEC 1"):
        with pytest.raises(sqlalchemy.exc.DatabaseError) as raised, session.write() as db:
            db.exec_driver_sql(statement)
        assert faults.sentence(raised.value, session.path) is None
    session.close()


def test_an_older_session_on_a_full_disk_is_told(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    make_older(tmp_path / "data" / "one")

    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(migrate, "write_atomic", full)
    with pytest.raises(UserError, match=r"disk that holds .* is full"):
        catalog.open_session(tmp_path / "data", "one")
    with TestClient(create_app(tmp_path / "data"), "http://127.0.0.1:8000") as client:
        answer = client.get("/api/s/one")
        assert answer.status_code == 409
        assert "is full" in answer.json()["detail"]
    monkeypatch.undo()
    catalog.open_session(tmp_path / "data", "one").close()


def test_one_session_that_opens_slowly_holds_up_no_other(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("quick", "slow"):
        shutil.copytree(whole / "data" / "one", tmp_path / name)
    make_older(tmp_path / "slow")
    began, free = threading.Event(), threading.Event()

    def slowly(data: bytes) -> bytes:
        began.set()
        free.wait(30)
        return seal(data)

    monkeypatch.setattr(migrate, "seal", slowly)
    sessions = Sessions(tmp_path)
    thread = threading.Thread(target=sessions.open, args=("slow",))
    thread.start()
    assert began.wait(10)
    before = time.monotonic()
    assert sessions.open("quick").session.count_pairs() == (12, 12)
    assert time.monotonic() - before < 5
    free.set()
    thread.join()
    assert sessions.open("slow").session.count_pairs() == (12, 12)
    sessions.close()


def test_an_agent_that_is_no_more_is_told_and_the_newest_taken(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    session = session_in(tmp_path)
    session.add_event("plan", 2, agent=0, practice=False, attempt=-1)
    session.checkpoint(0).rename(session.checkpoint(0).with_name("r000.pt.damaged"))
    session.close()
    result = command("resume", "one", "--rounds", "3", cwd=tmp_path)
    assert result.status == 0, result.err
    assert "There is no agent of round 0 any more: going on from the newest." in result.err


# ---------------------------------------------------------------------------------------------- clocks


def test_a_clock_that_is_set_back_changes_nothing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, kill=Kill("rlhf_gym.store:Session.add_label", 3)).status == -9
    session = session_in(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)  # 2001
    first = session.pairs()[0]
    assert first.choice is not None
    taken_back = session.take_back("undo-1")  # the newest by order, not by the clock
    assert taken_back.choice is None
    session.add_label("again", taken_back.id, "left")
    assert {p.id: p.choice for p in session.pairs()}[taken_back.id] == "left"
    session.add_event("goal", 0, text="in 2001")
    assert session.goal() == "in 2001"
    session.close()
    monkeypatch.chdir(tmp_path)
    assert run_command(["resume", "one"]) == 0
    session = session_in(tmp_path)
    assert session.where().phase == "finished"
    assert session.count_pairs() == (12, 12)
    assert session.label_times() == sorted(session.label_times())
    assert session.summary()["last_activity"] > 0
    session.close()


# ---------------------------------------------------------------------------------------------- formats


def make_older(path: Path) -> None:
    """A session as the first format had it: no table of opinions, no index of metrics, no checksums."""
    with contextlib.closing(sqlite3.connect(path / "session.db")) as db:
        db.execute(f"DROP TABLE {opinion_table.name}")
        for index in metric_table.indexes:
            db.execute(f"DROP INDEX {index.name}")
        db.commit()
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.write_bytes(checkpoint.read_bytes()[: -32 - len(MARK)])
    header = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**header, "format": 1}))


@pytest.mark.parametrize("kill", [None, Kill("rlhf_gym.migrate:seal", 1)], ids=str)
def test_an_older_session_is_brought_up_to_date_and_a_copy_kept(whole: Path, tmp_path: Path, kill: Kill | None) -> None:
    assert run(tmp_path, kill=Kill("rlhf_gym.checkpoints:Snapshot.save", 2)).status == -9
    path = tmp_path / "data" / "one"
    make_older(path)
    before = (path / "config.json").read_bytes()
    with contextlib.closing(sqlite3.connect(path / "session.db")) as db:
        clips = db.execute("SELECT * FROM clip").fetchall()
    if kill is not None:
        assert command("list", cwd=tmp_path, kill=kill).status == -9
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err
    assert kill is not None or re.search("brought up to date.* format-1", result.err.replace("data/one/", " "))
    assert json.loads((path / "config.json").read_text())["format"] == FORMAT_VERSION
    assert (path / "format-1" / "config.json").read_bytes() == before
    with contextlib.closing(sqlite3.connect(path / "format-1" / "session.db")) as db:
        assert db.execute("SELECT * FROM clip").fetchall() == clips
        assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'opinion'").fetchall()
    with contextlib.closing(sqlite3.connect(path / "session.db")) as db:
        assert db.execute("SELECT 1 FROM sqlite_master WHERE name = 'ix_metric_name'").fetchall()
    assert all(sealed((path / "checkpoints" / name).read_bytes()) for name in NAMES)
    shutil.rmtree(path / "format-1")
    same_session(whole, tmp_path)


def test_a_newer_session_is_refused_and_not_touched(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    path = tmp_path / "data" / "one"
    header = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**header, "format": FORMAT_VERSION + 1, "wonder": True}))
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    refused(command("resume", "one", cwd=tmp_path), f"format {FORMAT_VERSION + 1}.*update rlhf-gym")
    assert before == {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_an_older_session_that_an_older_program_runs_is_left_alone(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    path = tmp_path / "data" / "one"
    make_older(path)
    runs = store.Session(path)
    with runs.lock():
        refused(command("resume", "one", cwd=tmp_path), "already running")
    runs.close()
    assert json.loads((path / "config.json").read_text())["format"] == 1


# ---------------------------------------------------------------------------------------------- other places


def test_a_session_goes_on_in_another_place_under_another_name(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert run(tmp_path / "here", kill=Kill("rlhf_gym.train:update", 7)).status == -9
    there = tmp_path / "a new place" / "ünïcode"
    shutil.copytree(tmp_path / "here" / "data" / "one", there / "data" / "two")
    shutil.rmtree(tmp_path / "here")
    result = command("resume", "two", cwd=there)
    assert result.status == 0, result.err
    (there / "data" / "two").rename(there / "data" / "one")
    same_session(whole, there)


MINE = """
import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

gymnasium.register("Mine-v0", entry_point=CartPoleEnv, max_episode_steps=500)
"""


def test_an_environment_that_is_gone_is_told_and_the_session_waits_for_it(tmp_path: Path) -> None:
    module = tmp_path / "mine.py"
    module.write_text(MINE)
    assert run(tmp_path, env_id="mine:Mine-v0", kill=Kill("rlhf_gym.train:update", 3)).status == -9
    before = {p: p.read_bytes() for p in (tmp_path / "data" / "one" / "checkpoints").iterdir()}
    module.rename(tmp_path / "gone.txt")
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    refused(command("resume", "one", cwd=tmp_path), "mine:Mine-v0 needs the module 'mine'")
    module.write_text("")
    refused(command("resume", "one", cwd=tmp_path), "no environment 'mine:Mine-v0'")
    assert before == {p: p.read_bytes() for p in (tmp_path / "data" / "one" / "checkpoints").iterdir()}
    module.write_text(MINE)
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err


def test_another_version_of_a_package_is_told_once(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "data", tmp_path / "data")
    config = tmp_path / "data" / "one" / "config.json"
    header = json.loads(config.read_text())
    header["versions"]["gymnasium"] = "0.26.3"
    config.write_text(json.dumps(header))
    first = command("resume", "one", cwd=tmp_path)
    assert first.status == 0
    assert re.search(r"versions have changed \(gymnasium 0\.26\.3 -> 1\.", first.err)
    second = command("resume", "one", cwd=tmp_path)
    assert (second.status, "versions" in second.err) == (0, False)


def test_the_versions_of_a_session_name_the_environments_package() -> None:
    from rlhf_gym.provenance import versions

    assert set(versions(Config(env_id="CartPole-v1"))) == {
        "python",
        *(["rlhf-gym", "torch", "gymnasium", "ale-py", "numpy"]),
    }
    assert "mujoco" in versions(Config(env_id="Hopper-v5"))


# ---------------------------------------------------------------------------------------------- environments that hang

HANGS = """
import time, gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

class Slow(CartPoleEnv):
    steps = 0
    def step(self, action):
        Slow.steps += 1
        if Slow.steps == 40:
            time.sleep(2.5)
        return super().step(action)

class Deaf(CartPoleEnv):
    steps = 0
    def step(self, action):
        Deaf.steps += 1
        while Deaf.steps >= 40:
            try:
                print("deaf now", flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                pass  # as code in C does
        return super().step(action)

for name, entry in (("Slow-v0", Slow), ("Deaf-v0", Deaf)):
    gymnasium.register(name, entry_point=entry, max_episode_steps=500)
"""


def test_an_environment_that_does_not_answer_is_told_on_terminal_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watchdog, "PATIENCE_SECONDS", 0.5)
    on_page: list[Any] = []
    written = store.Session.write_progress

    def write(session: store.Session, **progress: Any) -> None:
        on_page.append(progress.get("message"))
        written(session, **progress)

    monkeypatch.setattr(store.Session, "write_progress", write)
    handler = signal.getsignal(signal.SIGINT)
    assert run_command(["run", "hangs:Slow-v0", "--session", "one", *TINY]) == 0  # it was only slow
    assert signal.getsignal(signal.SIGINT) is handler
    told = [line for line in capsys.readouterr().err.splitlines() if "has not answered" in line]
    assert len(told) == 1
    assert "hangs:Slow-v0 has not answered for 1 s: it may hang. Ctrl-C" in told[0]
    assert [m for m in on_page if m] == [told[0]]


def test_a_warning_that_cannot_be_given_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.02)
    calls: list[str] = []

    def fails(text: str) -> None:
        calls.append(text)
        raise OSError(errno.ENOSPC, "No space left on device")

    with watchdog.Watchdog(fails):
        for what in ("one", "two"):
            with watchdog.CALL.into(what):
                until = time.monotonic() + 10
                while not any(text.startswith(what) for text in calls) and time.monotonic() < until:
                    time.sleep(0.01)
    assert [text.split()[0] for text in calls] == ["one", "two"]
    assert watchdog.CALL.since == 0.0


def test_ctrl_c_ends_an_environment_that_is_deaf(tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    with Spawned("run", "hangs:Deaf-v0", "--session", "one", *TINY, cwd=tmp_path) as one:
        one.wait_for("deaf now")
        status, seconds = one.interrupt()
        assert status == 130
        assert watchdog.PATIENCE_AFTER_INTERRUPT <= seconds < watchdog.PATIENCE_AFTER_INTERRUPT + 5
        assert "Stopped: the environment did not answer" in one.text()
    (tmp_path / "hangs.py").write_text(HANGS.replace("Deaf.steps >= 40", "False"))
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err


# ---------------------------------------------------------------------------------------------- a GPU's memory


@pytest.mark.parametrize(
    ("where", "setting", "before", "after"),
    [("train_reward", "reward_batch_pairs", 32, 8), ("train_agent", "num_minibatches", 2, 4)],
)
def test_too_little_memory_makes_batches_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, where: str, setting: str, before: int, after: int
) -> None:
    monkeypatch.chdir(tmp_path)
    real = getattr(loop, where)
    sizes: list[int] = []

    def crowded(*args: Any, **kwargs: Any) -> Any:
        config = args[2]
        sizes.append(getattr(config, setting))
        if (before >= 8 and sizes[-1] > after) or (before < 8 and sizes[-1] < after):
            if kwargs.get("save"):
                with contextlib.suppress(KeyError):
                    real(*args, **{**kwargs, "report": None})  # it got somewhere first
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, where, crowded)
    measured = ["--checkpoint-iterations", "2"]
    assert run_command(["run", "CartPole-v1", "--session", "one", *without(tuple(measured)), *measured]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "too little memory" in line]
    assert told[-1].endswith(f"-> {after}, from now on.")
    assert len(told) == len(set(sizes)) - 1
    session = session_in(tmp_path)
    assert getattr(session.config, setting) == after
    assert session.where().phase == "finished"
    session.close()


def test_too_little_memory_for_anything_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path, kill=Kill("rlhf_gym.train:update", 3)).status == -9
    session = session_in(tmp_path)

    def crowded(*_args: Any, **_kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(loop, "train_agent", crowded)
    from rlhf_gym import envs

    with pytest.raises(UserError, match=r"too little memory to train the agent: end other programs .*--device cpu"):
        loop.run(session, session.config, envs.describe(session.config), Monitor(session, Console(quiet=True)))
    assert load_state(session.partial(0, "train_agent"))["reward"]
    session.close()
    result = command("resume", "one", cwd=tmp_path)
    assert result.status == 0, result.err
