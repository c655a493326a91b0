"""The numbers that say how far reward model and labels can be trusted: by hand, and with labelers that are known."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_gym import catalog, honesty, train
from rlhf_gym.config import Config
from rlhf_gym.envs import EnvInfo
from rlhf_gym.episodes import EpisodeTracker, correlation
from rlhf_gym.honesty import LEAST_REPEATS, MOST_MISTAKES, PRIOR_REPEATS, consistency, foresight, mistake_rate, repeats
from rlhf_gym.labelers import synthetic_choice
from rlhf_gym.labels import load_labels
from rlhf_gym.segments import Segment, save_segment
from rlhf_gym.store import Pair, Session
from rlhf_gym.tables import label_table
from rlhf_gym.train import RewardModel, label_loss

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
INFO = EnvInfo("classic", (4,), False, 2, (), None, None, 50.0, 500)


def pair(number: int, **more: Any) -> Pair:
    row = dict(round=0, attempt=0, position=number, left_clip=1, right_clip=2, kind="uniform", repeat_of=None)
    return Pair(**{**row, "id": number, "p_left": None, "disagreement": None, **more})


# ---------------------------------------------------------------------------------------------- held-out pairs


def metrics(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, mistakes: float) -> dict[str, float]:
    return honesty.reward_metrics(logits, label_loss(logits, target, mistakes), target, weight, mistakes)


def test_reward_metrics_by_hand():
    logits = torch.tensor([[math.log(3), -math.log(3), math.log(9), 0.0]])
    target = torch.tensor([1.0, 1.0, 0.05, 0.5])
    weight = torch.tensor([[2.0, 0.0, 1.0, 0.0]])
    found = metrics(logits, target, weight, 0.0)
    wrong = -0.05 * math.log(0.9) - 0.95 * math.log(0.1)
    assert found["reward/loss"] == pytest.approx((-math.log(0.75) + wrong) / 2, rel=1e-5)
    assert found["reward/held_out_loss"] == pytest.approx((-math.log(0.25) + math.log(2)) / 2, rel=1e-5)
    assert found["reward/accuracy"] == 0.5
    assert found["reward/held_out_accuracy"] == 0.0  # the tie does not count
    assert found["reward/held_out_log_loss"] == pytest.approx(-math.log(0.25), rel=1e-5)  # nor here
    assert found["reward/held_out_calibration_error"] == pytest.approx(0.75, rel=1e-5)  # nor here
    entropy = -0.05 * math.log(0.05) - 0.95 * math.log(0.95)
    assert found["reward/floor"] == pytest.approx((0 + 0 + entropy + math.log(2)) / 4, rel=1e-4)


def test_the_log_loss_forgives_no_mistake_and_knows_no_strength():
    """Two members, each judged on what was held out from it."""
    logits = torch.tensor([[2.0, -20.0, 1.0], [0.5, 3.0, -1.0]])
    target, weight = torch.tensor([0.95, 1.0, 0.05]), torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 0.0]])
    found = metrics(logits, target, weight, 0.1)
    each = [math.log1p(math.exp(-2.0)), 20.0, math.log1p(math.exp(-1.0))]
    assert found["reward/held_out_log_loss"] == pytest.approx(sum(each) / 3, rel=1e-5)
    assert found["reward/held_out_loss"] < 2  # which expected a mistake now and then


def test_where_all_that_is_held_out_are_ties_nothing_is_said_of_it():
    found = metrics(torch.zeros(1, 2), torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 0.0]]), 0.0)
    assert set(found) == {"reward/floor", "reward/loss", "reward/accuracy", "reward/held_out_loss"}


def test_no_model_has_less_loss_than_the_floor():
    target, weight = torch.tensor([1.0, 0.0, 0.95, 0.5]), torch.ones(1, 4)
    for mistakes in (0.0, 0.05, 0.2):
        best = torch.full((4,), 9e9)
        for logit in np.linspace(-30, 30, 1201):  # by search: the least loss each pair can have
            loss = label_loss(torch.full((1, 4), float(logit)), target, mistakes)[0]
            best = torch.minimum(best, loss)
        floor = metrics(torch.zeros(1, 4), target, weight, mistakes)["reward/floor"]
        assert floor == pytest.approx(float(best.mean()), rel=1e-3)


def test_calibration_error_by_hand():
    p = np.array([0.02, 0.08, 0.31, 0.39, 0.35, 0.999, 1.0])
    left = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    # bins [0, 0.1), [0.3, 0.4), [0.9, 1]: means 0.05, 0.35, 0.9995; shares 1/2, 1/3, 1/2
    gaps = 2 * 0.45 + 3 * (0.35 - 1 / 3) + 2 * 0.4995
    assert honesty.calibration_error(p, left) == pytest.approx(gaps / 7)


def test_calibration_tells_one_who_knows_from_one_who_is_too_sure():
    """20,000 labels: ten bins of about 2,000 are known within 0.4 / sqrt(2000) = 0.009."""
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    left = (rng.random(20_000) < p).astype(float)
    assert honesty.calibration_error(p, left) < 0.015
    too_sure = 1 / (1 + ((1 - p) / p) ** 3)  # three times the log-odds
    right = np.mean((p > 0.5) == left)
    assert np.mean((too_sure > 0.5) == left) == right  # accuracy cannot see it
    assert honesty.calibration_error(too_sure, left) > 0.1


# ---------------------------------------------------------------------------------------------- beforehand


def test_what_was_foreseen_is_of_uniform_decided_pairs_alone() -> None:
    batch = [
        pair(1, p_left=0.9, choice="left"),
        pair(2, p_left=0.2, choice="right"),
        pair(3, p_left=0.6, choice="right"),
        pair(4, p_left=0.1, choice="left", kind="disagreement"),
        pair(5, p_left=0.1, choice="left", kind="repeat", repeat_of=1),
        pair(6, p_left=0.1, choice="equal"),
        pair(7, p_left=0.1, choice="skip"),
        pair(8, p_left=0.1),
        pair(9, choice="left"),
    ]
    assert foresight(batch) == {
        "reward/prequential_accuracy": 2 / 3,
        "reward/prequential_log_loss": pytest.approx(-(math.log(0.9) + math.log(0.8) + math.log(0.4)) / 3),
        "reward/prequential_pairs": 3.0,
    }
    assert foresight(batch[3:]) == {}


def test_a_stored_probability_of_exactly_nothing_costs_much_and_not_everything() -> None:
    found = foresight([pair(1, p_left=1.0, choice="right"), pair(2, p_left=0.0, choice="right")])
    assert found["reward/prequential_log_loss"] == pytest.approx((math.log(1e6) + 0) / 2, abs=1e-5)


def test_correlation_by_hand() -> None:
    one = np.arange(10.0)
    assert correlation(one, 3 * one - 7) == pytest.approx(1)
    assert correlation(one, -one) == pytest.approx(-1)
    two = np.array([1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    # cov = 0 - 4.5 * 0.1, variances 8.25 and 0.09
    assert correlation(one, two) == pytest.approx(-0.45 / math.sqrt(8.25 * 0.09))
    assert correlation(one[:9], one[:9]) is None  # too few
    assert correlation(one, np.full(10, 0.1) * 3) is None
    assert correlation(np.full(10, 1e6) + 1e-5 * two, one) is None  # rounding is no spread
    assert correlation(one, np.append(one[:9], math.nan)) is None
    assert honesty.foresight_of_clips(one.tolist(), (2 * one).tolist()) == {
        "reward/prequential_correlation": pytest.approx(1)
    }
    assert honesty.foresight_of_clips([1.0, 2.0], [1.0, 2.0]) == {}


def test_predicted_and_true_return_of_whole_episodes_are_compared_while_the_agent_trains() -> None:
    tracker, rng = EpisodeTracker(1), np.random.default_rng(3)
    true, predicted = rng.normal(size=(2, 24))  # twelve episodes of two steps
    ended = np.arange(24)[:, None] % 2 == 1
    tracker.add(true[:18, None], predicted[:18, None], ended[:18])
    assert "charts/return_correlation" not in tracker.means()  # nine
    tracker.add(true[18:, None], predicted[18:, None], ended[18:])
    expected = np.corrcoef(true.reshape(12, 2).sum(1), predicted.reshape(12, 2).sum(1))[0, 1]
    assert tracker.means()["charts/return_correlation"] == pytest.approx(expected)
    for nothing in (math.nan, math.inf):
        nobody = EpisodeTracker(1)
        nobody.add(np.full((24, 1), nothing), predicted[:, None], ended)
        assert "charts/return_correlation" not in nobody.means()


def test_episodes_that_ran_when_environments_began_anew_do_not_count() -> None:
    tracker = EpisodeTracker(1)
    one = np.ones((3, 1))
    tracker.add(one, one, np.array([[False], [True], [False]]))
    tracker.begin(None)
    tracker.add(one, one, np.array([[False], [False], [True]]))
    assert [e[:3].tolist() for e in tracker.finished] == [[2, 2, 2], [3, 3, 3]]


# ---------------------------------------------------------------------------------------------- hidden repeats


def segment(first: float) -> Segment:
    obs = np.full((3, 4), first, np.float32)
    return Segment(obs, np.zeros(3, np.int64), np.zeros(3, np.float32), np.zeros(3, bool), {})


@pytest.fixture
def repeated(tmp_path: Path) -> Iterator[Callable[[int], tuple[Session, list[int], list[int]]]]:
    """repeated(n) -> a session with n pairs and, in round 1, a hidden repeat of each; their ids."""
    made: list[Session] = []

    def make(count: int) -> tuple[Session, list[int], list[int]]:
        session = catalog.create_session(tmp_path / "data", f"s-{len(made)}", Config(env_id="CartPole-v1"))
        made.append(session)
        directory = session.clear_batch_files(0, 0)
        for n in range(4):  # the clips of one pair are like those of another: what they show is no matter here
            save_segment(directory / f"{n:04d}.npz", segment(n))
        clips = [
            dict(round=0, attempt=0, path=f"clips/r000/{n:04d}.npz", fps=30.0, steps=3, seed=n, start=0)
            for n in range(4)
        ]
        firsts = [dict(round=0, attempt=0, position=n, kind="uniform", left=n % 3, right=3) for n in range(count)]
        session.add_batch(clips, firsts)
        first = [p.id for p in session.pairs()]
        again = [dict(round=1, attempt=0, position=n, kind="repeat", repeat_of=p) for n, p in enumerate(first)]
        session.add_batch([], again)
        return session, first, [p.id for p in session.pairs(1)]

    yield make
    for session in made:
        session.close()


def test_consistency_is_how_often_a_swapped_repeat_got_the_swapped_label(repeated: Any) -> None:
    session, first, again = repeated(6)
    assert consistency(session.pairs(), 0.05) == {}
    choices = zip(
        ["left", "left", "right", "equal", "left", "skip"], ["right", "left", "left", "left", "equal", "left"],
        strict=True,
    )  # fmt: skip
    for one, two, (a, b) in zip(first, again, choices, strict=True):
        session.add_label(f"a{one}", one, a)
        session.add_label(f"b{two}", two, b)
    assert repeats(session.pairs()) == [True, False, True]  # ties and skips do not count
    assert consistency(session.pairs(), 0.05) == {"labels/consistency": pytest.approx(2 / 3), "labels/repeats": 3.0}


def test_a_repeat_whose_first_label_no_longer_counts_is_no_mistake(repeated: Any) -> None:
    session, first, again = repeated(2)
    for p in first:
        session.add_label(f"a{p}", p, "left")
    session.forget(0)
    for p in again:
        session.add_label(f"b{p}", p, "left")  # the opposite of before: the person wants something else now
    labels = load_labels(session, lambda a: a, seed=1, members=2, after=session.wishes().forgotten)
    assert len(labels.pairs) == 2
    assert repeats(labels.pairs) == []


def agreeing(agreed: int, disagreed: int, **more: Any) -> list[Pair]:
    """Pairs labeled left, and a repeat of each."""
    firsts = [pair(n, choice="left") for n in range(1, agreed + disagreed + 1)]
    said = ["right"] * agreed + ["left"] * disagreed
    return firsts + [
        pair(1000 + p.id, kind="repeat", repeat_of=p.id, choice=c) for p, c in zip(firsts, said, strict=True)
    ]


def test_the_mistake_rate_by_hand() -> None:
    few = agreeing(20, LEAST_REPEATS - 21)
    assert mistake_rate(few, 0.05) == 0.05
    assert "labels/mistake_rate" not in consistency(few, 0.05)
    enough = agreeing(20, LEAST_REPEATS - 20)
    d = (PRIOR_REPEATS * 2 * 0.05 * 0.95 + LEAST_REPEATS - 20) / (PRIOR_REPEATS + LEAST_REPEATS)
    m = mistake_rate(enough, 0.05)
    assert 2 * m * (1 - m) == pytest.approx(d)
    assert 0.05 < m < 0.5
    assert consistency(enough, 0.05) == {
        "labels/consistency": pytest.approx(2 / 3), "labels/repeats": 30.0, "labels/mistake_rate": m,
    }  # fmt: skip
    assert mistake_rate(agreeing(200, 0), 0.05) < 0.006
    assert mistake_rate(agreeing(200, 0), 0.0) == 0.0
    assert mistake_rate(agreeing(0, 200), 0.05) == MOST_MISTAKES < 0.5  # one who contradicts themselves every time
    # what was assumed stands where the repeats say the same
    assert mistake_rate(agreeing(82, 18), 0.1) == pytest.approx(0.1)


@pytest.mark.parametrize("m", [0.1, 0.2])
def test_repeats_give_away_the_mistake_rate_of_a_labeler(m: float, repeated: Any) -> None:
    """400 repeats of a synthetic labeler with mistakes, ties and skips among them.

    Agreement is binomial: mean 1 - 2m(1 - m), standard deviation sqrt(d (1 - d) / n), d = 2m(1 - m); two and a half of
    them are allowed, and for the estimate as many divided by the slope 2 (1 - 2m), beside what the prior pulls.
    """
    config = Config(env_id="CartPole-v1", mistake_rate=m, tie_threshold=0.3, skip_threshold=-1.5, seed=7)
    count = 520
    session, first, again = repeated(count)
    rng = np.random.default_rng(11)
    scores = rng.normal(size=(count, 2))
    with session.write() as db:  # one transaction, as each label of its own would be flushed to disk
        rows = []
        for ids, swap in ((first, False), (again, True)):
            for p, (a, b) in zip(ids, scores, strict=True):
                draw = np.random.default_rng((config.seed, p))
                choice = synthetic_choice(*((b, a) if swap else (a, b)), config, draw)
                rows.append(
                    dict(uid=f"x{p}", pair=p, choice=choice, strength="normal", labeler="synthetic", created=0.0)
                )
        db.execute(label_table.insert(), rows)
    pairs = session.pairs()
    assert {p.choice for p in pairs} == {"left", "right", "equal", "skip"}
    found = consistency(pairs, 0.05)
    n = found["labels/repeats"]
    assert n == sum(abs(a - b) > 0.3 and max(a, b) >= -1.5 for a, b in scores) > 400
    d = 2 * m * (1 - m)
    tolerance = 2.5 * math.sqrt(d * (1 - d) / n)
    assert tolerance < 0.06
    assert found["labels/consistency"] == pytest.approx(1 - d, abs=tolerance)
    pull = PRIOR_REPEATS / (PRIOR_REPEATS + n) * abs(d - 2 * 0.05 * 0.95) / (2 * (1 - 2 * m))
    assert found["labels/mistake_rate"] == pytest.approx(m, abs=tolerance / (2 * (1 - 2 * m)) + pull)
    choice = {p.id: p.choice for p in pairs}
    loose = np.mean([choice[one] != choice[two] for one, two in zip(first, again, strict=True)])
    assert loose < found["labels/consistency"] - 0.04  # if ties and skips counted as disagreements


def test_what_a_kill_interrupted_goes_on_with_the_same_mistake_rate(repeated: Any) -> None:
    """Its labels are fixed by the newest that counts; those that come later are for the next round."""
    session, first, again = repeated(40)
    for n, (one, two) in enumerate(zip(first, again, strict=True)):
        session.add_label(f"a{one}", one, "left")
        until = session.add_label(f"b{two}", two, "left" if n < 10 else "right")
    before = mistake_rate(load_labels(session, lambda a: a, 1, 2).pairs, 0.05)
    for n, two in enumerate(again):
        session.add_label(f"c{two}", two, "left" if n < 25 else "right")
    assert mistake_rate(load_labels(session, lambda a: a, 1, 2, until=until).pairs, 0.05) == before
    assert mistake_rate(load_labels(session, lambda a: a, 1, 2).pairs, 0.05) > before + 0.1


def test_the_loss_allows_for_the_mistakes_that_the_repeats_speak_for(repeated: Any) -> None:
    session, first, again = repeated(40)
    for n, (one, two) in enumerate(zip(first, again, strict=True)):
        session.add_label(f"a{one}", one, "left")
        session.add_label(f"b{two}", two, "left" if n < 10 else "right")
    config = Config(ensemble_size=2, reward_steps=20, reward_epochs=100)
    labels = load_labels(session, lambda a: a, 1, 2)
    estimate = mistake_rate(labels.pairs, config.assumed_mistake_rate)
    assert estimate > 0.1

    def trained(pairs: list[Pair], assumed: float) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        seen = copy.copy(labels)
        seen.pairs = pairs
        torch.manual_seed(0)
        model = RewardModel(INFO, config)
        found = train.train_reward(model, seen, dataclasses.replace(config, assumed_mistake_rate=assumed), CPU)
        return model.state_dict(), found

    alone = [dataclasses.replace(p, repeat_of=None) for p in labels.pairs]  # nobody knows that they are repeats
    estimated, said = trained(labels.pairs, config.assumed_mistake_rate)
    told, said_too = trained(alone, estimate)
    assert said == said_too
    assert all(torch.equal(v, told[k]) for k, v in estimated.items())
    assumed, _ = trained(alone, config.assumed_mistake_rate)
    assert not all(torch.equal(v, assumed[k]) for k, v in estimated.items())
