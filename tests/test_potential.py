"""A potential of observations: what it learns, and that every place which judges by it says the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from labelings import CPU, IMAGE, VECTOR, one_thread_and_a_seed, pair, random_labels, segment

from rlhf_gym import collect, train, verdicts
from rlhf_gym.board import judge as judged
from rlhf_gym.config import Config, resolve
from rlhf_gym.labels import Labels
from rlhf_gym.potential import LIMIT, Potential, beside_rollout
from rlhf_gym.train import REFERENCE_STEPS, Agent, RewardModel, Rollout

__all__ = ["one_thread_and_a_seed"]  # a fixture

CONFIG = Config(env_id="LunarLander-v3", reward_potential=True, ensemble_size=2, reward_hidden=16, reward_steps=40)
STEPS = 40


def flights(count: int, rng: np.random.Generator) -> dict[int, np.ndarray]:
    """Walks in four numbers, each from somewhere to somewhere else."""
    walks = {}
    for i in range(count):
        a, b = rng.normal(size=(2, 4))
        walks[i] = (np.linspace(a, b, STEPS) + 0.1 * rng.normal(size=(STEPS, 4))).astype(np.float32)
    return walks


def nearer(obs: np.ndarray) -> float:
    """How much nearer to zero the first number came, in which alone somebody is interested."""
    return float(abs(obs[0, 0]) - abs(obs[-1, 0]))


def labels_of(walks: dict[int, np.ndarray], worth: dict[int, float], ended: dict[int, int] | None = None) -> Labels:
    segments = {i: segment(x, np.zeros(len(x), np.int64), (ended or {}).get(i, 0)) for i, x in walks.items()}
    halves = range(0, len(walks), 2)
    pairs = [pair(n + 1, n, n + 1, "left" if worth[n] > worth[n + 1] else "right") for n in halves]
    return Labels(pairs, segments, lambda a: a, seed=1, members=2)


def right(model: RewardModel, walks: dict[int, np.ndarray]) -> float:
    """Share of pairs of walks that the model puts in the right order, by collect's own judge."""
    segments = [segment(x, np.zeros(len(x), np.int64)) for x in walks.values()]
    found = collect.judge(model, Agent(VECTOR, CONFIG), segments).mean(0).numpy()
    true = np.array([nearer(x) for x in walks.values()])
    i, j = np.triu_indices(len(true), 1)
    return float(((found[i] - found[j]) * (true[i] - true[j]) > 0).mean())


def test_a_few_labels_say_where_to_and_networks_of_steps_would_not_know() -> None:
    rng = np.random.default_rng(3)
    walks, others = flights(200, rng), flights(60, rng)
    labels = labels_of(walks, {i: nearer(x) for i, x in walks.items()})
    with_it, without = (RewardModel(VECTOR, replace(CONFIG, reward_potential=on)) for on in (True, False))
    for model in (with_it, without):
        train.train_reward(model, labels, CONFIG, CPU)
    assert right(with_it, others) > 0.85
    assert right(without, others) < 0.65
    assert with_it.potential is not None
    near, far = torch.zeros(1, 4), torch.tensor([[1.5, 0.0, 0.0, 0.0]])
    no = torch.zeros(1, dtype=torch.bool)
    for sign in (1, -1):  # from either side
        assert (with_it.potential(sign * far, near, no) > 0).all()
        assert (with_it.potential(near, sign * far, no) < 0).all()


def test_an_end_is_worth_what_was_seen_before_it() -> None:
    """Fast ends are bad, slow ones good: the frame held, which is all zeros, says nothing of it."""
    rng = np.random.default_rng(5)
    walks, worth, ended = flights(80, rng), dict[int, float](), dict[int, int]()
    for i, x in walks.items():
        ended[i], speed = 20, abs(float(x[19, 1]))
        x[:20, 0], x[20:], worth[i] = 0.0, 0.0, -speed
    labels = labels_of(walks, worth, ended)
    model = RewardModel(VECTOR, CONFIG)
    train.train_reward(model, labels, CONFIG, CPU)
    held, slow, fast = torch.zeros(2, 4), torch.zeros(2, 4), torch.tensor([[0.0, 2.0, 0.0, 0.0], [0.0, -2.0, 0.0, 0.0]])
    over, actions = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.int64)
    assert (model.reward(held, actions, over, slow) > model.reward(held, actions, over, fast) + 1e-3).all()


@pytest.mark.parametrize("fourth", [0.0, 1.0, 7.0])
def test_where_all_ends_were_crashes_their_speed_is_to_blame(fourth: float) -> None:
    """A slow end, which no clip has shown, is not bad for being one, or an agent would hover for ever."""
    rng = np.random.default_rng(6)
    walks, worth, ended = flights(80, rng), dict[int, float](), dict[int, int]()
    for i, x in walks.items():
        worth[i] = 0.0
        if i % 2:
            ended[i], x[:, 1] = 20, rng.choice([-1, 1]) * np.linspace(0, rng.uniform(1, 2), STEPS)
            x[20:], worth[i] = x[20], -1.0
        x[:, 3] = fourth + (0.1 if fourth > 1 else fourth == 0) * x[:, 3]
    labels = labels_of(walks, worth, ended)
    model = RewardModel(VECTOR, CONFIG)
    train.train_reward(model, labels, CONFIG, CPU)
    assert model.potential is not None
    over, slow, fast = (
        torch.ones(1, dtype=torch.bool),
        torch.tensor([[0.0, 0.0, 0.0, fourth]]),
        torch.tensor([[0.0, 0.8, 0.0, fourth]]),
    )
    crash, landing = (model.potential(x, x, over).mean() for x in (fast, slow))
    assert crash < 0
    assert abs(landing) < 0.2 * abs(crash)


def test_what_an_end_is_worth_does_not_depend_on_the_frame_held() -> None:
    model = RewardModel(VECTOR, CONFIG)
    train.train_reward(model, random_labels(20), CONFIG, CPU)
    over, actions, before = torch.ones(1, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), torch.randn(1, 4)
    found = [float(model.reward(frame, actions, over, before)) for frame in (torch.zeros(1, 4), torch.ones(1, 4))]
    assert found[0] == found[1]


def test_it_is_found_anew_where_the_networks_go_on_from_the_ones_before() -> None:
    """With --reward-init previous; the labels alone say what it is, so labels of before are not counted twice."""
    first, then = random_labels(10), random_labels(30)
    fresh, goes_on = RewardModel(VECTOR, CONFIG), RewardModel(VECTOR, CONFIG)
    train.train_reward(goes_on, first, CONFIG, CPU)
    before = goes_on.potential.weights.clone()
    for model in (fresh, goes_on):
        train.train_reward(model, then, CONFIG, CPU)
    torch.testing.assert_close(goes_on.potential.weights, fresh.potential.weights)
    assert not torch.allclose(before, fresh.potential.weights, atol=1e-2)


def trained() -> tuple[RewardModel, Labels, list]:
    """On clips that go on, that end, and that have ended before they began."""
    rng = np.random.default_rng(7)
    walks, ended = flights(24, rng), {0: 1, 1: STEPS - 1, 2: STEPS, 3: 13, 8: 5}
    for i, held in ended.items():
        walks[i][STEPS - held :] = walks[i][STEPS - held]
    worth = {i: nearer(x) - 3 * (i in ended) for i, x in walks.items()}
    labels = labels_of(walks, worth, ended)
    model = RewardModel(VECTOR, CONFIG)
    train.train_reward(model, labels, CONFIG, CPU)
    assert model.potential is not None
    assert model.potential.weights.abs().max() > 0.1
    return model, labels, [segment(x, np.zeros(STEPS, np.int64), ended.get(i, 0)) for i, x in walks.items()]


def test_everybody_judges_a_clip_alike() -> None:
    """The loss, pair choice, the board, verdicts: each goes its own way through the rows of a clip."""
    model, labels, segments = trained()
    assert model.potential is not None
    assert labels.logits is not None
    agent = Agent(VECTOR, CONFIG)
    by_pairs = collect.judge(model, agent, segments)
    torch.testing.assert_close(by_pairs[:, 0::2] - by_pairs[:, 1::2], labels.logits, atol=1e-4, rtol=1e-4)
    alone = train.clip_rewards(model, labels, torch.arange(len(segments)), CPU)  # the networks, as they are trained
    potential = by_pairs - alone
    told = model.potential.logits(labels, REFERENCE_STEPS)
    torch.testing.assert_close(potential[:, 0::2] - potential[:, 1::2], told, atol=1e-4, rtol=1e-4)
    means, rewards, count = judged(labels, model)
    for i, one in enumerate(segments):
        live, after = verdicts.along(model, agent, one)
        assert len(live) == int((~one.absorbing).sum())
        total = live.sum() + after * one.absorbing.sum()
        assert means[i] == pytest.approx(total / STEPS, abs=1e-5)
        scaled = float(model.scaled(by_pairs[:, i : i + 1] / REFERENCE_STEPS))
        assert means[i] == pytest.approx(scaled, abs=1e-5)
    assert len(rewards) == len(count) == len(labels.count)


def test_rows_of_labels_and_of_segments_stand_beside_the_same() -> None:
    _, labels, segments = trained()
    found = labels.beside(torch.arange(len(labels.count)))
    assert found is not None
    assert np.array_equal(found.numpy(), np.concatenate([one.beside() for one in segments]))
    obs, ended = np.arange(6, dtype=np.float32)[:, None], segment(np.arange(6.0)[:, None], np.zeros(6), 2)
    assert segment(obs, np.zeros(6)).beside().flatten().tolist() == [1, 2, 3, 4, 5, 5]
    assert ended.beside().flatten().tolist() == [1, 2, 3, 3, 3]  # four steps, and one row for what came after
    assert segment(obs, np.zeros(6), 6).beside().flatten().tolist() == [0]
    assert random_labels(3, info=IMAGE).beside(torch.arange(2)) is None


def test_a_rollout_is_paid_for_where_its_steps_led() -> None:
    """Three environments: one is over after the second step, one is cut off there, one goes on."""
    model, _, _ = trained()
    assert model.potential is not None
    obs, finals, last = torch.randn(4, 3, 4), torch.randn(2, 4), torch.randn(3, 4)
    flags = torch.zeros(2, 4, 3, dtype=torch.bool)
    flags[0, 1, 0] = flags[1, 1, 1] = True
    zero, ends = torch.zeros(4, 3), torch.tensor([[1, 0], [1, 1]])
    roll = Rollout(
        obs=obs, actions=zero.long(), log_probs=zero, values=zero, next_values=zero, rewards=zero, absorbing=zero,
        ends=ends, finals=finals, terminated=flags[0], truncated=flags[1], last=last,
    )  # fmt: skip
    led = beside_rollout(roll)
    expected = torch.cat([obs[1:], last[None]])
    expected[1, 0], expected[1, 1] = obs[1, 0], finals[1]
    assert torch.equal(led, torch.cat([expected.flatten(0, 1), obs[1, :2]]))
    model.score(roll)
    alone = model.reward(obs.flatten(0, 1), zero.long().flatten()).reshape(4, 3)
    no = torch.zeros(12, dtype=torch.bool)
    gained = model.potential(obs.flatten(0, 1), expected.flatten(0, 1), no) * model.scale[:, None]
    torch.testing.assert_close(roll.rewards, alone + gained.mean(0).reshape(4, 3), atol=1e-5, rtol=1e-4)
    assert float(gained.reshape(-1, 4, 3)[:, 1, 0].abs().max()) == 0.0  # the step that an episode ended by
    assert roll.absorbing.count_nonzero() == 2
    after = model.reward(finals, torch.zeros(2).long(), torch.ones(2, dtype=torch.bool), obs[1, :2])
    torch.testing.assert_close(roll.absorbing[1, :2], after)


def test_numbers_that_never_move_or_run_away_are_not_blown_up() -> None:
    rng = np.random.default_rng(2)
    walks = flights(20, rng)
    for x in walks.values():
        x[:, 3] = 7.0 + 1e-6 * rng.normal(size=STEPS)
    labels = labels_of(walks, {i: nearer(x) for i, x in walks.items()})
    model = RewardModel(VECTOR, CONFIG)
    train.train_reward(model, labels, CONFIG, CPU)
    still, away = torch.tensor([[0.0, 0.0, 0.0, 7.0]]), torch.tensor([[0.0, 0.0, 0.0, 8.0]])
    no = torch.zeros(1, dtype=torch.bool)
    assert model.potential is not None
    near, far = torch.zeros(1, 4), torch.tensor([[1.5, 0.0, 0.0, 0.0]])
    assert model.potential(still, away, no).abs().max() < 0.1 * model.potential(far, near, no).abs().min()
    beyond = torch.full((1, 4), 1e6)
    assert torch.equal(model.potential.sees(beyond), torch.full((1, 8), LIMIT))


def test_a_number_that_stays_far_from_zero_counts() -> None:
    rng = np.random.default_rng(4)
    walks = flights(200, rng)
    worth = {i: float(x[-1, 2] - x[0, 2]) for i, x in walks.items()}
    for x in walks.values():
        x[:, 2] += 100
    model = RewardModel(VECTOR, CONFIG)
    train.train_reward(model, labels_of(walks, worth), CONFIG, CPU)
    assert model.potential is not None
    low, high = torch.tensor([[0.0, 0.0, 99.0, 0.0]]), torch.tensor([[0.0, 0.0, 101.0, 0.0]])
    other = torch.tensor([[0.0, 2.0, 99.0, 0.0]])
    no = torch.zeros(1, dtype=torch.bool)
    assert (model.potential(low, high, no) > 3 * model.potential(low, other, no).abs()).all()


@pytest.mark.parametrize("labels", [random_labels(6, info=IMAGE), random_labels(6)], ids=["images", "hidden ends"])
def test_there_is_none_of_images_or_where_resets_are_hidden(labels: Labels) -> None:
    config = replace(CONFIG, episode_ends="hide")
    info = VECTOR if labels.first is None else IMAGE
    model = RewardModel(info, config if info is VECTOR else CONFIG)
    assert model.potential is None
    train.train_reward(model, labels, config, CPU)


def test_who_has_one() -> None:
    assert resolve({"env_id": "LunarLander-v3"}, "box2d").reward_potential
    assert not resolve({"env_id": "CartPole-v1"}, "classic").reward_potential
    model = RewardModel(VECTOR, replace(CONFIG, reward_potential=False))
    assert not any("potential" in name for name in model.state_dict())  # as sessions of before have it
    assert isinstance(RewardModel(VECTOR, CONFIG).potential, Potential)
