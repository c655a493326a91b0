"""A session on disk: one transaction or nothing, what comes next derived from what is there, and one loop at a time."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from filelock import FileLock
from rows import CONFIG, clip, collect, pair, session, train

from rlhf_gym import catalog, tables
from rlhf_gym.config import FORMAT_VERSION, Config, UserError
from rlhf_gym.store import START, Session, Where

__all__ = ["session"]  # a fixture


def count(session: Session, table: sa.Table) -> int:
    with session.read() as db:
        return int(db.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


# ---------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("clips", "pairs"),
    [
        ([clip(0), clip(1)], [pair(0), pair(0)]),  # a position twice
        ([clip(0), clip(1)], [pair(0), pair(1)]),  # a clip that is not there
        ([clip(0), clip(0)], [pair(0)]),  # a path twice
        ([clip(0), clip(1)], [pair(0), pair(1, repeat_of=99)]),  # a repeat of nothing
        ([clip(0), {"round": 0}], [pair(0)]),  # half a row
    ],
)
def test_a_batch_is_there_whole_or_not_at_all(
    session: Session, clips: list[dict[str, Any]], pairs: list[dict[str, Any]]
) -> None:
    with pytest.raises((sa.exc.SQLAlchemyError, IndexError)):
        session.add_batch(clips, pairs)
    assert (count(session, tables.clip_table), count(session, tables.pair_table)) == (0, 0)
    assert session.where().phase == "collect"


def test_a_batch_keeps_its_order_and_its_clips(session: Session) -> None:
    clips = [clip(i, true_return=i / 2) for i in range(6)]
    shuffled = [
        pair(0, left=5, right=0),
        pair(1, left=2, right=3, p_left=0.25, disagreement=0.1),
        pair(2, left=1, right=4),
    ]
    session.add_batch(clips, [shuffled[i] for i in (2, 0, 1)])
    pairs, rows = session.pairs(), session.clips()
    assert [p.position for p in pairs] == [0, 1, 2]
    assert [(rows[p.left_clip].seed, rows[p.right_clip].seed) for p in pairs] == [(5, 0), (2, 3), (1, 4)]
    assert (pairs[1].p_left, pairs[1].disagreement, pairs[0].p_left) == (0.25, 0.1, None)
    assert rows[pairs[0].left_clip].true_return == 2.5
    assert list(session.clips([pairs[0].left_clip])) == [pairs[0].left_clip]


def test_a_repeat_shows_the_same_clips_with_sides_swapped(session: Session) -> None:
    first = collect(session, 1)[0]
    session.add_batch([], [pair(0, round=1, repeat_of=first, kind="repeat")])
    (old,), (new,) = session.pairs(0), session.pairs(1)
    assert (new.left_clip, new.right_clip, new.repeat_of) == (old.right_clip, old.left_clip, old.id)


def test_what_a_killed_collect_phase_left_behind_goes(session: Session) -> None:
    directory = session.clear_batch_files(0, 0)
    (directory / "0000.npz").write_bytes(b"half")
    assert session.clear_batch_files(0, 0) == directory
    assert list(directory.iterdir()) == []
    assert session.clear_batch_files(0, 1) != directory


# ---------------------------------------------------------------------------------------------- labels


def test_the_same_label_again_counts_once(session: Session) -> None:
    one, two, _ = collect(session)
    row = session.add_label("a", one, "left", response_ms=900)
    assert session.add_label("a", one, "left", response_ms=900) == row
    for other in ((two, "left"), (one, "right"), (one, None)):
        with pytest.raises(ValueError, match="'a' was used for another label"):
            session.add_label("a", *other)
    assert count(session, tables.label_table) == 1
    assert session.last_label_id() == row


def test_the_newest_row_is_the_label_whatever_the_clock_says(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    one = collect(session)[0]
    for number, (now, choice) in enumerate([(1000.0, "left"), (10.0, "right"), (500.0, "equal")]):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        session.add_label(f"u{number}", one, choice)
        assert session.pairs()[0].choice == choice
    session.add_label("u3", one, "right", strength="strong")
    assert (session.pairs()[0].choice, session.pairs()[0].strength) == ("right", "strong")


def test_a_label_taken_back_leaves_the_pair_open(session: Session) -> None:
    one = collect(session, 1)[0]
    session.add_label("a", one, "left", strength="strong")
    assert session.where().phase == "train_reward"
    undo = session.add_label("b", one, None)
    (open_pair,) = session.pairs()
    assert (open_pair.choice, open_pair.label_id) == (None, undo)
    assert session.where() == Where(0, 0, "label", 1, 0)
    session.add_label("c", one, "right")
    assert session.pairs()[0].choice == "right"
    assert count(session, tables.label_table) == 3  # append-only


def test_labels_until_shows_what_a_checkpoint_saw(session: Session) -> None:
    one, two, _ = collect(session)
    session.add_label("a", one, "left")
    seen = session.last_label_id()
    session.add_label("b", one, "right")
    session.add_label("c", two, "left")
    assert [p.choice for p in session.pairs(labels_until=seen)] == ["left", None, None]
    assert [p.choice for p in session.pairs(labels_until=0)] == [None, None, None]
    assert [p.choice for p in session.pairs()] == ["right", "left", None]


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (dict(choice="both"), "'both' is no label: use one of left, right, equal, skip"),
        (dict(choice=1), "1 is no label"),
        (dict(choice="LEFT"), "'LEFT' is no label"),
        (dict(choice=""), "'' is no label"),
        (dict(choice="left", strength="very"), "'very' is no strength"),
        (dict(choice="left", uid=""), "this one has 0"),
        (dict(choice="left", uid="x" * 65), "this one has 65"),
        (dict(choice="left", response_ms=-1), "response time of -1"),
        (dict(choice="left", response_ms=2**31), "response time of 2147483648"),
    ],
)
def test_no_other_labels_than_there_are(session: Session, label: dict[str, Any], says: str) -> None:
    values = {"uid": "a", "pair": collect(session)[0], **label}
    with pytest.raises(ValueError, match=says):
        session.add_label(**values)
    assert count(session, tables.label_table) == 0


def test_a_pair_that_is_not_there_has_no_label(session: Session) -> None:
    collect(session)
    with pytest.raises(KeyError):
        session.add_label("a", 99, "left")
    assert count(session, tables.label_table) == 0


def test_take_back_undoes_the_newest_standing_label(session: Session) -> None:
    one, two, three = collect(session)
    for uid, number in (("a", two), ("b", one), ("c", three)):
        session.add_label(uid, number, "left")
    assert session.take_back("u1").id == three
    assert session.take_back("u1").id == three  # the same request again
    assert session.take_back("u2").id == one
    assert [p.choice for p in session.pairs()] == [None, "left", None]
    session.add_label("d", one, "skip")  # a skip is a label, too
    assert session.take_back("u3").id == one
    assert session.take_back("u4").id == two
    with pytest.raises(ValueError, match="nothing to take back"):
        session.take_back("u5")


def test_what_has_gone_into_training_is_not_taken_back(session: Session) -> None:
    for number in collect(session):
        session.add_label(f"a{number}", number, "left")
    for phase in ("train_reward", "train_agent"):
        session.partial(0, phase).write_bytes(b"state")
        with pytest.raises(ValueError, match="gone into training"):
            session.take_back("u")
        session.partial(0, phase).unlink()
    train(session, START)
    train(session, 0)
    collect(session, round=1)
    with pytest.raises(ValueError, match="nothing to take back"):
        session.take_back("u")  # not one of the round before
    assert [p.choice for p in session.pairs(0)] == ["left"] * 3


def test_a_closed_batch_is_not_taken_back(session: Session) -> None:
    session.add_label("a", collect(session)[0], "left")
    session.add_event("close", 0, attempt=0)
    with pytest.raises(ValueError, match="gone into training"):
        session.take_back("u")


# ---------------------------------------------------------------------------------------------- what comes next


def label_all(session: Session, choices: list[str], round: int = 0, attempt: int = 0) -> None:
    pairs = session.pairs(round, attempt)
    for p, choice in zip(pairs, choices, strict=True):
        session.add_label(f"{round}-{attempt}-{p.position}", p.id, choice)


def test_a_session_through_two_rounds(tmp_path: Path) -> None:
    """Each thing that appears on disk moves the session to the phase that comes after it, and nothing else does."""
    config = Config(env_id="CartPole-v1", rounds=2)
    session = catalog.create_session(tmp_path, "s", config)
    assert session.where() == Where(0, 0, "collect", 0, 0)  # not even an untrained agent
    train(session, START)
    for number in (0, 1):
        assert session.where() == Where(number, 0, "collect", 0, 0)
        collect(session, 2, number)
        assert session.where() == Where(number, 0, "label", 2, 0)
        one, two = session.pairs(number)
        session.add_label(f"{number}a", one.id, "left")
        assert session.where() == Where(number, 0, "label", 2, 1)
        session.add_label(f"{number}b", two.id, "skip")
        assert session.where() == Where(number, 0, "train_reward", 2, 2)
        session.partial(number, "train_reward").write_bytes(b"state")
        session.add_label(f"{number}undo", one.id, None)  # too late: its labels are fixed
        assert session.where() == Where(number, 0, "train_reward", 2, 1)
        session.partial(number, "train_agent").write_bytes(b"state")
        assert session.where() == Where(number, 0, "train_agent", 2, 1)
        session.partial(number, "train_reward").unlink()
        assert session.where() == Where(number, 0, "train_agent", 2, 1)
        train(session, number)
        session.partial(number, "train_agent").unlink()
    assert session.where() == Where(1, 0, "record", 0, 0)
    session.put_metrics(1, "record", 0, {"eval/mean": None, "eval/mean_length": 9.0})  # as where the return is NaN
    assert session.where() == Where(1, 0, "finished", 0, 0)
    assert session.recorded(1)
    assert not session.recorded(0)
    session.write_config(Config(env_id="CartPole-v1", rounds=3))
    assert session.where() == Where(2, 0, "collect", 0, 0)  # more rounds are asked for
    session.close()


def test_a_partial_checkpoint_left_behind_does_not_hold_up_the_next_round(session: Session) -> None:
    train(session, START)
    collect(session)
    session.partial(0, "train_agent").write_bytes(b"state")
    train(session, 0)  # killed before the partial one went
    assert session.where() == Where(1, 0, "collect", 0, 0)
    assert session.trained_rounds() == [START, 0]


@pytest.mark.parametrize("choices", [["equal"] * 3, ["skip"] * 3, ["equal", "skip", "equal"]])
def test_a_batch_that_teaches_nothing_is_collected_again_once(session: Session, choices: list[str]) -> None:
    collect(session)
    label_all(session, choices)
    assert session.where() == Where(0, 1, "collect", 0, 0)
    collect(session, attempt=1)
    assert session.where() == Where(0, 1, "label", 3, 0)
    label_all(session, choices, attempt=1)
    assert session.where() == Where(0, 1, "train_reward", 3, 3)
    train(session, 0)
    collect(session, round=1)
    label_all(session, choices, round=1)
    assert session.where() == Where(1, 1, "collect", 0, 0)  # once in each round


def test_one_label_that_says_better_is_enough(session: Session) -> None:
    collect(session)
    label_all(session, ["equal", "right", "skip"])
    assert session.where() == Where(0, 0, "train_reward", 3, 3)


def test_a_closed_batch_is_trained_on_with_what_labels_there_are(session: Session) -> None:
    ids = collect(session)
    session.add_event("close", 0, attempt=1)
    session.add_event("close", 1, attempt=0)
    session.add_event("goal", 0, attempt=0, text="up")
    assert session.where().phase == "label"  # none of these is this batch's
    assert not session.wishes().closed(0, 0)
    session.add_label("a", ids[0], "equal")
    session.add_event("close", 0, attempt=0)
    assert session.wishes().closed(0, 0)
    assert session.where() == Where(0, 0, "train_reward", 3, 1)  # ties alone, but the person said so


def test_only_whole_checkpoints_are_rounds(session: Session) -> None:
    for name in ("start.pt", "r000.pt", "r012.pt", "r1000.pt"):
        (session.path / "checkpoints" / name).write_bytes(b"weights")
    for name in ("r013.train_agent.pt", ".r014.pt-x8s", "r015.pt.tmp", "x016.pt", "r.pt", "r017.txt"):
        (session.path / "checkpoints" / name).write_bytes(b"no")
    assert session.trained_rounds() == [START, 0, 12, 1000]
    assert session.checkpoint(1000).name == "r1000.pt"
    assert session.resolve_round(None) == 1000
    assert session.resolve_round(START) == START
    with pytest.raises(UserError, match=r"no round 5. Rounds with an agent: -1, 0, 12, 1000"):
        session.resolve_round(5)


def test_a_session_without_an_agent_says_so(session: Session) -> None:
    with pytest.raises(UserError, match="rlhf-gym resume one"):
        session.resolve_round(None)


def test_what_a_killed_loop_left_among_the_files_goes(session: Session) -> None:
    for number in (START, 0):
        train(session, number)
    for name in ("r000.train_agent.pt", "r000.train_reward.pt", ".r001.pt-x8s_q", ".r001.train_agent.pt-abc"):
        (session.path / "checkpoints" / name).write_bytes(b"left")
    for name in (".progress.json-x8s", ".config.json-x8s"):
        (session.path / name).write_bytes(b"left")
    for name in (".r000.mp4", ".r000.npz-x8s", "r000.mp4"):
        (session.path / "videos" / name).write_bytes(b"left")
    session.partial(1, "train_reward").write_bytes(b"state")  # the round at hand
    unfinished = session.clear_batch_files(7, 0)  # killed before its rows were there
    (unfinished / "0000.npz").write_bytes(b"left")
    session.clear_leftovers()
    assert not unfinished.exists()
    assert [p.name for p in (session.path / "videos").iterdir()] == ["r000.mp4"]
    kept = sorted(p.name for p in (session.path / "checkpoints").iterdir())
    assert kept == ["r000.pt", "r001.train_reward.pt", "start.pt"]
    assert [p.name for p in session.path.iterdir() if p.name.startswith(".")] == []
    assert session.config == CONFIG


# ---------------------------------------------------------------------------------------------- events and metrics


def test_the_newest_goal_counts(session: Session) -> None:
    session.write_config(Config(env_id="CartPole-v1", goal="first"))
    assert session.goal() == "first"
    session.add_event("goal", 0, text="second")
    session.add_event("close", 0, attempt=0)
    newest = session.add_event("goal", 1, text="")
    assert session.goal() == ""
    assert [e["payload"]["text"] for e in session.events("goal")] == ["second", ""]
    assert [e["id"] for e in session.events(after=newest - 1)] == [newest]


def test_metrics_are_replaced_and_never_nan(session: Session) -> None:
    session.put_metrics(0, "train_agent", 10, {"a": 1.0, "b": math.nan, "c": None, "d": -math.inf, "e": math.inf})
    session.put_metrics(0, "train_agent", 10, {"b": math.nan})
    session.put_metrics(0, "train_agent", 10, {})
    assert session.metrics() == [dict(round=0, phase="train_agent", step=10, name="a", value=1.0)]
    session.put_metrics(0, "train_agent", 10, {"a": 2.0})
    session.put_metrics(0, "train_agent", 5, {"a": 3.0})
    session.put_metrics(0, "record", 10, {"a": 4.0})
    session.put_metrics(START, "train_agent", 10, {"a": 5.0})
    assert [m["value"] for m in session.metrics("a", "train_agent")] == [5.0, 3.0, 2.0]
    assert len(session.metrics("a")) == 4
    assert session.metrics("b") == []


def test_true_returns_by_round(session: Session) -> None:
    session.put_metrics(0, "record", 100, {"eval/mean": 7.5})
    session.put_metrics(START, "record", 0, {"eval/mean": 1.5})
    session.put_metrics(0, "train_agent", 100, {"eval/mean": 99.0})
    assert session.true_returns() == {START: 1.5, 0: 7.5}


# ---------------------------------------------------------------------------------------------- the lock

LOCKER = """
import sys, time
from pathlib import Path
from rlhf_gym.store import Session
session = Session(Path(sys.argv[1]))
session.write_progress(phase="label")
with session.lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def start(code: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, args)]
    root = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=10)


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's; TerminateProcess does the same elsewhere")
def test_the_lock_refuses_a_second_loop_and_dies_with_its_process(session: Session) -> None:
    assert not session.running()
    other = start(LOCKER, session.path)
    try:
        assert read_line(other) == "locked"
        assert session.running()
        said = f"Session 'one' is already running \\(process {other.pid}\\)"
        with pytest.raises(UserError, match=said), session.lock():
            pytest.fail("two loops at once")
        other.send_signal(signal.SIGKILL)
        other.wait(10)
        assert not session.running()
        with session.lock():
            assert session.running()  # seen from a second look in the same process, too
        assert not session.running()
    finally:
        end(other)


def test_a_page_that_looks_does_not_stop_the_loop_from_starting(session: Session) -> None:
    """`running` takes the lock for a moment; a loop that starts just then has to wait it out."""
    page = FileLock(session.path / "loop.lock", thread_local=False)
    page.acquire()
    timer = threading.Timer(0.3, page.release)
    timer.start()
    with session.lock():
        assert not page.is_locked
    timer.join()


def test_the_lock_is_released_when_the_loop_fails(session: Session) -> None:
    with pytest.raises(UserError, match="no such thing"), session.lock():
        raise UserError("no such thing")
    assert not session.running()


# ---------------------------------------------------------------------------------------------- two processes

WRITER = """
import sys, time
from pathlib import Path
from rlhf_gym.store import Session
session, who, count, first = Session(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    session.add_label(f"{who}-{i}", first, ("left", "right")[i % 2])
    session.put_metrics(i, "train_agent", 0, {who: i, "both": i})
    session.add_label(f"{who}-{i}", first, ("left", "right")[i % 2])
print("done", flush=True)
"""


def test_two_processes_write_at_once_and_nothing_is_lost(session: Session) -> None:
    ids, each = collect(session), 100
    writers = [start(WRITER, session.path, who, each, ids[0]) for who in ("a", "b")]
    try:
        assert [read_line(w) for w in writers] == ["ready", "ready"]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        session.add_label("mine", ids[1], "equal")
        while any(w.poll() is None for w in writers):
            session.where()  # reads get through meanwhile
        assert [w.stdout.read().strip() for w in writers if w.stdout] == ["done", "done"]
    finally:
        for writer in writers:
            end(writer)
    assert count(session, tables.label_table) == 2 * each + 1
    assert len(session.metrics("a")) == len(session.metrics("b")) == len(session.metrics("both")) == each


def test_a_writer_waits_for_the_other(session: Session) -> None:
    """BEGIN IMMEDIATE and a busy timeout: in WAL a read that turns into a write would fail at once."""
    one, two, _ = collect(session)
    waited: list[float] = []

    def write() -> None:
        began = time.monotonic()
        session.add_label("b", two, "left")
        waited.append(time.monotonic() - began)

    thread = threading.Thread(target=write)
    with session.write() as db:
        db.execute(sa.select(tables.label_table))
        thread.start()
        time.sleep(0.3)
        db.execute(tables.label_table.insert().values(uid="a", pair=one, choice="left", labeler="human", created=0.0))
    thread.join()
    assert waited[0] > 0.2
    assert [p.choice for p in session.pairs()] == ["left", "left", None]


def test_a_label_is_on_disk_before_it_is_acknowledged(session: Session) -> None:
    """A power cut cannot be tried here; SQLite's promise for it can be asked for."""
    for connect in (session.read, session.write):
        with connect() as db:
            assert db.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
            assert db.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
            assert db.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1


def test_a_killed_writer_leaves_whole_labels(session: Session) -> None:
    """What was acknowledged before a SIGKILL is there after it, and the database is sound."""
    code = WRITER.replace('    session.put_metrics(i, "train_agent", 0, {who: i, "both": i})\n', "").replace(
        '    session.add_label(f"{who}-{i}", first, ("left", "right")[i % 2])\nprint', "    print(i, flush=True)\nprint"
    )
    assert "print(i, flush" in code
    writer = start(code, session.path, "a", 100_000, collect(session)[0])
    try:
        assert read_line(writer) == "ready"
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
        acknowledged = [int(read_line(writer)) for _ in range(25)]
        writer.kill()
        assert writer.stdout is not None
        acknowledged += [int(n) for n in writer.stdout.read().splitlines()[:-1]]
    finally:
        end(writer)
    with session.read() as db:
        stored = {row.uid for row in db.execute(sa.select(tables.label_table))}
        assert db.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
    assert {f"a-{i}" for i in acknowledged} <= stored
    assert len(stored) <= len(acknowledged) + 2  # one may be committed and not yet acknowledged, one line torn


def test_progress_is_the_last_one_written_and_never_breaks(session: Session) -> None:
    assert session.progress() == {}
    session.write_progress(phase="collect", done=3)
    assert session.progress()["phase"] == "collect"
    assert session.progress()["pid"] == os.getpid()
    for broken in (b"{", b"[1]", b"\xff\xfe"):
        (session.path / "progress.json").write_bytes(broken)
        assert session.progress() == {}


# ---------------------------------------------------------------------------------------------- config.json


def test_settings_are_replaced_and_the_rest_of_the_header_stays(tmp_path: Path) -> None:
    session = catalog.create_session(tmp_path, "s", CONFIG, versions={"torch": "2"}, git=None)
    header = session.header()
    assert header["format"] == FORMAT_VERSION
    assert header["versions"] == {"torch": "2"}
    assert time.time() - header["created"] < 60
    session.write_config(Config(env_id="CartPole-v1", rounds=9), seconds_per_iteration=0.5)
    assert session.config == Config(env_id="CartPole-v1", rounds=9)
    assert {**header, "seconds_per_iteration": 0.5} == {**session.header(), "config": header["config"]}
    session.close()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no readable config.json"),
        ("[]", "has no settings"),
        ('{"format": 99}', "has format 99, this rlhf-gym reads 2: update"),
        (b"\xff\xfe", "no readable config.json"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_one_sentence(session: Session, text: str | bytes, says: str) -> None:
    (session.path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=says):
        catalog.open_session(session.path.parent, "one")


# ---------------------------------------------------------------------------------------------- many pairs


def test_what_another_process_wished_is_seen_at_once(tmp_path: Path) -> None:
    mine = catalog.create_session(tmp_path, "both", Config(env_id="CartPole-v1"))
    theirs = catalog.open_session(tmp_path, "both")
    for text in ("one", "two"):
        theirs.add_event("goal", 0, text=text)
        assert mine.wishes().goal == text
        before = mine.wishes()
    mine.add_event("goal", 0, text="three")
    assert (theirs.wishes().goal, before.goal) == ("three", "two")
    mine.close()
    theirs.close()


def test_no_query_of_one_batch_reads_all_labels(tmp_path: Path) -> None:
    """Whatever concerns one batch looks its labels up by index."""
    session = catalog.create_session(tmp_path, "plan", Config(env_id="CartPole-v1"))
    asked: list[tuple[str, Any]] = []
    sa.event.listen(session.engine, "before_cursor_execute", lambda c, cur, sql, args, *_: asked.append((sql, args)))
    session.pairs(0, 0)
    session.batches(0)
    session.unlabeled(0, 0, 1, 20)
    session.last_labeled_pair(0, 0)
    session.recorded(0)
    session.true_returns()
    queries = asked.copy()
    assert len(queries) == 6
    with session.read() as db:
        for sql, args in queries:
            plan = [row.detail for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", args)]
            assert not [line for line in plan if line.startswith("SCAN") and "CONSTANT" not in line], plan
    session.close()
