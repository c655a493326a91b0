"""What TensorBoard and Weights & Biases show: read back from the files that they write."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compare import session_in, without
from conftest import FakeLoop
from PIL import Image
from processes import ROOT, command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from rlhf_gym import board, track
from rlhf_gym.board import Liked, Watched, animation
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, UserError
from rlhf_gym.segments import load_clip
from rlhf_gym.store import Session

DRAWN = ("--render", "--goal", "a | b", "--clip-seconds", "0.8")
EVERYTHING = {"tensors": 0, "images": 0, "scalars": 0, "histograms": 0}


def read(session: Session) -> EventAccumulator:
    events = EventAccumulator(str(session.path / "tb"), size_guidance=EVERYTHING)
    events.Reload()
    return events


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose session `one` ran two tiny rounds, with pictures; not to be changed."""
    cwd = tmp_path_factory.mktemp("drawn")
    result = command("run", "CartPole-v1", "--session", "one", *without(DRAWN[1:]), *DRAWN, cwd=cwd)
    assert result.status == 0, result.err
    return cwd


@pytest.fixture
def one(drawn: Path) -> Iterator[Session]:
    session = session_in(drawn)
    yield session
    session.close()


def predicted(session: Session, number: int) -> dict[int, np.ndarray]:
    """What the reward model of a round gives each step of the clips that had a label then, by clip id."""
    snapshot = Snapshot.load(session.checkpoint(number), torch.device("cpu"), session.config)
    assert snapshot.reward is not None
    pairs = [p for p in session.pairs(labels_until=snapshot.last_label_id) if p.choice not in (None, "skip")]
    clips = session.clips([i for p in pairs for i in (p.left_clip, p.right_clip)])
    found = {}
    for clip in clips.values():
        segment = load_clip(session, clip)
        actions = snapshot.agent.from_env(torch.as_tensor(segment.actions))
        obs, ended = torch.as_tensor(segment.observations), torch.as_tensor(segment.absorbing)
        found[clip.id] = snapshot.reward.reward(obs, actions, ended).numpy()
    return found


# ---------------------------------------------------------------------------------------------- TensorBoard


def test_metrics_of_the_agent_stand_over_its_steps_and_all_others_over_rounds(one: Session) -> None:
    events = read(one)
    steps = {"charts/predicted_reward": [128, 256], "eval/mean": [0, 128, 256], "reward/accuracy": [0, 1]}
    for name, expected in steps.items():
        shown = events.Scalars(name)
        assert set(expected) <= {s.step for s in shown} <= {0, 1, *range(32, 257, 32)}, name
        stored = one.metrics(name)
        assert {np.float32(m["value"]) for m in stored} == {np.float32(s.value) for s in shown}
    losses = events.Scalars("reward/loss")
    assert [s.step for s in losses] == [0, 1]  # not what it was on the way there
    shown = {m["name"] for m in one.metrics() if m["phase"] in ("train_reward", "train_agent", "record")}
    assert shown == set(events.Tags()["scalars"])


def test_the_settings_are_hyperparameters_and_text(one: Session) -> None:
    assert sorted(p.name for p in (one.path / "tb").iterdir() if p.is_dir()) == []  # all in the run of the metrics
    events, config = read(one), one.config
    start, experiment = (
        HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{name}").plugin_data.content)
        for name in ("session_start_info", "experiment")
    )
    values = start.session_start_info.hparams
    assert set(values) == {f.name for f in dataclasses.fields(Config)}
    assert values["clip_seconds"].number_value == 0.8
    assert values["labeler"].string_value == "synthetic"
    assert values["render"].string_value == "true"
    assert values["skip_threshold"].string_value == "-Infinity"
    assert {m.name.tag for m in experiment.experiment.metric_infos} <= set(events.Tags()["scalars"])
    text = events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    rows = dict(line[2:-2].split(" | ") for line in text.splitlines()[2:])
    assert set(rows) == set(values)
    assert rows["goal"] == '"a &#124; b"'
    assert json.loads(rows["seed"]) == config.seed


def test_histograms_hold_the_predicted_reward_of_every_step(one: Session) -> None:
    events = read(one)
    labeled, rollouts = events.Histograms("reward/labeled_clips"), events.Histograms("charts/predicted_rewards")
    assert [h.step for h in labeled] == [0, 1]
    for number in (0, 1):
        every = np.concatenate(list(predicted(one, number).values()))
        shown = labeled[number].histogram_value
        assert shown.num == len(every)
        assert np.allclose([shown.min, shown.max, shown.sum], [every.min(), every.max(), every.sum()], atol=1e-4)
    assert [(h.step, h.histogram_value.num) for h in rollouts] == [(128, 32), (256, 32)]  # 16 steps of 2 environments
    means = {s.step: s.value for s in events.Scalars("charts/predicted_reward")}
    for rollout in rollouts:
        assert rollout.histogram_value.sum / 32 == pytest.approx(means[rollout.step], abs=1e-5)


@pytest.mark.parametrize(("name", "best"), [("clips/most_liked", True), ("clips/least_liked", False)])
def test_the_clips_shown_are_those_that_the_newest_reward_model_likes_most_and_least(
    one: Session, name: str, best: bool
) -> None:
    shown = read(one).Images(name)
    assert [s.step for s in shown] == [0, 1]
    for number, event in enumerate(shown):
        means = {clip: float(rewards.mean()) for clip, rewards in predicted(one, number).items()}
        expected = sorted(means, key=means.__getitem__, reverse=best)[: board.SHOWN]
        with Image.open(io.BytesIO(event.encoded_image_string)) as gif:
            assert (gif.format, gif.size) == ("GIF", (event.width, event.height))
            assert gif.n_frames > 2  # type: ignore[attr-defined]
            assert gif.info["loop"] == 0
            first = gif.convert("RGB")
            for i, clip in enumerate(one.clips(expected)[c] for c in expected):
                assert clip.sheet
                assert clip.frame_width
                assert clip.frame_height
                with Image.open(one.path / clip.sheet) as sheet:
                    frame = sheet.convert("RGB").crop((0, 0, clip.frame_width, clip.frame_height))
                height = event.height - board.CAPTION
                tile = first.crop((left := i * (board.WIDTH + 4), board.CAPTION, left + board.WIDTH, event.height))
                frame = frame.resize((board.WIDTH, height), Image.Resampling.BOX)
                assert np.abs(np.asarray(tile, int) - np.asarray(frame, int)).max() < 48  # of 64 colours


def test_where_nobody_looks_there_are_histograms_and_no_pictures(whole: Path) -> None:
    session = session_in(whole)
    tags = read(session).Tags()
    session.close()
    assert tags["images"] == []
    assert "reward/labeled_clips" in tags["histograms"]


def liked(session: Session, *ids: int) -> list[Liked]:
    return [Liked(session.clips([i])[i], 0.5) for i in ids]


def test_clips_move_in_step_and_hold_their_last_frame(make_session: Callable[..., FakeLoop]) -> None:
    session = make_session(pairs=2, frames=30).session
    gif = animation(session, liked(session, 1, 2))  # 30 frames at 30 a second each
    assert gif is not None
    with Image.open(io.BytesIO(gif)) as image:
        frames, shown = image.n_frames, 0  # type: ignore[attr-defined]
        assert image.size == (2 * board.WIDTH + 4, board.CAPTION + 160)  # 120 x 80, twice as large
        for i in range(frames):
            image.seek(i)
            shown += image.info["duration"]
    assert 900 <= shown <= 1800  # milliseconds: a second of play, and the pause before it begins again


def test_a_picture_that_cannot_be_read_is_left_out(make_session: Callable[..., FakeLoop]) -> None:
    session = make_session(pairs=3).session
    whole, cut, gone, other, huge = (session.clips([i])[i] for i in range(1, 6))
    for clip, content in ((cut, (session.path / str(cut.sheet)).read_bytes()[:200]), (gone, None), (other, b"PNG?")):
        path = session.path / str(clip.sheet)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
    Image.new("1", (4000, 4000)).save(session.path / str(huge.sheet))
    for clip in (cut, gone, other, huge):
        assert animation(session, [Liked(clip, 1.0)]) is None, clip.id
    for row in ({"fps": 0.0}, {"frames": 10**9}, {"frame_height": 10**6}, {"columns": 1}):
        assert animation(session, [Liked(dataclasses.replace(whole, **row), 1.0)]) is None, row
    with Image.open(io.BytesIO(animation(session, liked(session, *range(1, 6))) or b"")) as image:
        assert image.size[0] == board.WIDTH
    outside = dataclasses.replace(whole, sheet="../../secret.png")
    assert not board.has_pictures(session, outside)
    assert animation(session, [Liked(outside, 1.0)]) is None


def test_of_very_many_labeled_clips_the_newest_are_judged(one: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_gym.labels import load_labels

    snapshot = Snapshot.load(one.checkpoint(1), torch.device("cpu"), one.config)
    labels = load_labels(one, snapshot.agent.from_env, 1, 3)
    assert labels is not None
    assert snapshot.reward is not None
    every, _, count = board.judge(labels, snapshot.reward)
    assert list(every) == list(range(len(labels.length)))
    assert count.sum() == labels.length.sum()
    for rows, clips in ((int((labels.end - labels.begin)[-2:].sum()), 2), (1, 1)):
        monkeypatch.setattr(board, "MAX_ROWS", rows)
        some, rewards, _ = board.judge(labels, snapshot.reward)
        assert list(some) == list(every)[-clips:]
        assert np.allclose(list(some.values()), list(every.values())[-clips:], atol=1e-6)
        assert len(rewards) == int((labels.end - labels.begin)[-clips:].sum())


def test_in_other_processes_a_watched_score_is_the_score_alone(one: Session) -> None:
    snapshot = Snapshot.load(one.checkpoint(1), torch.device("cpu"), one.config)
    assert snapshot.reward is not None
    watched = Watched(snapshot.reward)
    assert len(watched.newest()) == 0
    there = pickle.loads(pickle.dumps(watched))
    assert there.__func__ is type(snapshot.reward).score


# ---------------------------------------------------------------------------------------------- Weights & Biases

FAKE = '''
"""Takes the place of wandb, and writes down what it is asked for."""
import json, pathlib

class Error(Exception):
    pass

def note(what, value):
    with open(pathlib.Path(__file__).with_name("calls.jsonl"), "a") as file:
        print(json.dumps([what, value], allow_nan=False), file=file)

note("import", None)

def Settings(**values):
    return values

class Histogram:
    def __init__(self, values):
        self.said = f"histogram of {len(values)}"

class Video:
    def __init__(self, data, format):
        self.said = f"{format} of {len(data.read()) if hasattr(data, 'read') else pathlib.Path(data).stat().st_size}"

class Config:
    def update(self, values, allow_val_change):
        note("config", values)

class Run:
    config = Config()
    def define_metric(self, name, step_metric=None):
        note("metric", [name, step_metric])
    def log(self, values):
        note("log", {k: getattr(v, "said", v) for k, v in values.items()})
    def finish(self):
        note("finish", None)

def init(**values):
    if pathlib.Path(__file__).with_name("shut").exists():
        raise Error("no API key\\nconfigured.")
    note("init", values)
    return Run()
'''


def calls(cwd: Path, what: str) -> list[Any]:
    path = cwd / "calls.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [value for kind, value in rows if kind == what]


@pytest.mark.skipif(os.name != "posix", reason="its processes are forked")
def test_without_wandb_nothing_starts(tmp_path: Path) -> None:
    result = command("run", "CartPole-v1", *without(()), "--track", cwd=tmp_path, missing=("wandb",))
    assert result.status == 1
    assert "pip install wandb" in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(os.name != "posix", reason="its processes are forked")
def test_a_session_is_one_run_over_all_its_resumes_and_wandb_is_loaded_for_track_alone(tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text(FAKE)
    (tmp_path / "mine.py").write_text("def score(clip):\n    return clip.rewards.sum()\n")  # with it cwd is on the path
    begin = ("run", "CartPole-v1", "--session", "one", *without(("--rounds",)), "--render", "--score", "mine:score")
    more = (("resume", "one", "--rounds", "2", "--track"), ("resume", "one", "--rounds", "3"))
    for imports, args in enumerate(((*begin, "--rounds", "1"), *more)):
        result = command(*args, cwd=tmp_path)
        assert result.status == 0, result.err
        assert len(calls(tmp_path, "import")) == imports
    first, second = calls(tmp_path, "init")
    session = session_in(tmp_path)
    assert first == second
    assert first["id"] == session.header()["wandb"]
    assert (first["project"], first["name"], first["resume"]) == ("rlhf-gym", "one", "allow")
    assert Path(tmp_path, first["dir"]).samefile(session.path)
    assert first["settings"]["symlink"] is False
    assert [c["rounds"] for c in calls(tmp_path, "config")] == [2, 3]
    assert [c["skip_threshold"] for c in calls(tmp_path, "config")] == [None, None]
    assert len(calls(tmp_path, "finish")) == 2
    assert ["charts/*", "steps"] in calls(tmp_path, "metric")
    logged = calls(tmp_path, "log")
    for name in ("reward/accuracy", "charts/true_return", "eval/mean", "agent/video", "clips/most_liked",
                 "clips/least_liked", "reward/labeled_clips", "charts/predicted_rewards"):  # fmt: skip
        assert {row["round"] for row in logged if name in row} == {1, 2}, name
    evaluated = {row["round"]: (row["steps"], row["eval/mean"]) for row in logged if "eval/mean" in row}
    stored = {m["round"]: (m["step"], m["value"]) for m in session.metrics("eval/mean") if m["round"] > 0}
    assert evaluated == stored
    session.close()


def test_a_run_that_cannot_be_opened_is_one_sentence(
    tmp_path: Path, make_session: Callable[..., FakeLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "wandb.py").write_text(FAKE)
    (site / "shut").touch()
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    session = make_session(track=True).session
    shown = board.Board(session)
    with pytest.raises(UserError, match=r"did not start \(no API key configured\): log in") as error:
        shown.begin(session.config)
    assert "\n" not in str(error.value)
    shown.close()
    sys.modules.pop("wandb")


def test_an_id_that_is_none_is_made_anew(make_session: Callable[..., FakeLoop]) -> None:
    session = make_session().session
    session.write_config(session.config, wandb="../../../else")
    made = track.run_id(session)
    assert track.USABLE_ID.fullmatch(made)
    assert track.run_id(session) == made


REAL = """
import sys
from pathlib import Path
from rlhf_gym import board, catalog
session = catalog.open_session(Path("data"), "cartpole-1")
for number in range(2):
    shown = board.Board(session)
    shown.begin(session.config)
    shown.numbers({"charts/SPS": 7.5, "reward/loss": float("nan")}, number, 100)
    shown.recorded(number)
    shown.tracker.picture("clips/most_liked", b"GIF89a", number)
    shown.tracker.histogram("reward/labeled_clips", __import__("numpy").arange(9.0), number, None)
    shown.close()
"""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed; nothing here needs it")
def test_the_real_wandb_keeps_it_on_this_machine(tmp_path: Path, make_session: Callable[..., FakeLoop]) -> None:
    session = make_session(track=True).session
    session.video(0).write_bytes(b"an mp4")
    paths = os.pathsep.join(map(str, [ROOT, *sys.path]))
    env = {**os.environ, "WANDB_MODE": "offline", "HOME": str(tmp_path), "PYTHONPATH": paths}
    result = subprocess.run([sys.executable, "-c", REAL], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    from wandb.proto import wandb_internal_pb2

    session_in(tmp_path, "cartpole-1").close()  # no link lies where none may
    runs = sorted((session.path / "wandb").glob("offline-run-*/*.wandb"))
    assert runs
    found = [wandb_internal_pb2.Record.FromString(data) for run in runs for data in records(run.read_bytes())]
    assert {(r.run.project, r.run.display_name, r.run.run_id) for r in found if r.HasField("run")} == {
        ("rlhf-gym", "cartpole-1", session.header()["wandb"])
    }
    rows = [
        {tuple(i.nested_key) or (i.key,): i.value_json for i in r.history.item} for r in found if r.HasField("history")
    ]
    speeds = [{k[0]: json.loads(row[k]) for k in row if k[0][0] != "_"} for row in rows if ("charts/SPS",) in row]
    assert speeds == [{"charts/SPS": 7.5, "round": n, "steps": 100} for n in (0, 1)]
    kinds = {(k[0], row[k]) for row in rows for k in row if k[1:] == ("_type",)}
    assert kinds == {
        ("agent/video", '"video-file"'), ("clips/most_liked", '"video-file"'), ("reward/labeled_clips", '"histogram"'),
    }  # fmt: skip


def records(data: bytes) -> Iterator[bytes]:
    """Of a .wandb file, which is a log as LevelDB writes it after seven bytes of its own."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""
