"""Labels, clips and models in other formats: each is opened again with the library that reads it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml
from conftest import FakeLoop
from processes import TINY, Kill, command, refused

from rlhf_gym import catalog, export, trajectories
from rlhf_gym.bundle import gather
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import UserError
from rlhf_gym.segments import Segment, load_clip, save_segment
from rlhf_gym.store import Session

Made = Callable[..., tuple[Session, Path]]

INFO = {
    "kind": "classic", "obs_shape": [4], "image": False, "num_actions": 2, "action_shape": [], "action_low": None,
    "action_high": None, "fps": 30.0, "max_episode_steps": 500,
}  # fmt: skip


@pytest.fixture(scope="module")
def cart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the session `one` of two rounds of CartPole, drawn; not to be changed."""
    return ran(tmp_path_factory.mktemp("cart"), "CartPole-v1", "--render", "--goal", "Stay up")


def ran(cwd: Path, env_id: str, *more: str) -> Path:
    result = command("run", env_id, "--session", "one", *TINY, *more, cwd=cwd)
    assert result.status == 0, result.err
    return cwd


def session_in(cwd: Path) -> Session:
    return catalog.open_session(cwd / "data", "one")


def exported(cwd: Path, out: Path, format: str, *more: str, **options: Any) -> Path:
    result = command("export", "one", str(out), "--format", format, *more, cwd=cwd, **options)
    assert result.status == 0, result.err
    assert result.out == f"{out}\n"
    return out


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def export_quietly(session: Session, out: Path, format: str) -> list[str]:
    return export.export(session, out, format, lambda done, total: None)


def give_clips(loop: FakeLoop, observations: Callable[[int], np.ndarray], **info: Any) -> None:
    """Writes what the model sees of the clips that a FakeLoop has drawn: from `ended_frame` on they are absorbing."""
    loop.session.write_config(loop.session.config, info=INFO | info)
    for clip in loop.session.clips().values():
        steps, ended = clip.steps, clip.ended_frame if clip.ended_frame is not None else clip.steps
        obs = observations(clip.id)
        absorbing = np.arange(steps) >= ended
        obs[ended:] = obs[min(ended, steps - 1)]
        actions = np.where(absorbing, 0, np.arange(steps) % 2)
        path = loop.session.path / clip.path
        path.parent.mkdir(parents=True, exist_ok=True)
        save_segment(path, Segment(obs, actions, (~absorbing).astype(np.float32), absorbing, {}))


# ---------------------------------------------------------------------------------------------- jsonl


def test_a_bundle_says_what_the_session_knows(cart: Path, tmp_path: Path) -> None:
    out = exported(cart, tmp_path / "out", "jsonl")
    session = session_in(cart)
    about = json.loads((out / "dataset.json").read_text())
    assert (about["format"], about["version"], about["env_id"]) == ("rlhf-gym-labels", 1, "CartPole-v1")
    assert about["goal"] == "Stay up"
    assert about["observation_space"] == {"type": "Box", "shape": [4], "dtype": "float32"}
    assert about["action_space"] == {"type": "Discrete", "n": 2}
    labels, clips = lines(out / "labels.jsonl"), {c["clip"]: c for c in lines(out / "clips.jsonl")}
    assert (about["labels"], about["clips"]) == (len(labels), len(clips))
    pairs = {p.id: p for p in session.pairs()}
    assert [label["pair"] for label in labels] == [p.id for p in pairs.values() if p.choice is not None]
    for label in labels:
        pair = pairs[label["pair"]]
        assert (label["left"], label["right"]) == (pair.left_clip, pair.right_clip)
        assert (label["choice"], label["strength"]) == (pair.choice, pair.strength)
        assert (label["round"], label["kind"], label["repeat_of"]) == (pair.round, pair.kind, pair.repeat_of)
        assert (label["source"], label["goal"]) == ("synthetic", "Stay up")
    assert any(label["repeat_of"] is not None for label in labels)
    assert {c for label in labels for c in (label["left"], label["right"])} == set(clips)
    for i, clip in clips.items():
        segment = load_clip(session, session.clips()[i])
        with np.load(out / clip["file"], allow_pickle=False) as stored:
            assert np.array_equal(stored["observations"], segment.observations)
            assert np.array_equal(stored["actions"], segment.actions)
            assert np.array_equal(stored["rewards"], segment.rewards)
            assert np.array_equal(stored["absorbing"], segment.absorbing)
        assert clip["steps"] == len(segment.rewards)
        assert clip["true_return"] == segment.rewards.sum()
    assert sorted(p.name for p in out.iterdir()) == ["clips", "clips.jsonl", "dataset.json", "labels.jsonl"]
    if os.name == "posix":
        assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~current_umask() & 0o755


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_videos_show_what_the_sheets_show_with_the_last_frame_held(make_session: Any, tmp_path: Path) -> None:
    loop = make_session(pairs=2, width=121, height=81)
    give_clips(loop, lambda i: np.full((30, 4), i, np.float32))
    for n, pair in enumerate(loop.session.pairs()):
        loop.session.add_label(f"label-{n}", pair.id, "left")
    assert export_quietly(loop.session, tmp_path / "out", "jsonl") == ["2 labels, 4 clips."]
    from PIL import Image

    for clip in lines(tmp_path / "out" / "clips.jsonl"):
        with av.open(str(tmp_path / "out" / clip["video"])) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 30)
            shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(shown) == 30
        sheet = np.asarray(Image.open(loop.session.path / loop.session.clips()[clip["clip"]].sheet).convert("RGB"))
        for i in (0, 9, 29):
            row, column = i // 8 * 81, i % 8 * 121
            expected = sheet[row : row + 81, column : column + 121].repeat(3, 0).repeat(3, 1).astype(int)
            assert shown[i].shape == (244, 364, 3)  # even sides
            seen = shown[i][:243, :363].astype(int)
            assert np.abs(seen - expected).mean() < 3
            colored = expected[..., 0] > expected[..., 2] + 50  # the pole: red and blue are not swapped
            assert seen[colored][:, 0].mean() > seen[colored][:, 2].mean() + 50


def test_only_labels_that_count_are_exported_each_with_the_goal_of_its_time(make_session: Any, tmp_path: Path) -> None:
    loop = make_session(pairs=6)
    session = loop.session
    give_clips(loop, lambda i: np.full((30, 4), i, np.float32))
    pairs = session.pairs()
    session.add_label("a", pairs[0].id, "left")
    session.forget(0)
    session.add_label("b", pairs[1].id, "left", response_ms=1200, replays=2)
    session.add_label("c", pairs[1].id, "right", strength="strong", response_ms=800, replays=0, pauses=1, hidden_ms=5)
    session.add_event("goal", 0, text="Fall over.")
    session.add_label("d", pairs[2].id, "equal")
    session.add_label("e", pairs[2].id, None)
    session.add_label("f", pairs[3].id, "skip")
    session.add_label("g", pairs[4].id, "left")
    (session.path / session.clips()[pairs[4].left_clip].path).write_bytes(b"torn")
    said = export_quietly(session, tmp_path / "out", "jsonl")
    assert said[0] == "2 labels, 4 clips."
    assert "cannot be read" in said[1]
    assert "left out" in said[1]
    first, second = lines(tmp_path / "out" / "labels.jsonl")
    assert (first["pair"], first["choice"], first["strength"], first["uid"]) == (pairs[1].id, "right", "strong", "c")
    assert (first["response_ms"], first["replays"], first["pauses"], first["hidden_ms"]) == (800, 0, 1, 5)
    assert (first["source"], first["goal"]) == ("human", "Keep the pole up.")
    assert (second["choice"], second["goal"]) == ("skip", "Fall over.")
    session.forget(0)
    with pytest.raises(UserError, match="no label that counts"):
        export_quietly(session, tmp_path / "none", "jsonl")
    assert [p.name for p in tmp_path.iterdir() if p.name != "data"] == ["out"]


def image_session(make_session: Any, pairs: int, **more: Any) -> FakeLoop:
    """Of stacks of three images."""
    loop: FakeLoop = make_session(pairs=pairs, frame_stack=3, image_size=40, **more)

    def stacks(i: int) -> np.ndarray:
        frames = np.random.default_rng(i).integers(0, 255, (32, 40, 40), np.uint8)
        return np.stack([frames[t : t + 3] for t in range(30)])

    give_clips(loop, stacks, obs_shape=[3, 40, 40], image=True, kind="pixels")
    return loop


def test_frames_are_stored_once_and_clips_without_a_picture_have_no_video(make_session: Any, tmp_path: Path) -> None:
    session = image_session(make_session, pairs=1).session
    for pair in session.pairs():
        session.add_label("a", pair.id, "left")
        for clip in session.clips().values():
            if clip.id == pair.left_clip:
                (session.path / clip.sheet).unlink()
            else:
                (session.path / clip.sheet).write_bytes(b"no picture")
    said = export_quietly(session, tmp_path / "out", "jsonl")
    assert said[1:] == ["2 clips of them have no picture, so no video."]
    for clip in lines(tmp_path / "out" / "clips.jsonl"):
        assert clip["video"] is None
        stored = np.load(tmp_path / "out" / clip["file"], allow_pickle=False)
        shown = 30 if clip["ended_frame"] is None else clip["ended_frame"] + 1
        assert len(stored["frames"]) == shown + 2
        seen = np.stack([stored["frames"][min(t, shown - 1) :][:3] for t in range(30)])  # as docs/formats.md says
        assert np.array_equal(seen, load_clip(session, session.clips()[clip["clip"]]).observations)


# ---------------------------------------------------------------------------------------------- where it goes


def test_nothing_is_overwritten_and_nothing_lands_among_the_sessions(cart: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place, said in (
        (tmp_path / "full", "is not empty"), (tmp_path / "file", "is no directory"),
        (cart / "data" / "two", "among the sessions"), (cart / "data" / "one" / "clips" / "r009", "among the sessions"),
        (tmp_path / "file" / "below", "Cannot write to"), (tmp_path / ("x" * 254), "Cannot write to"),
    ):  # fmt: skip
        assert said in refused(command("export", "one", str(place), "--format", "jsonl", cwd=cart))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "full"]
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in (cart / "data").iterdir()) == ["one"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    exported(cart, tmp_path / "link", "jsonl")
    assert (tmp_path / "empty" / "labels.jsonl").exists()
    (tmp_path / "here").mkdir()
    where = ("--data-dir", str(cart / "data"))
    assert "as a whole" in refused(command("export", "one", ".", "--format", "jsonl", *where, cwd=tmp_path / "here"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "two").symlink_to(cart / "data" / "one")
    inside = str(cart / "data" / "one" / "here")
    assert "among the sessions" in refused(command("export", "two", inside, "--format", "jsonl", cwd=tmp_path))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_export_leaves_nothing_under_its_name(cart: Path, tmp_path: Path) -> None:
    arguments = ("export", "one", str(tmp_path / "out"), "--format", "jsonl")
    assert command(*arguments, cwd=cart, kill=Kill("rlhf_gym.bundle:write_clip", 2)).status == -9
    assert not (tmp_path / "out").exists()
    exported(cart, tmp_path / "out", "jsonl")


@pytest.fixture
def readable_only(cart: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(cart / "data", tmp_path / "data")
    paths = [tmp_path / "data" / "one", *(tmp_path / "data" / "one").rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~0o222)
    yield tmp_path
    for path in paths:
        path.chmod(path.stat().st_mode | 0o200)


def test_a_running_session_is_exported_and_so_is_one_that_cannot_be_written(readable_only: Path, cart: Path) -> None:
    exported(readable_only, readable_only / "out", "jsonl")
    with session_in(cart).lock():
        exported(cart, readable_only / "running", "jsonl")
    one, two = ((readable_only / name / "labels.jsonl").read_text() for name in ("out", "running"))
    assert one == two


def test_a_strangers_environment_is_not_run(cart: Path, tmp_path: Path) -> None:
    shutil.copytree(cart / "data", tmp_path / "data")
    (tmp_path / "evil.py").write_text("open('run', 'w').close()\n")
    header = json.loads((tmp_path / "data" / "one" / "config.json").read_text())
    header["config"] |= {"env_id": "evil:CartPole-v1", "score": "evil:score"}
    (tmp_path / "data" / "one" / "config.json").write_text(json.dumps(header))
    exported(tmp_path, tmp_path / "out", "jsonl")
    assert not (tmp_path / "run").exists()


def test_what_somebody_else_wrote_into_a_session_is_one_sentence(make_session: Any, tmp_path: Path) -> None:
    loop = make_session(pairs=1)
    session = loop.session
    give_clips(loop, lambda i: np.full((30, 4), i, np.float32))
    session.add_label("a", session.pairs()[0].id, "left")
    for wrong in (
        {"obs_shape": "4"},
        {"obs_shape": [-4]},
        {"image": 1},
        {"num_actions": "two"},
        {"fps": None},
        {"num_actions": None},
    ):
        session.write_config(session.config, info=INFO | wrong)
        for format in ("jsonl", "parquet", "minari"):
            with pytest.raises(UserError, match="does not say what its environment's observations"):
                export_quietly(session, tmp_path / "out", format)
    session.write_config(session.config, info=INFO | {"obs_shape": [5]})
    with pytest.raises(UserError, match="2 clips cannot be read"):
        export_quietly(session, tmp_path / "out", "parquet")


def test_what_is_gathered_is_what_counts(cart: Path) -> None:
    session = session_in(cart)
    assert len(gather(session).labels) == session.count_pairs()[1]


# ---------------------------------------------------------------------------------------------- parquet


def shown(segment: Segment) -> int:
    """Steps with an observation of their own."""
    return len(segment.absorbing) - max(int(segment.absorbing.sum()) - 1, 0)


def test_parquet_opens_as_a_dataset(cart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = exported(cart, tmp_path / "out", "parquet")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    datasets.disable_progress_bars()
    session = session_in(cart)
    judged = [p for p in session.pairs() if p.choice is not None]
    files = str(out / "data" / "*.parquet")
    for found in (
        datasets.load_dataset(str(out), split="train", cache_dir=str(tmp_path / "cache")),
        datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache")),
    ):
        assert [(row["pair"], row["choice"]) for row in found] == [(p.id, p.choice) for p in judged]
        for row, pair in zip(found, judged, strict=True):
            for side, clip in (("left", pair.left_clip), ("right", pair.right_clip)):
                segment = load_clip(session, session.clips()[clip])
                assert np.array_equal(np.array(row[f"{side}_observations"], np.float32), segment.observations)
                assert row[f"{side}_actions"] == segment.actions.tolist()
                assert row[f"{side}_absorbing"] == segment.absorbing.tolist()
                assert row[f"{side}_rewards"] == segment.rewards.tolist()
                assert row[f"{side}_clip"] == clip


def test_parquet_keeps_each_frame_once(make_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    from rlhf_gym import parquet

    monkeypatch.setattr(parquet, "GROUP_BYTES", 1)  # a row group for each pair
    loop = image_session(make_session, pairs=2)
    session = loop.session
    for n, pair in enumerate(session.pairs()):
        session.add_label(f"{n}", pair.id, "right")
    export_quietly(session, tmp_path / "out", "parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "data")
    about = json.loads(table.schema.metadata[b"rlhf-gym"])
    assert (about["env_id"], about["labels"]) == ("CartPole-v1", 2)
    rows = table.to_pylist()
    assert [row["pair"] for row in rows] == [p.id for p in session.pairs()]
    for row in rows:
        segment = load_clip(session, session.clips()[row["right_clip"]])
        frames = np.frombuffer(row["right_observations"], np.uint8).reshape(row["right_shape"])
        last = shown(segment) - 1
        assert len(frames) == last + 3
        assert np.array_equal(np.stack([frames[min(t, last) :][:3] for t in range(30)]), segment.observations)
    assert "frames[t : t + 3]" in (tmp_path / "out" / "README.md").read_text()


# ---------------------------------------------------------------------------------------------- minari


def test_minari_loads_the_clips_as_episodes(cart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    out = exported(cart, tmp_path / "out", "minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(out))
    assert list(minari.list_local_datasets()) == ["rlhf-gym/one-v0"]
    dataset = minari.load_dataset("rlhf-gym/one-v0")
    session = session_in(cart)
    abouts = [m["options"] for m in dataset.storage.get_episode_metadata(range(dataset.total_episodes))]
    assert {int(a["clip"]) for a in abouts} == {c for p in session.pairs() for c in (p.left_clip, p.right_clip)}
    ends = set()
    for episode, about in zip(dataset.iterate_episodes(), abouts, strict=True):
        segment = load_clip(session, session.clips()[int(about["clip"])])
        live, ended = int((~segment.absorbing).sum()), bool(segment.absorbing.any())
        steps = live if ended else live - 1
        assert len(episode.actions) == len(episode.rewards) == steps
        assert np.array_equal(episode.observations, segment.observations[: steps + 1])
        assert np.array_equal(episode.actions, segment.actions[:steps])
        assert np.array_equal(episode.rewards, segment.rewards[:steps])
        assert (episode.terminations.tolist(), episode.truncations.tolist()) == (
            [False] * (steps - 1) + [ended], [False] * (steps - 1) + [not ended],
        )  # fmt: skip
        ends.add(ended)
    assert ends == {True, False}
    for label in lines(out / "labels.jsonl"):
        assert abouts[label["left_episode"]]["clip"] == label["left"]
        assert abouts[label["right_episode"]]["clip"] == label["right"]


def test_minari_loses_nothing_of_images(make_session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import minari

    loop = image_session(make_session, pairs=1, name="dots.and-dashes")
    loop.session.add_label("a", loop.session.pairs()[0].id, "equal")
    monkeypatch.setenv("MINARI_DATASETS_PATH", "elsewhere")
    export_quietly(loop.session, tmp_path / "out", "minari")
    assert os.environ["MINARI_DATASETS_PATH"] == "elsewhere"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "out"))
    episode = minari.load_dataset("rlhf-gym/dots-and-dashes-v0")[0]
    first = min(loop.session.clips())
    assert np.array_equal(episode.observations, load_clip(loop.session, loop.session.clips()[first]).observations)


def test_open_bounds_stay_open() -> None:
    space = trajectories.action_space(
        INFO | {"num_actions": None, "action_shape": [2], "action_low": [None, -1.0], "action_high": [3.0, None]}
    )
    assert space.low.tolist() == [-np.inf, -1]
    assert space.high.tolist() == [3, np.inf]


# ---------------------------------------------------------------------------------------------- the model card


def front(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(matter)
    return found


def test_a_models_card_says_what_was_measured_and_no_more(cart: Path, tmp_path: Path) -> None:
    out = exported(cart, tmp_path / "out", "safetensors")
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "policy.safetensors",
        "reward_model.safetensors",
    ]
    card, session = (out / "README.md").read_text(), session_in(cart)
    assert front(card) == {"library_name": "rlhf-gym", "tags": ["reinforcement-learning", "rlhf", "CartPole-v1"]}
    assert "> Stay up" in card
    values = {m["name"]: m["value"] for m in session.metrics() if m["round"] == 1}
    assert f"| true return | {values['eval/mean']:.4g} ± {values['eval/std']:.4g} over 2 episodes |" in card
    assert f"{values['reward/held_out_accuracy']:.0%}, of the reward model on pairs" in card
    assert f"{values['labels/consistency']:.0%} of {values['labels/repeats']:.0f} hidden repeats" in card
    labels = [p for p in session.pairs() if p.choice in ("left", "right", "equal")]
    assert f"| labels | {len(labels)}: " in card
    assert f"| synthetic | {len(labels)} |" in card
    assert torch.__version__ in card
    earlier = exported(cart, tmp_path / "earlier", "safetensors", "--round", "0")
    fewer = [p for p in labels if p.round == 0]
    assert 0 < len(fewer) < len(labels)
    assert f"| labels | {len(fewer)}: " in (earlier / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("(observations)", "(np.ones((3, 4), np.float32))")
    monkey = os.getcwd()
    try:
        os.chdir(out)
        scope: dict[str, Any] = {"np": np}
        exec(code, scope)  # what the card tells its readers to do
    finally:
        os.chdir(monkey)
    snapshot = Snapshot.load(session.checkpoint(1))
    assert np.array_equal(scope["actions"], snapshot.agent.act(np.ones((3, 4), np.float32)))


def test_the_untrained_agent_has_no_reward_model_and_no_figures(cart: Path, tmp_path: Path) -> None:
    result = command("export", "one", str(tmp_path / "out"), "--format", "onnx", "--round", "-1", cwd=cart)
    assert result.status == 0, result.err
    assert "no reward model yet" in result.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "policy.onnx"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert front(card)["library_name"] == "onnx"
    assert "none: there is no reward model yet" in card
    assert "accuracy" not in card
    assert "learned nothing yet" in card
    code = (
        card.split("```python\n")[1]
        .split("```")[0]
        .replace('"policy.onnx"', repr(str(tmp_path / "out" / "policy.onnx")))
    )
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["actions"].shape == (1,)


def test_what_cannot_be_done_is_one_sentence(cart: Path, tmp_path: Path, make_session: Any) -> None:
    out = str(tmp_path / "out")
    assert "no round 7" in refused(command("export", "one", out, "--format", "onnx", "--round", "7", cwd=cart))
    assert "leave it out" in refused(command("export", "one", out, "--format", "jsonl", "--round", "0", cwd=cart))
    for format in ("jsonl", "parquet", "minari"):
        with pytest.raises(UserError, match="no label that counts"):
            export_quietly(make_session(f"empty-{format}").session, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("format", "module"),
    [("parquet", "pyarrow"), ("minari", "minari"), ("onnx", "onnxscript"), ("safetensors", "safetensors")],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    format: str, module: str, cart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module else real(name, *rest))
    (tmp_path / module).mkdir()  # a folder of that name is no package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=rf"--format {format} needs {module}: .*python\S* -m pip install {module}$"):
        export_quietly(session_in(cart), tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
