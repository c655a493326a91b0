"""Labels as tensors: targets, the bootstrap's weights, and that every row is the step it says it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_gym import catalog
from rlhf_gym.config import Config
from rlhf_gym.labels import Labels, load_labels, target
from rlhf_gym.normalizer import LEAST_CONTRAST
from rlhf_gym.segments import Segment, save_segment
from rlhf_gym.store import Pair


def segment(steps: int, ended: int = 0, first: float = 0.0, image: bool = False, slides: bool = True) -> Segment:
    """Step t shows first + t; on images, stacks of 3 that slide by one frame a step, or do not."""
    rng, shown = np.random.default_rng(int(first)), np.minimum(np.arange(steps), steps - max(ended, 1))
    if image:
        frames = rng.integers(0, 256, (3 * steps, 6, 6), dtype=np.uint8)
        obs = np.stack([frames[(1 if slides else 3) * t :][:3] for t in shown])
    else:
        obs = (first + shown)[:, None].astype(np.float32)
    actions = (first + np.arange(steps))[:, None].astype(np.float32)
    return Segment(obs, actions, np.zeros(steps, np.float32), np.arange(steps) >= steps - ended, {})


def pair(number: int, left: int = 1, right: int = 2, **more) -> Pair:
    row = dict(round=0, attempt=0, position=number, kind="uniform", repeat_of=None, p_left=None, disagreement=None)
    return Pair(id=number, left_clip=left, right_clip=right, **{**row, "choice": "left", **more})


def double(actions: torch.Tensor) -> torch.Tensor:
    return actions * 2


@pytest.mark.parametrize(
    ("choice", "strength", "wanted"),
    [
        ("left", "strong", 1.0), ("right", "strong", 0.0), ("left", "normal", 0.95), ("right", "normal", 0.05),
        ("equal", "normal", 0.5), ("equal", "strong", 0.5),
    ],
)  # fmt: skip
def test_strength_moves_the_target_and_equal_is_a_half(choice, strength, wanted):
    assert target(pair(1, choice=choice, strength=strength)) == pytest.approx(wanted)


def test_weights_are_fixed_by_seed_member_and_pair():
    segments = {1: segment(3), 2: segment(4)}
    pairs = [pair(n) for n in range(1, 401)]
    weight = Labels(pairs, segments, double, seed=5, members=3).weight
    assert weight.shape == (3, 400)
    # whatever else there is, in whatever order
    again = Labels([pairs[7], pair(999), pairs[3]], segments, double, seed=5, members=2).weight
    assert torch.equal(again[:, [0, 2]], weight[:2][:, [7, 3]])
    assert not torch.equal(Labels(pairs, segments, double, seed=6, members=3).weight, weight)
    assert len({tuple(row) for row in weight.tolist()}) == 3  # members differ
    # Poisson(1): mean and variance 1, zero with probability 1 / e
    assert float(weight.mean()) == pytest.approx(1, abs=0.12)
    assert float(weight.var()) == pytest.approx(1, abs=0.2)
    assert float((weight == 0).float().mean()) == pytest.approx(np.exp(-1), abs=0.06)


def test_a_repeat_is_held_out_where_its_original_is():
    pairs = [pair(n) for n in range(1, 41)] + [pair(n + 40, kind="repeat", repeat_of=n) for n in range(1, 41)]
    weight = Labels(pairs, {1: segment(3), 2: segment(4)}, double, seed=1, members=3).weight
    assert torch.equal(weight[:, :40], weight[:, 40:])


def test_some_steps_stand_for_all_of_a_clip():
    segments = {1: segment(40, ended=10), 2: segment(7), 3: segment(25), 4: segment(6, ended=6)}
    labels = Labels([pair(1, 1, 2), pair(2, 3, 4)], segments, double, seed=1, members=1)
    clips, seen = torch.tensor([2, 0, 3, 1]), torch.zeros(len(labels.count))
    for seed in range(400):
        rows, owner, count = labels.rows_of(clips, at_most=8, generator=torch.Generator().manual_seed(seed))
        assert torch.bincount(owner).tolist() == [8, 8 + 1, 1, 7]  # what was seen last is always there
        weighed = torch.zeros(4).index_add(0, owner, count)
        assert weighed.tolist() == pytest.approx(labels.length[clips].tolist())
        live = rows[(owner == 1) & ~labels.ended[rows]]
        assert live.diff().min() >= 3  # 30 live steps, evenly
        assert live.diff().max() <= 4
        seen += torch.zeros(len(seen)).index_add(0, rows, count)
    assert (seen / 400)[labels.ended].tolist() == [10, 6]
    assert (seen / 400)[~labels.ended].numpy() == pytest.approx(np.ones(62), abs=0.3)  # no step is favoured


@pytest.mark.parametrize("image", [False, True])
def test_every_row_is_the_step_it_says_it_is(image):
    """Clips of different length and end, stacks that slide and stacks that do not, all in one row."""
    segments = {
        4: segment(5, first=100, image=image), 2: segment(3, ended=2, first=200, image=image),
        9: segment(4, first=300, image=image, slides=False), 1: segment(6, ended=1, first=400, image=image),
    }  # fmt: skip
    labels = Labels([pair(1, 2, 9), pair(2, 1, 4)], segments, double, seed=1, members=1)
    assert labels.left.tolist() == [1, 3]
    assert labels.right.tolist() == [2, 0]
    assert labels.length.tolist() == [5, 3, 4, 6]
    assert labels.ended.tolist() == [False] * 5 + [False, True] + [False] * 4 + [False] * 5 + [True]
    assert labels.count.tolist() == [1] * 5 + [1, 2] + [1] * 4 + [1] * 6
    rows, owner, count = labels.rows_of(torch.tensor([3, 1, 2, 3]))  # in any order, and twice
    assert owner.tolist() == [0] * 6 + [1] * 2 + [2] * 4 + [3] * 6
    assert count.tolist() == [1] * 7 + [2] + [1] * 10
    obs, actions, ended = labels.steps(rows)
    at = 0
    for clip in (1, 2, 9, 1):
        over = segments[clip].absorbing
        n = int((~over).sum())
        assert np.array_equal(obs[at : at + n].numpy(), segments[clip].observations[~over])
        assert np.array_equal(actions[at : at + n].numpy(), 2 * segments[clip].actions[~over])
        assert not ended[at : at + n].any()
        at += n
        if over.any():  # and what was seen last, once
            assert np.array_equal(obs[at].numpy(), segments[clip].observations[over][0])
            assert ended[at]
            at += 1
    assert at == len(rows)
    if image:  # the frames that slide are kept once
        assert len(labels.obs) == (5 + 2) + (2 + 2) + 4 * 3 + (6 + 2)


@pytest.fixture
def session(tmp_path):
    session = catalog.create_session(tmp_path, "labels-1", Config(env_id="CartPole-v1"))
    directory = session.clear_batch_files(0, 0)
    clips = []
    for i in range(12):
        save_segment(directory / f"{i:04d}.npz", segment(4, first=10 * i))
        path = f"{directory.relative_to(session.path).as_posix()}/{i:04d}.npz"
        clips.append(dict(round=0, attempt=0, path=path, fps=30.0, steps=4, seed=0, start=0))
    rows = [dict(round=0, attempt=0, position=n, left=2 * n, right=2 * n + 1, kind="uniform") for n in range(6)]
    session.add_batch(clips, rows)
    yield session
    session.close()


@pytest.mark.parametrize("slides", [True, False])
def test_moments_of_images_are_those_of_every_pixel_over_all_frames(slides):
    segments = {1: segment(7, image=True, slides=slides), 2: segment(300, ended=2, first=1, image=True, slides=slides)}
    for clip in segments.values():
        clip.observations[:, :, 0, 0], clip.observations[:, :, 0, 1] = 51, 255  # a fifth of white, and white
    labels = Labels([pair(1)], segments, double, seed=1, members=1)
    mean, std = labels.moments()
    frames = labels.obs.numpy().astype(float) / 255
    assert len(frames) > 512 or slides  # more than are summed at a time
    assert mean.shape == std.shape == (6, 6)
    assert mean[0, 0] == pytest.approx(0.2)
    assert std[0, 0] == std[0, 1] == pytest.approx(LEAST_CONTRAST)
    np.testing.assert_allclose(mean, frames.mean(0), atol=1e-6)
    np.testing.assert_allclose(std[1:], frames.std(0)[1:], atol=1e-6)


def test_moments_of_vectors_are_those_of_every_number():
    labels = Labels([pair(1)], {1: segment(3), 2: segment(5, first=2)}, double, seed=1, members=1)
    mean, std = labels.moments()
    seen = np.array([0, 1, 2, 2, 3, 4, 5, 6])
    assert (float(mean[0]), float(std[0])) == pytest.approx((seen.mean(), seen.std()))


def test_labels_of_a_session(session):
    pairs = session.pairs()

    def loaded(until=None):
        return load_labels(session, double, seed=1, members=2, until=until)

    assert loaded() is None  # no label at all
    session.add_label("a", pairs[0].id, "equal")
    session.add_label("b", pairs[1].id, "skip")
    assert loaded() is None  # nothing that says better or worse
    session.add_label("c", pairs[2].id, "left", strength="strong")
    session.add_label("d", pairs[3].id, "right")
    until = session.add_label("e", pairs[4].id, "left")
    found = loaded()
    assert [p.id for p in found.pairs] == [pairs[n].id for n in (0, 2, 3, 4)]  # a skip is not used
    assert found.target.tolist() == pytest.approx([0.5, 1.0, 0.05, 0.95])
    obs, actions, _ = found.steps(found.rows_of(found.right[[2]])[0])
    assert obs.flatten().tolist() == [70, 71, 72, 73]
    assert actions.flatten().tolist() == [140, 142, 144, 146]

    session.add_label("f", pairs[4].id, None)  # taken back
    session.add_label("g", pairs[3].id, "left")  # another mind
    session.add_label("h", pairs[5].id, "left")
    assert loaded().target.tolist() == pytest.approx([0.5, 1.0, 0.95, 0.95])
    before = loaded(until)  # what a checkpoint saw
    assert before.target.tolist() == found.target.tolist()
    assert torch.equal(before.weight, found.weight)
    assert torch.equal(before.obs, found.obs)


def test_forgotten_labels_do_not_count(session):
    """After a change of goal only what was judged since counts; a pair judged anew counts with its new label."""
    pairs = session.pairs()
    for n in range(3):
        session.add_label(f"a{n}", pairs[n].id, "left")
    assert session.wishes().forgotten == 0
    assert session.forget(0) == session.last_label_id() == session.wishes().forgotten
    assert load_labels(session, double, seed=1, members=2, after=session.wishes().forgotten) is None
    session.add_label("new", pairs[1].id, "right")
    found = load_labels(session, double, seed=1, members=2, after=session.wishes().forgotten)
    assert [p.id for p in found.pairs] == [pairs[1].id]
    assert found.target.tolist() == pytest.approx([0.05])
