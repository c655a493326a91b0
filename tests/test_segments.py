"""What the model sees of a clip, on disk: everything comes back, little is stored, and damage is one sentence."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from rlhf_gym.config import UserError
from rlhf_gym.segments import Segment, load_segment, save_segment, unstack


def ended_at(steps: int, end: int | None) -> np.ndarray:
    """(steps,) bool: absorbing from `end` on."""
    return np.arange(steps) >= (steps if end is None else end)


def sliding(steps: int, stack: int = 4, side: int = 8, end: int | None = None, seed: int = 0) -> np.ndarray:
    """(steps, stack, side, side) stacks that slide by one frame a step; after the end the last one, held."""
    shown = steps if end is None else min(end + 1, steps)
    frames = np.random.default_rng(seed).integers(0, 256, (shown + stack - 1, side, side), np.uint8)
    return np.stack([frames[t : t + stack] for t in np.minimum(np.arange(steps), shown - 1)])


def segment(observations: np.ndarray, end: int | None = None, actions: np.ndarray | None = None) -> Segment:
    steps = len(observations)
    absorbing = ended_at(steps, end)
    rewards = np.where(absorbing, 0, np.arange(steps)).astype(np.float32)
    infos = {"x": np.arange(steps) * 0.5, "ram": np.arange(steps * 128, dtype=np.uint8).reshape(steps, 128)}
    return Segment(observations, np.arange(steps) % 3 if actions is None else actions, rewards, absorbing, infos)


def vectors(steps: int, end: int | None = None) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(steps, 5)).astype(np.float32)
    return x[np.minimum(np.arange(steps), steps - 1 if end is None else end)]


def assert_equal(a: Segment, b: Segment) -> None:
    for name in ("observations", "actions", "rewards", "absorbing"):
        one, two = getattr(a, name), getattr(b, name)
        assert one.dtype == two.dtype, name
        assert np.array_equal(one, two, equal_nan=one.dtype.kind == "f"), name
    assert list(a.infos) == list(b.infos)
    assert all(np.array_equal(a.infos[k], b.infos[k]) and a.infos[k].dtype == b.infos[k].dtype for k in a.infos)


def round_trip(path: Path, original: Segment) -> list[str]:
    """Saves, loads and compares; returns the names of the arrays in the file."""
    save_segment(path, original)
    assert_equal(load_segment(path), original)
    return sorted(zipfile.ZipFile(path).namelist())


@pytest.mark.parametrize("end", [None, 1, 12, 23, 24], ids=lambda end: f"end {end}")
@pytest.mark.parametrize("stack", [1, 4])
def test_stacks_are_stored_once_and_come_back_whole(tmp_path: Path, stack: int, end: int | None) -> None:
    observations = sliding(25, stack, end=end)
    names = round_trip(tmp_path / "a.npz", segment(observations, end))
    assert "frames.npy" in names
    assert "observations.npy" not in names
    shown = 25 if end is None else end + 1  # steps and the terminal observation; the others hold it
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["frames"].shape == (shown + stack - 1, 8, 8)


def test_a_reset_within_hidden_episode_ends_breaks_the_slide(tmp_path: Path) -> None:
    """`--episode-ends hide`: the stack begins anew in the middle of the clip; nothing may be lost then."""
    observations = np.concatenate([sliding(10, seed=1), sliding(15, seed=2)])
    names = round_trip(tmp_path / "a.npz", segment(observations))
    assert "observations.npy" in names


def test_a_stack_that_starts_with_the_first_frame_held(tmp_path: Path) -> None:
    """At an episode's beginning all frames of the stack are the same one."""
    observations = sliding(10)
    observations[0] = observations[0, -1]
    assert "observations.npy" in round_trip(tmp_path / "a.npz", segment(observations))  # one that does not slide
    frame = observations[0, :1].repeat(5, 0)
    assert "frames.npy" in round_trip(tmp_path / "b.npz", segment(np.stack([frame[:4], frame[:4]])))


@pytest.mark.parametrize("end", [None, 3])
@pytest.mark.parametrize(
    "actions",
    [np.arange(10), np.random.default_rng(0).normal(size=(10, 2)).astype(np.float32)],
    ids=["discrete", "continuous"],
)
def test_vectors_come_back_whole(tmp_path: Path, actions: np.ndarray, end: int | None) -> None:
    names = round_trip(tmp_path / "a.npz", segment(vectors(10, end), end, actions))
    assert "observations.npy" in names


def test_true_rewards_that_are_nan_come_back_nan(tmp_path: Path) -> None:
    original = segment(vectors(6))
    original.rewards[:] = np.nan
    original.infos["x"][2] = np.nan
    save_segment(tmp_path / "a.npz", original)
    again = load_segment(tmp_path / "a.npz")
    assert np.isnan(again.rewards).all()
    assert np.isnan(again.infos["x"]).tolist() == [False, False, True, False, False, False]


def test_infos_by_step() -> None:
    dicts = segment(vectors(4)).info_dicts()
    assert len(dicts) == 4
    assert [d["x"] for d in dicts] == [0.0, 0.5, 1.0, 1.5]
    assert dicts[1]["ram"].shape == (128,)
    assert Segment(vectors(2), np.zeros(2), np.zeros(2), ended_at(2, None), {}).info_dicts() == [{}, {}]


def test_stacks_slide_or_do_not() -> None:
    stacks = sliding(6)
    frames = unstack(stacks)
    assert frames is not None
    assert frames.shape == (9, 8, 8)
    assert all(np.array_equal(frames[t : t + 4], stacks[t]) for t in range(6))
    stacks[3, 1, 0, 0] ^= 1  # one bit of one frame in the middle
    assert unstack(stacks) is None


def test_the_same_segment_makes_the_same_file(tmp_path: Path) -> None:
    """So that clips of a run that was killed can be compared with those of one that was not."""
    for name in ("a", "b"):
        save_segment(tmp_path / f"{name}.npz", segment(sliding(12)))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


# ---------------------------------------------------------------------------------------------- damage


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    path = tmp_path / "0007.npz"
    small = segment(sliding(5, side=2))
    save_segment(path, Segment(small.observations, small.actions, small.rewards, small.absorbing, {"x": np.ones(5)}))
    return path


def is_one_sentence(path: Path) -> bool:
    with pytest.raises(UserError) as caught:
        load_segment(path)
    return str(caught.value).startswith(f"Clip {path} cannot be read (") and "\n" not in str(caught.value)


def test_a_missing_clip_is_one_sentence(tmp_path: Path) -> None:
    assert is_one_sentence(tmp_path / "0007.npz")


def test_a_truncated_clip_is_one_sentence(whole: Path) -> None:
    data = whole.read_bytes()
    for length in range(0, len(data), 5):
        whole.write_bytes(data[:length])
        assert is_one_sentence(whole), length


def test_a_flipped_bit_is_found_or_changes_nothing(whole: Path) -> None:
    """No bit of the file can be flipped without a UserError, but for those that carry nothing (times, attributes)."""
    data, good = whole.read_bytes(), load_segment(whole)
    found = 0
    for at in range(len(data)):
        whole.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        try:
            assert_equal(load_segment(whole), good)
        except UserError:
            found += 1
    assert found > len(data) / 2


@pytest.mark.parametrize("missing", ["actions", "rewards", "absorbing", "observations"])
def test_a_clip_that_lacks_something_is_one_sentence(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "a.npz"
    arrays = dict(actions=np.zeros(3), rewards=np.zeros(3), absorbing=np.zeros(3, bool), observations=np.zeros((3, 2)))
    np.savez(path, **{k: v for k, v in arrays.items() if k != missing})
    assert is_one_sentence(path)


def test_nothing_else_than_an_archive_of_arrays_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for data in (b"not a clip", b"PK\x03\x04 nor this one", pickle.dumps({"actions": 1})):
        path.write_bytes(data)
        assert is_one_sentence(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").replace(path)
    assert is_one_sentence(path)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


def test_reading_a_clip_never_runs_code(tmp_path: Path) -> None:
    """A session from someone else: an object array is a pickle, and a pickle is a program."""
    path, mark = tmp_path / "a.npz", tmp_path / "was here"
    rows = dict(rewards=np.zeros(1), absorbing=np.zeros(1, bool), observations=np.zeros((1, 2)))
    np.savez(path, actions=np.array([Bomb(str(mark))], dtype=object), **rows)
    assert is_one_sentence(path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps(Bomb(str(mark))))
    assert is_one_sentence(path)
    assert not mark.exists()


def test_a_clip_that_cannot_be_written_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.npz"
    save_segment(path, segment(vectors(4)))
    before = path.read_bytes()

    def fails(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlhf_gym.store.os.replace", fails)
    with pytest.raises(OSError, match="No space"):
        save_segment(path, segment(vectors(5)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
