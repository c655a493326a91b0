"""A reward model of quadratic functions: what it learns from few labels, ends and all, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from labelings import CPU, IMAGE, TORQUE, VECTOR, one_thread_and_a_seed, pair, random_labels, same, segment

from rlhf_gym import quadratic, train
from rlhf_gym.config import Config, UserError, resolve, validate
from rlhf_gym.labels import Labels
from rlhf_gym.train import END_SPEED, REFERENCE_STEPS, RewardModel

__all__ = ["one_thread_and_a_seed"]  # a fixture

CONFIG = Config(env_id="Hopper-v5", reward_quadratic=True, ensemble_size=2, reward_hidden=16, reward_steps=300)


def spinning(obs: np.ndarray) -> np.ndarray:
    """What somebody likes of each step: the first number, as much as the second is large."""
    return obs[..., 0] * (2 + obs[..., 1])


def labels_of(count: int, better_left: bool = False) -> Labels:
    """Of clips with small numbers; the better one on a random side, or always on the left."""
    rng, segments = np.random.default_rng(4), {}
    for i in range(2 * count):
        obs = rng.normal(size=4) + 0.3 * rng.normal(size=(20, 4))
        segments[i] = segment(obs.astype(np.float32), rng.integers(2, size=20))
    worth = {i: spinning(s.observations).sum() for i, s in segments.items()}
    pairs = [
        pair(n + 1, 2 * n, 2 * n + 1, "left" if worth[2 * n] > worth[2 * n + 1] else "right") for n in range(count)
    ]
    if better_left:
        turned = {"left_clip": "right_clip", "right_clip": "left_clip"}
        pairs = [
            p if p.choice == "left" else replace(p, choice="left", **{k: getattr(p, v) for k, v in turned.items()})
            for p in pairs
        ]
    return Labels(pairs, segments, lambda a: a, seed=1, members=2)


def test_products_of_each_two_numbers() -> None:
    x = torch.tensor([[[2.0, 3.0, 5.0]]]).expand(4, -1, -1)
    products = quadratic.Products(3, 0)
    assert products(x).shape == (4, 1, products.outputs)
    assert products(x)[3].tolist() == [[2, 3, 5, 4, 6, 10, 9, 15, 25]]
    assert quadratic.Products(3, 2)(x)[3].tolist() == [[2, 3, 5, 4, 6, 10]]  # 3 and 5 tell which action it was


def test_it_goes_on_beyond_what_was_labeled_where_networks_level_off() -> None:
    labels = labels_of(120)
    far = torch.tensor([[2.5, 2.5, 0, 0], [5.0, 2.5, 0, 0], [5.0, 5.0, 0, 0], [8.0, 6.0, 0, 0]])
    gains = {}
    for on in (True, False):
        model = RewardModel(VECTOR, replace(CONFIG, reward_quadratic=on))
        train.train_reward(model, labels, CONFIG, CPU)
        r = model.reward(far, torch.zeros(4, dtype=torch.int64))
        gains[on] = (r[1:] - r[:-1]).numpy()
    assert (gains[True] > 0.1).all()
    assert gains[True].sum() > 5 * abs(gains[False]).sum()


@pytest.mark.parametrize("info", [VECTOR, TORQUE], ids=["discrete", "continuous"])
@pytest.mark.parametrize("ends_alike", [1e9, 0.5])
def test_what_is_fitted_is_what_clips_are_worth(info, ends_alike) -> None:
    """So held frames and the worth of an end have the same part in the fit, in PPO's rewards and in what pages show."""
    labels, config = random_labels(40, info=info), replace(CONFIG, ends_alike=ends_alike)
    model = RewardModel(info, config)
    metrics = train.train_reward(model, labels, config, CPU)
    assert bool(labels.ended.any())
    told = quadratic.tells(model, labels, END_SPEED) * REFERENCE_STEPS
    weights = torch.cat([model.weights[0].squeeze(-1), model.absorbing[:, None]], 1)
    expected = weights @ (told[labels.left] - told[labels.right]).T
    torch.testing.assert_close(labels.logits, expected, atol=1e-3, rtol=1e-3)
    assert metrics["reward/accuracy"] > 0.85
    held = torch.zeros(1, *info.obs_shape)
    actions = torch.zeros(1, dtype=torch.int64) if info.num_actions else torch.zeros(1, 1)
    ended = torch.ones(1, dtype=torch.bool)
    assert model.reward(held, actions, ended) < model.reward(held, actions) - 0.02  # an end is disliked


def test_it_does_not_matter_on_which_side_a_clip_was_shown() -> None:
    found = []
    for better_left in (False, True):
        model, labels = RewardModel(VECTOR, CONFIG), labels_of(10, better_left)
        assert bool((labels.target > 0.5).all()) == better_left
        train.train_reward(model, labels, CONFIG, CPU)
        found.append(model.weights[0].detach().clone())
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-2)


def test_it_is_found_at_once_and_the_same_again() -> None:
    labels, states = random_labels(30), []
    for _ in range(2):
        model = RewardModel(VECTOR, CONFIG)  # other weights to begin with
        train.train_reward(model, labels, CONFIG, CPU, save=lambda state: pytest.fail("nothing to go on from"))
        states.append(model.state_dict())
    assert same(*states)
    assert not torch.equal(states[0]["weights.0"][0], states[0]["weights.0"][1])  # members see other labels


def test_what_it_refuses_and_what_it_leaves_alone() -> None:
    with pytest.raises(UserError, match=r"--reward-quadratic and --reward-potential .* add --no-reward-potential"):
        validate(replace(CONFIG, reward_potential=True))
    with pytest.raises(UserError, match="--no-reward-potential"):
        resolve({"env_id": "LunarLander-v3", "reward_quadratic": True}, "box2d")
    assert RewardModel(IMAGE, CONFIG).products is None
