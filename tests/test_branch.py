"""A branch stands where its source stood after a round, and goes on from there."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from compare import same_tensors
from processes import TINY, Kill, command, refused

from rlhf_gym import catalog, migrate
from rlhf_gym.checkpoints import load_state, save_state
from rlhf_gym.cli import run_command
from rlhf_gym.config import UserError
from rlhf_gym.store import Session

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks its processes")

ROUNDS = ("start.pt", "r000.pt", "r001.pt", "r002.pt")
SCORES = "def left(clip):\n    open('ran', 'w').close()\n    return -clip.observations[:, 0].mean()\n"
Open = Callable[[str], Session]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a finished session `one` of three rounds; not to be changed."""
    cwd = tmp_path_factory.mktemp("made")
    result = command("run", "CartPole-v1", "--session", "one", *TINY, "--rounds", "3", "--render", cwd=cwd)
    assert result.status == 0, result.err
    return cwd


@pytest.fixture
def cwd(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that change something."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def branched(cwd: Path, *args: object, source: str = "one") -> str:
    """Makes the session `two`; returns what was said of it."""
    result = command("branch", source, "two", *args, cwd=cwd)
    assert result.status == 0, result.err
    assert result.out == "data/two\n"
    return result.err


def resumed(cwd: Path, *args: object) -> str:
    result = command("resume", "two", *args, cwd=cwd)
    assert result.status == 0, result.err
    return result.err


def table(cwd: Path, name: str, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(cwd / "data" / name / "session.db")) as db:
        return db.execute(query).fetchall()


def files_in(directory: Path) -> dict[str, bytes]:
    """Every file but what SQLite lays beside a database for whoever opens it."""
    files = [p for p in directory.rglob("*") if p.is_file() and not p.name.endswith(("-shm", "-wal"))]
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def change_header(cwd: Path, name: str, **entries: Any) -> None:
    path = cwd / "data" / name / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


# ---------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("number", [-1, 0, 1])
def test_a_branch_goes_on_as_its_source_did(cwd: Path, number: int) -> None:
    before = files_in(cwd / "data" / "one")
    said = branched(cwd, "--round", number)
    assert f"with {6 * (number + 1)} labels" in said
    assert "Go on with: rlhf-gym resume two" in said
    assert files_in(cwd / "data" / "one") == before
    paths = [cwd / "data" / name / "checkpoints" for name in ("one", "two")]
    assert sorted(p.name for p in paths[1].iterdir()) == sorted(ROUNDS[: number + 2])
    said = resumed(cwd)
    assert f"Session two goes on in round {number + 1} with collect." in said
    for name in ROUNDS:
        assert same_tensors(paths[0] / name, paths[1] / name) >= 8
    for query in (
        "SELECT * FROM clip", "SELECT * FROM pair", "SELECT id, uid, pair, choice, strength, labeler FROM label",
        "SELECT * FROM metric WHERE phase = 'record' ORDER BY 1, 2, 3, 4", "SELECT * FROM opinion",
    ):  # fmt: skip
        assert table(cwd, "one", query) == table(cwd, "two", query), query
    clips = [
        {p: f for p, f in files_in(cwd / "data" / name).items() if p.startswith("clips/")} for name in ("one", "two")
    ]
    assert clips[0] == clips[1]


def test_a_branch_goes_on_in_another_way(cwd: Path, opened: Open) -> None:
    said = branched(cwd, "--round", "0", "--gamma", "0.5", "--goal", "Stay left")
    assert re.search(r"gamma: 0\.\d+ -> 0\.5", said)
    two = opened("two")
    assert (two.config.gamma, two.goal()) == (0.5, "Stay left")
    resumed(cwd)
    one = cwd / "data" / "one" / "checkpoints"
    same_tensors(one / "r000.pt", two.checkpoint(0))
    with pytest.raises(AssertionError):
        same_tensors(one / "r001.pt", two.checkpoint(1), ignore=("meta",))


def test_the_newest_round_is_the_default(cwd: Path) -> None:
    said = branched(cwd)
    assert "stood after round 2, with 18 labels" in said
    assert "It has done its 3 rounds" in said
    assert "To teach it further" in resumed(cwd)
    assert "round 3 collect" in resumed(cwd, "--rounds", "4")


def test_a_branch_of_a_branch(cwd: Path) -> None:
    branched(cwd, "--round", "1")
    assert command("branch", "two", "three", "--round", "0", cwd=cwd).status == 0
    assert command("resume", "three", "--rounds", "2", cwd=cwd).status == 0
    paths = [cwd / "data" / name / "checkpoints" / "r001.pt" for name in ("one", "three")]
    same_tensors(*paths, ignore=("meta",))  # which holds --rounds


def exported_goals(cwd: Path, name: str) -> set[str | None]:
    result = command("export", name, f"out-{name}", "--format", "jsonl", cwd=cwd)
    assert result.status == 0, result.err
    return {json.loads(line)["goal"] for line in (cwd / f"out-{name}" / "labels.jsonl").read_text().splitlines()}


def test_labels_keep_the_goal_they_were_given_under(cwd: Path, opened: Open) -> None:
    path = cwd / "data" / "one" / "config.json"
    header = json.loads(path.read_text())
    header["config"]["goal"] = "Stay up"
    path.write_text(json.dumps(header))
    for number in (-1, 0, 1, 2):
        state = load_state(opened("one").checkpoint(number))
        meta = json.loads(state["meta"])
        meta["config"] = json.loads(meta["config"])
        meta["config"]["goal"] = "Stay up"
        save_state(
            opened("one").checkpoint(number),
            state | {"meta": json.dumps(meta | {"config": json.dumps(meta["config"])})},
        )
    branched(cwd, "--round", "0", "--goal", "Stay left")
    assert opened("two").goal() == "Stay left"
    assert exported_goals(cwd, "two") == {"Stay up"}
    assert command("replay", "one", "--goal", "Be still", "--rounds", "1", cwd=cwd).status == 0
    assert opened("one-replay").goal() == "Be still"
    assert exported_goals(cwd, "one-replay") == {"Stay up"}


def test_forgotten_later_is_not_forgotten_even_in_a_copy(cwd: Path, opened: Open) -> None:
    opened("one").forget(2)
    for file in (cwd / "data" / "one" / "checkpoints").iterdir():
        os.utime(file)  # as cp -r leaves it
    said = branched(cwd)
    assert "with 18 labels" in said
    assert exported_goals(cwd, "two") == {""}


def test_a_hidden_backup_is_left_alone(cwd: Path) -> None:
    shutil.copytree(cwd / "data" / "one", cwd / "data" / ".one-20261127")
    branched(cwd, "--round", "0")
    assert (cwd / "data" / ".one-20261127" / "config.json").is_file()


# ---------------------------------------------------------------------------------------------- what is in it


def test_what_came_later_is_not_in_it(cwd: Path, opened: Open) -> None:
    one = opened("one")
    first = one.pairs(0)[0]
    now = {"left": "right", "right": "left"}.get(first.choice or "", "left")
    one.add_label("later", first.id, now)
    one.add_event("goal", 2, text="another")
    one.add_event("goal", 0, text="the first round's, said after its agent was trained")
    for kind in ("title", "pause", "stop"):
        one.add_event(kind, 0, text="x")
    one.add_event("star", 3, round=2)
    one.add_event("forget", 2, until_label=9)
    (one.path / "videos" / "r000.json").write_text("{}")
    one.live_video().write_bytes(b"film")
    one.video(0).write_bytes(b"film of round 0")
    one.video(1).write_bytes(b"film of round 1")
    one.partial(3, "train_agent").write_bytes(b"half")
    one.undrawn(0, 0).write_bytes(b"half")
    branched(cwd, "--round", "0")
    two = opened("two")
    assert [p.choice for p in two.pairs()] == [p.choice for p in one.pairs(0, labels_until=6)]
    assert (two.last_label_id(), two.last_pair_id()) == (6, 6)
    assert two.events() == []
    assert two.opinions() == {}
    assert {m["round"] for m in two.metrics()} == {-1, 0}
    assert two.true_returns()[0] == one.true_returns()[0]
    films = sorted(p.name for p in (two.path / "videos").iterdir())
    assert films == ["r000.mp4", "r000.npz", "start.mp4", "start.npz"]
    clips = sorted(p.name for p in (two.path / "clips" / "r000").iterdir())
    assert clips == sorted(Path(f or "").name for c in two.clips().values() for f in (c.path, c.sheet))
    assert sorted(p.name for p in two.path.iterdir() if not p.name.startswith(("session.db-", "loop.lock"))) == [
        "checkpoints", "clips", "config.json", "session.db", "tb", "videos",
    ]  # fmt: skip
    assert two.add_label("mine", 1, "left") == 7  # as the source's seventh, not as one after all of its labels


def test_what_was_asked_for_before_is_in_it(cwd: Path, opened: Open) -> None:
    one = opened("one")
    asked = [one.add_event("plan", 1, agent=-1, practice=False, attempt=-1), one.add_event("longer", 1),
             one.add_event("close", 0, attempt=0), one.add_event("forget", 1, until_label=6)]  # fmt: skip
    os.utime(one.checkpoint(0), (0, 0))  # of that round nothing was asked for before; of the one before it all was
    branched(cwd, "--round", "1")
    two = opened("two")
    kept = [e["id"] for e in two.events()]
    assert kept == [asked[2]]
    os.utime(one.checkpoint(1))
    shutil.rmtree(two.path)
    branched(cwd, "--round", "1")
    two = opened("two")
    assert [e["id"] for e in two.events()] == asked
    assert two.wishes().forgotten == 6


def test_its_header_is_its_own(cwd: Path, opened: Open) -> None:
    change_header(cwd, "one", signature="theirs", confirmed=["mine"], wandb="abcdefgh12345678", created=1.0)
    branched(cwd, "--round", "1")
    one, two = opened("one").header(), opened("two").header()
    assert two["branched_from"] == {"session": "one", "round": 1}
    assert (two["signature"], two["confirmed"]) == ("theirs", ["mine"])
    assert "wandb" not in two  # else both would log to one run
    assert two["created"] > 1.0
    assert {k: two[k] for k in ("info", "versions", "config", "format")} == {
        k: one[k] for k in ("info", "versions", "config", "format")
    }
    assert catalog.session_names(cwd / "data") == ["two", "one"]


def test_settings_are_those_of_the_round(cwd: Path, opened: Open) -> None:
    one = opened("one")
    then = one.config.learning_rate
    assert command("resume", "one", "--learning-rate", "0.1", "--rounds", "4", cwd=cwd).status == 0
    said = branched(cwd, "--round", "1")
    assert f"learning_rate is {then} as it was then, not 0.1." in said
    assert opened("two").config.learning_rate == then
    shutil.rmtree(cwd / "data" / "two")
    branched(cwd, "--round", "3")
    assert opened("two").config.learning_rate == 0.1
    shutil.rmtree(cwd / "data" / "two")
    assert "as it was then" not in branched(cwd, "--round", "1", "--learning-rate", "0.2", "--rounds", "4")
    assert opened("two").config.learning_rate == 0.2


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["none", "two"], 'No session "none" in data/. Sessions: one, '),
        (["one", "one"], "data/one exists already: choose another name."),
        (["one", "dir"], "data/dir exists already"),
        (["one", "../two"], "Session name '../two' is not allowed"),
        (["one", ".two"], "Session name '.two' is not allowed"),
        (["../one", "two"], "Session name '../one' is not allowed"),
        (["one", "two", "--round", "3"], "has no round 3. Rounds with an agent: -1, 0, 1, 2"),
        (["one", "two", "--round", "-2"], "has no round -2"),
        (["one", "two", "--seed", "5"], "--seed cannot change from 1 to 5"),
        (["one", "two", "--ensemble-size", "5"], "--ensemble-size cannot change"),
        (["one", "two", "--gamma", "2"], "--gamma 2.0 is out of range"),
        (["one", "two", "--score", "nowhere:f"], "cannot import 'nowhere'"),
        (["nothing", "two"], "has no agent yet"),
        (["torn", "two", "--round", "1"], "r001.pt cannot be read"),
        (["strange", "two", "--round", "1"], "is no checkpoint of this version"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(cwd: Path, args: list[str], says: str) -> None:
    (cwd / "data" / "dir").mkdir()
    for name in ("torn", "strange", "nothing"):
        shutil.copytree(cwd / "data" / "one", cwd / "data" / name)
    (cwd / "data" / "torn" / "checkpoints" / "r001.pt").write_bytes(b"torn")
    save_state(cwd / "data" / "strange" / "checkpoints" / "r001.pt", {"meta": "{}"})
    shutil.rmtree(cwd / "data" / "nothing" / "checkpoints")
    before, names = files_in(cwd), sorted(p.name for p in (cwd / "data").iterdir())
    assert says in refused(command("branch", *args, cwd=cwd))
    assert files_in(cwd) == before
    assert sorted(p.name for p in (cwd / "data").iterdir()) == names


def test_a_source_that_cannot_be_brought_up_to_date_is_refused(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(session: Any) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(session.path))

    change_header(cwd, "one", format=1)
    monkeypatch.setattr(migrate, "migrate", read_only)
    monkeypatch.chdir(cwd)
    assert run_command(["branch", "one", "two"]) == 1
    assert re.fullmatch(r"rlhf-gym: data/one cannot be written \(read-only\): [^\n]+\n", capsys.readouterr().err)
    assert [p.name for p in (cwd / "data").iterdir()] == ["one"]


# ---------------------------------------------------------------------------------------------- killed, and meanwhile


@pytest.mark.parametrize(
    "kill",
    [Kill("rlhf_gym.branch:copy_files", 1), Kill("rlhf_gym.branch:put", 2), Kill("rlhf_gym.branch:copy_clip", 5),
     Kill("rlhf_gym.store:Session.write_config", 1), Kill("rlhf_gym.store:Session.write_config", 1, before=True)],
    ids=str,
)  # fmt: skip
def test_who_is_killed_leaves_no_half_session(cwd: Path, kill: Kill) -> None:
    assert command("branch", "one", "two", "--round", "1", cwd=cwd, kill=kill).status == -9
    listed = json.loads(command("list", "--json", cwd=cwd).out)["sessions"]
    assert [s["name"] for s in listed] == ["one"]
    assert [s["phase"] for s in listed] == ["finished"]
    assert len(list((cwd / "data").iterdir())) == 2  # what it had made so far, under a name with a dot
    branched(cwd, "--round", "1")
    assert sorted(p.name for p in (cwd / "data").iterdir()) == ["one", "two"]


def test_one_that_is_being_made_is_left_alone(cwd: Path, opened: Open) -> None:
    one = opened("one")
    with catalog.session_aside(cwd / "data", "three") as three:
        branched(cwd, "--round", "0")
        assert three.path.is_dir()
        three.write_config(one.config)
    assert sorted(p.name for p in (cwd / "data").iterdir()) == ["one", "three", "two"]


def test_of_two_at_once_one_gets_the_name(cwd: Path, opened: Open) -> None:
    one = opened("one")
    with pytest.raises(UserError, match="two exists already"), catalog.session_aside(cwd / "data", "two") as slow:
        slow.write_config(one.config)
        branched(cwd, "--round", "0")
    assert opened("two").last_label_id() == 6
    assert sorted(p.name for p in (cwd / "data").iterdir()) == ["one", "two"]


def test_the_source_may_be_running(cwd: Path, opened: Open) -> None:
    one = opened("one")
    with one.lock():
        one.write_progress(phase="train_agent")
        branched(cwd, "--round", "0")
    assert "progress.json" not in {p.name for p in opened("two").path.iterdir()}
    assert not opened("two").running()


# ---------------------------------------------------------------------------------------------- sessions of strangers


def test_nothing_is_run_unless_what_it_brings_changes(cwd: Path, opened: Open) -> None:
    (cwd / "scores.py").write_text(SCORES)
    assert command("run", "CartPole-v1", "--session", "scored", *TINY, "--rounds", "1", "--score", "scores:left",
                   cwd=cwd).status == 0  # fmt: skip
    (cwd / "ran").unlink()
    shutil.move(cwd / "data" / "scored", cwd / "data" / "theirs")
    change_header(cwd, "theirs", signature="a stranger's")
    branched(cwd, source="theirs")
    assert not (cwd / "ran").exists()
    assert "would run code of its own" in refused(command("resume", "two", "--rounds", "2", cwd=cwd))
    shutil.rmtree(cwd / "data" / "two")
    args = ("branch", "theirs", "two", "--tie-threshold", "0.1", "--score", "")
    assert "confirm it with --trust" in refused(command(*args, cwd=cwd))
    assert not (cwd / "data" / "two").exists()
    assert command(*args, "--trust", cwd=cwd).status == 0
    assert opened("two").config.score == ""
    resumed(cwd, "--rounds", "2")  # without a question
    assert not (cwd / "ran").exists()


def test_what_a_checkpoint_says_is_run_is_not(cwd: Path, opened: Open) -> None:
    path = cwd / "data" / "one" / "checkpoints" / "r001.pt"
    state = load_state(path)
    meta = json.loads(state["meta"])
    meta["config"] = json.dumps(json.loads(meta["config"]) | {"score": "evil:score", "track": True, "seed": 7})
    save_state(path, {**state, "meta": json.dumps(meta)})
    branched(cwd, "--round", "1")
    config = opened("two").config
    assert (config.score, config.track, config.seed) == ("", False, 1)


@pytest.mark.parametrize("place", ["config.json", "../secret", "/etc/hostname", "clips/../config.json"])
def test_rows_of_strangers_lead_nowhere(cwd: Path, place: str) -> None:
    (cwd / "data" / "secret").write_text("secret")
    with closing(sqlite3.connect(cwd / "data" / "one" / "session.db")) as db:
        db.execute("UPDATE clip SET path = ? WHERE id = 1", (place,))
        db.commit()
    branched(cwd, "--round", "1")
    two = cwd / "data" / "two"
    assert json.loads((two / "config.json").read_text())["branched_from"]["session"] == "one"
    assert not [p for p in two.rglob("*") if p.is_file() and b"secret" in p.read_bytes()[:100]]
    names = {p.name for p in two.rglob("*") if p.is_file()}
    assert {"0001.npz", "r001.pt"} <= names
    assert not {"0000.npz", "secret", "hostname"} & {p.name for p in (two / "clips" / "r000").iterdir()}


def test_rows_that_do_not_fit_together_are_one_sentence(cwd: Path) -> None:
    with closing(sqlite3.connect(cwd / "data" / "one" / "session.db")) as db:
        db.execute("DELETE FROM clip WHERE id = 1")
        db.commit()
    assert "do not fit together" in refused(command("branch", "one", "two", cwd=cwd))
    assert [p.name for p in (cwd / "data").iterdir()] == ["one"]
