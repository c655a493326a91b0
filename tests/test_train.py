"""The engine against cases worked by hand: losses, scale, networks, and resuming in the middle."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from labelings import CPU, IMAGE, TORQUE, VECTOR, one_thread_and_a_seed, pair, random_labels, segment

from rlhf_gym import train
from rlhf_gym.collect import Cutter
from rlhf_gym.config import Config
from rlhf_gym.envs import Envs
from rlhf_gym.labels import Labels
from rlhf_gym.normalizer import LEAST_CONTRAST, Normalizer, PixelNormalizer
from rlhf_gym.train import REFERENCE_STEPS, REWARD_SPREAD, Agent, RewardModel, label_loss

__all__ = ["one_thread_and_a_seed"]  # a fixture


def test_the_engine_fits_on_its_page():
    lines = Path(train.__file__).read_text().splitlines()
    assert len(lines) < 600
    assert max(map(len, lines)) <= 120  # and not by golfing
    assert not any(";" in line for line in lines if "import" in line)


# ---------------------------------------------------------------------------------------------- Bradley-Terry


@pytest.mark.parametrize(
    ("logit", "target", "mistakes", "loss"),
    [
        (math.log(3), 1.0, 0.0, -math.log(0.75)),
        (-math.log(3), 1.0, 0.0, -math.log(0.25)),
        (math.log(3), 0.95, 0.0, -0.95 * math.log(0.75) - 0.05 * math.log(0.25)),
        (0.0, 0.5, 0.0, math.log(2)),
        (math.log(3), 0.5, 0.0, -0.5 * math.log(0.75) - 0.5 * math.log(0.25)),
        (math.log(3), 1.0, 0.1, -math.log(0.7)),  # 0.8 * 0.75 + 0.1
        (math.log(3), 0.95, 0.1, -0.95 * math.log(0.7) - 0.05 * math.log(0.3)),
        (100.0, 0.0, 0.05, -math.log(0.05)),  # certain and wrong: a mistake was expected now and then
        (30.0, 1.0, 1e-9, 0.0),  # certain and right, where 1 - p is none in float32
    ],
)
def test_bradley_terry_loss_by_hand(logit, target, mistakes, loss):
    found = label_loss(torch.tensor([[logit], [logit]]), torch.tensor([target]), mistakes)
    assert found.shape == (2, 1)
    assert found[:, 0].tolist() == pytest.approx([loss, loss], rel=1e-5)


@pytest.mark.parametrize("mistakes", [0.0, 0.1])
def test_equal_pulls_nothing_at_a_tie_and_two_clips_together_elsewhere(mistakes):
    logits = torch.tensor([[0.0, 2.0, -2.0]], requires_grad=True)
    label_loss(logits, torch.full((3,), 0.5), mistakes).sum().backward()
    tie, left_ahead, right_ahead = logits.grad[0].tolist()
    assert tie == 0
    assert left_ahead > 0 > right_ahead
    assert left_ahead == pytest.approx(-right_ahead)


class ByHand(torch.nn.Module):
    """Two members: r = o and r = 2 o + a; after the end o - 10 and 3."""

    members, image = 2, False

    def forward(self, obs, actions, ended):
        o = obs[:, 0]
        return torch.where(ended, torch.stack([o - 10, 0 * o + 3]), torch.stack([o, 2 * o + actions]))


def by_hand_labels() -> Labels:
    def clip(obs, actions, ended=0):
        return segment(np.array(obs, np.float32)[:, None], np.array(actions), ended)

    segments = {
        7: clip([1, 2, 3], [0, 1, 0]),
        8: clip([5, 9, 9], [1, 0, 0], ended=2),  # live: o 5, a 1
        9: clip([1, 0, 1, 0, 3], [0, 0, 0, 0, 1]),
        12: clip([4, 4, 4, 4, 9], [1, 1, 1, 1, 0], ended=1),
    }
    return Labels([pair(1, 7, 8), pair(2, 12, 9)], segments, lambda a: a, seed=1, members=2)


def test_a_clips_reward_is_its_mean_per_step_with_absorbing_steps_counted():
    found = train.clip_rewards(ByHand(), by_hand_labels(), torch.tensor([0, 1, 2, 3]), CPU)
    means = [
        [6 / 3, (5 - 2) / 3, 5 / 5, (16 - 1) / 5],
        [(12 + 1) / 3, (11 + 6) / 3, (10 + 1) / 5, (36 + 3) / 5],
    ]
    assert found.tolist() == [pytest.approx([REFERENCE_STEPS * m for m in row]) for row in means]


def test_pair_logits_are_the_difference_of_means_over_clips_of_any_length():
    found = train.pair_logits(ByHand(), by_hand_labels(), torch.tensor([0, 1]), CPU)
    differences = [[6 / 3 - 3 / 3, 15 / 5 - 5 / 5], [13 / 3 - 17 / 3, 39 / 5 - 11 / 5]]
    assert found.tolist() == [pytest.approx([REFERENCE_STEPS * d for d in row]) for row in differences]
    swapped = train.pair_logits(ByHand(), by_hand_labels(), torch.tensor([1, 0]), CPU)
    assert torch.equal(swapped, found.flip(1))


@pytest.mark.parametrize("trust", [1.0, 0.2])
def test_one_softmax_not_two_sigmoids_so_a_constant_changes_no_logit(trust):
    model, labels = RewardModel(VECTOR, Config(ensemble_size=2)), random_labels(6)
    model.trust.fill_(trust)
    pairs = torch.arange(6)
    before = train.pair_logits(model, labels, pairs, CPU)
    with torch.no_grad():
        model.biases[-1] += 40.0  # both clips of every pair are wonderful
    assert torch.allclose(train.pair_logits(model, labels, pairs, CPU), before, atol=1e-3)
    with torch.no_grad():
        model.absorbing += 1.0  # but what an end is worth is learned
    assert not torch.allclose(train.pair_logits(model, labels, pairs, CPU), before, atol=1e-2)


def test_the_loss_weighs_pairs_by_member_and_a_held_out_pair_teaches_nothing():
    labels = random_labels(8, members=2)
    labels.weight = torch.zeros(2, 8)
    labels.weight[0] = 1.0  # member 1 sees nothing at all
    config = Config(ensemble_size=2, reward_steps=5, reward_weight_decay=0.0)
    model = RewardModel(VECTOR, config)
    before = copy.deepcopy(model.state_dict())
    metrics = train.train_reward(model, labels, config, CPU)
    after = model.state_dict()
    for name in ("weights.0", "weights.2", "absorbing"):
        assert not torch.equal(after[name][0], before[name][0])
        assert torch.equal(after[name][1], before[name][1])
    assert {"reward/held_out_loss", "reward/loss"} <= set(metrics)
    assert (model.scale > 0).tolist() == [True, False]  # and one that saw nothing has no say


def test_a_member_that_saw_ties_alone_has_no_say():
    labels = random_labels(8, members=2)
    labels.target[4:] = 0.5
    labels.weight = torch.ones(2, 8)
    labels.weight[1, :4] = 0.0
    config = Config(ensemble_size=2, reward_steps=5)
    model = RewardModel(VECTOR, config)
    train.train_reward(model, labels, config, CPU)
    assert (model.scale > 0).tolist() == [True, False]
    assert model.reward(torch.randn(5, 4), torch.zeros(5)).std() > 0


def test_the_reward_model_learns_what_its_labeler_likes_and_that_an_end_is_bad():
    config = Config(ensemble_size=3, gamma=0.99, assumed_mistake_rate=0.0)
    model, labels = RewardModel(VECTOR, config), random_labels(120, members=3)
    seen = []
    metrics = train.train_reward(model, labels, config, CPU, report=lambda *a: seen.append(a))
    assert metrics["reward/accuracy"] > 0.95
    assert metrics["reward/held_out_accuracy"] > 0.75
    assert metrics["reward/floor"] < metrics["reward/loss"] < metrics["reward/held_out_loss"]
    low, high = torch.zeros(1, 4), torch.zeros(1, 4)
    low[0, 0], high[0, 0] = -2, 2
    action = torch.tensor([0])
    assert model.reward(high, action) > model.reward(low, action)
    # in the middle more than a standard deviation below the mean
    assert model.reward(torch.zeros(1, 4), action, torch.tensor([True])) < -REWARD_SPREAD * 0.01
    assert 9 <= len(seen) <= 11
    assert seen[-1][0] == seen[-1][1]


def test_the_image_reward_model_learns_too():
    config = Config(ensemble_size=2, reward_learning_rate=1e-3, reward_batch_pairs=8, reward_steps=60)
    model, labels = RewardModel(IMAGE, config), random_labels(24, info=IMAGE, steps=3)
    metrics = train.train_reward(model, labels, config, CPU)
    assert metrics["reward/accuracy"] > 0.9


# ---------------------------------------------------------------------------------------------- clips and PPO agree


class Recorder(Envs):
    """Envs that remember their steps."""

    def __init__(self, *args):
        super().__init__(*args)
        self.steps = []

    def step(self, actions):
        self.steps.append((actions, super().step(actions)))
        return self.steps[-1][1]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "rlhf_gym/Dot-v0"])
def test_a_clips_reward_is_the_sum_of_ppos_rewards_over_the_same_steps(env_id):
    config = Config(env_id=env_id, num_steps=220, num_envs=1, frame_stack=2)
    vec = Recorder(config, 1, (1, 2))
    info = vec.info
    agent, model = Agent(info, config), RewardModel(info, config)
    with torch.no_grad():
        model.absorbing.copy_(torch.tensor([0.3, -0.2, 0.1]))
        if info.num_actions is None:
            agent.log_std += 1.0  # many actions lie beyond the bounds
    model.fit_scale(torch.randn(3, 50), torch.ones(50), config.gamma)
    generator = torch.Generator().manual_seed(3)
    roll, _, _ = train.rollout(agent, vec, vec.reset(), config, generator, CPU)
    model.score(roll)
    rewards, absorbing = roll.rewards[:, 0], roll.absorbing[:, 0]
    vec.close()

    cutter = Cutter(16, 5, False, np.random.default_rng(0))
    cutter.reset(0)
    segments, expected, ended = {}, {}, 0
    for t, (actions, step) in enumerate(vec.steps):
        obs = roll.obs[t, 0].numpy()
        found = cutter.add(obs, actions[0], 0.0, {}, step.final_obs[0], bool(step.terminated[0]))
        if found is not None:
            missing = int(found.segment.absorbing.sum())
            begin = t + 1 - (16 - missing)
            ended += missing
            expected[len(segments)] = float(rewards[begin : t + 1].sum()) + missing * float(absorbing[t])
            segments[len(segments)] = found.segment
        if step.terminated[0] or step.truncated[0]:
            cutter.reset(0)
    assert len(segments) >= 4
    assert (ended > 0) == (env_id == "CartPole-v1")
    pairs = [pair(i + 1, i, i) for i in segments]
    labels = Labels(pairs, segments, agent.from_env, 1, 3)
    with torch.no_grad():
        raw = train.clip_rewards(model, labels, torch.arange(len(segments)), CPU) / REFERENCE_STEPS
    scaled = ((raw - model.offset[:, None]) * model.scale[:, None]).mean(0) * 16
    assert scaled.tolist() == pytest.approx(list(expected.values()), rel=1e-4, abs=1e-4)


def test_fit_scale_covers_live_and_absorbing_steps_and_silences_a_member_that_sees_no_difference():
    gamma, model = 0.9, RewardModel(VECTOR, Config(ensemble_size=3))
    raw = torch.stack([torch.linspace(-3, 5, 40), torch.full((40,), 2.0), torch.randn(40) * 1e-6])
    count = torch.ones(40)
    count[7] = 11.0  # as many steps that give the same
    model.fit_scale(raw, count, gamma)
    whole = torch.cat([raw, raw[:, 7:8].expand(3, 10)], 1)  # every step of the clips
    scaled = (whole - model.offset[:, None]) * model.scale[:, None]
    assert scaled.mean(1).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert float(scaled[0].std(unbiased=False)) == pytest.approx(REWARD_SPREAD * (1 - gamma), rel=1e-5)
    assert torch.equal(scaled[1:], torch.zeros(2, 50))
    obs, actions, ended = torch.randn(300, 4), torch.randint(0, 2, (300,)), torch.rand(300) < 0.2
    with torch.no_grad():
        each = (model(obs, actions, ended) - model.offset[:, None]) * model.scale[:, None]
    assert torch.allclose(model.reward(obs, actions, ended), each.mean(0), atol=1e-6)
    assert torch.allclose(model.reward(obs, actions, ended, batch=7), each.mean(0), atol=1e-6)


@pytest.mark.parametrize("info", [VECTOR, TORQUE, IMAGE], ids=["vector", "torque", "image"])
def test_after_an_end_the_reward_is_that_of_what_was_seen_last_whatever_the_action_and_a_learned_number(info):
    config = Config(ensemble_size=3)
    model, size = RewardModel(info, config), (6, *info.obs_shape)
    obs = torch.randint(0, 256, size, dtype=torch.uint8) if info.image else torch.randn(size)
    discrete = info.num_actions is not None
    actions = torch.arange(6) % info.num_actions if discrete else torch.rand(6, *info.action_shape)
    live, over = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    with torch.no_grad():
        after = model(obs, actions, over)
        assert torch.equal(model(obs, actions.flip(0), over), after)
        assert not torch.equal(model(obs, actions.flip(0), live), model(obs, actions, live))
        assert after.std(1).min() > 0  # by what was seen
        model.absorbing.copy_(torch.tensor([1.0, -2.0, 0.0]) / train.END_SPEED)
        number = torch.tensor([1.0, -2.0, 0.0])[:, None].expand(3, 6)
        assert torch.allclose(model(obs, actions, over) - after, number, atol=1e-5)
        model.trust.fill_(0.25)
        assert torch.allclose(model(obs, actions, over), 0.25 * after + number, atol=1e-5)
        half = torch.arange(6) >= 3
        mixed = model(obs, actions, half)
        assert torch.allclose(mixed[:, :3], model(obs, actions, live)[:, :3], atol=1e-6)
        assert torch.allclose(mixed[:, 3:], model(obs, actions, over)[:, 3:], atol=1e-6)


@pytest.mark.parametrize(("ended", "alike", "trust"), [(0, 5, 1.0), (5, 5, 0.5), (20, 5, 0.2), (20, 20, 0.5)])
def test_the_more_ends_are_labeled_the_less_what_is_seen_at_one_decides_its_worth(ended, alike, trust):
    obs, actions = np.random.default_rng(1).normal(size=(20, 10, 4)).astype(np.float32), np.zeros(10, np.int64)
    segments = {i: segment(obs[i], actions, ended=3 if i < ended else 0) for i in range(20)}
    labels = Labels([pair(i + 1, 2 * i, 2 * i + 1) for i in range(10)], segments, lambda a: a, seed=1, members=2)
    config = Config(ensemble_size=2, reward_steps=1, ends_alike=alike)
    model = RewardModel(VECTOR, config)
    train.train_reward(model, labels, config, CPU)
    assert float(model.trust) == pytest.approx(trust)


def test_fit_scale_twice_is_fit_scale_once():
    """The reference implementation normalised what it had normalised, so its scale flipped every round."""
    model, raw = RewardModel(VECTOR, Config()), torch.randn(3, 60) * 4 + 1
    model.fit_scale(raw, torch.ones(60), 0.99)
    first = model.offset.clone(), model.scale.clone()
    model.fit_scale(raw, torch.ones(60), 0.99)
    assert torch.equal(model.offset, first[0])
    assert torch.equal(model.scale, first[1])


# ---------------------------------------------------------------------------------------------- networks


def test_members_are_networks_of_their_own_on_vectors():
    model = RewardModel(VECTOR, Config(ensemble_size=3))
    model.obs_mean += 0.5
    model.obs_std *= 2
    obs, actions = torch.randn(7, 4) * 30, torch.randint(0, 2, (7,))
    found = model(obs, actions)
    for k in range(3):
        x = ((obs - 0.5) / 2).clamp(-10, 10)
        x = torch.cat([x, F.one_hot(actions, 2).float()], -1)
        for i in range(3):
            x = x @ model.weights[i][k] + model.biases[i][k]
            x = torch.tanh(x) if i < 2 else x
        assert torch.allclose(found[k], x[:, 0], atol=1e-5)


def test_members_are_networks_of_their_own_on_images():
    model = RewardModel(IMAGE, Config(ensemble_size=3, bfloat16=False))
    model.obs_mean[3], model.obs_std[:, 4] = 0.25, 0.02  # of a pixel, the same in each frame of a stack
    obs, actions = torch.randint(0, 256, (5, 2, 36, 36), dtype=torch.uint8), torch.randint(0, 3, (5,))
    found = model(obs, actions)
    for k in range(3):
        x = ((obs.float() / 255 - model.obs_mean) / model.obs_std).clamp(-10, 10)
        for conv in (m for m in model.convs if isinstance(m, torch.nn.Conv2d)):
            mine = slice(16 * k, 16 * (k + 1))
            x = F.conv2d(x, conv.weight[mine], conv.bias[mine], conv.stride, conv.padding)
            x = F.leaky_relu(x, 0.01)
        x = torch.cat([x.flatten(1), F.one_hot(actions, 3).float()], -1)
        x = torch.tanh(x @ model.weights[0][k] + model.biases[0][k])
        assert torch.allclose(found[k], (x @ model.weights[1][k] + model.biases[1][k])[:, 0], atol=1e-5)


@pytest.mark.parametrize("info", [VECTOR, TORQUE, IMAGE], ids=["vector", "torque", "image"])
@pytest.mark.parametrize("sees", [True, False])
def test_the_reward_sees_the_action_only_if_told_to(info, sees):
    model = RewardModel(info, Config(reward_sees_action=sees))
    obs = (
        torch.randint(0, 256, (1, *info.obs_shape), dtype=torch.uint8)
        if info.image
        else torch.randn(1, *info.obs_shape)
    )
    a, b = (
        (torch.tensor([0]), torch.tensor([1])) if info.num_actions else (torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    )
    assert torch.equal(model(obs, a), model(obs, b)) != sees


def test_the_score_is_painted_over_for_the_reward_model_alone():
    model, agent = RewardModel(IMAGE, Config()), Agent(IMAGE, Config())
    model.regions = [(0, 9, 0, 36), (30, 36, 10, 20)]
    obs = torch.randint(0, 256, (2, 2, 36, 36), dtype=torch.uint8)
    other, kept = obs.clone(), obs.clone()
    other[:, :, :9] = 200
    other[:, :, 30:36, 10:20] = 7
    actions = torch.tensor([0, 1])
    assert torch.equal(model(obs, actions), model(other, actions))
    assert torch.equal(obs, kept)  # a copy was painted
    assert not torch.equal(agent(obs)[0], agent(other)[0])
    other[:, :, 9] = 255 - other[:, :, 9]
    assert not torch.equal(model(obs, actions), model(other, actions))


def test_normalizer_is_numpy_on_everything_it_has_seen():
    rng, normalizer = np.random.default_rng(0), Normalizer((3,))
    batches = [rng.normal(loc, scale, (n, 3)) for loc, scale, n in ((100, 1, 5), (-3, 40, 1), (0, 1e-3, 400))]
    for batch in batches:
        normalizer.update(torch.as_tensor(batch, dtype=torch.float32))
    seen = np.concatenate(batches)
    assert normalizer.count == len(seen)
    assert normalizer.mean.numpy() == pytest.approx(seen.mean(0), rel=1e-5)
    assert normalizer.var.numpy() == pytest.approx(seen.var(0), rel=1e-5)
    x = torch.tensor([[1e6, -1e6, 2.0]])
    out = normalizer(x)[0]
    assert out[:2].tolist() == [10, -10]
    assert float(out[2]) == pytest.approx((2.0 - seen[:, 2].mean()) / seen[:, 2].std(), rel=1e-4)
    before = copy.deepcopy(normalizer.state_dict())
    normalizer(x)
    assert all(torch.equal(v, before[k]) for k, v in normalizer.state_dict().items())


def test_pixels_are_normalised_each_by_itself_over_the_newest_frames():
    rng, normalizer = np.random.default_rng(0), PixelNormalizer((3, 5, 4))
    seen = rng.integers(0, 256, (300, 3, 5, 4), dtype=np.uint8)
    seen[:, :, 0, 0] = 51  # never moves
    for batch in (seen[:40], seen[40:]):
        normalizer.update(torch.as_tensor(batch))
    newest = seen[:, -1] / 255
    assert normalizer.count == 300
    assert normalizer.mean.numpy() == pytest.approx(newest.mean(0), rel=1e-5)
    assert {b.dtype for b in normalizer.buffers()} == {torch.float32}  # Apple's GPUs have no other
    assert float(normalizer.std()[0, 0]) == pytest.approx(LEAST_CONTRAST)
    x = torch.as_tensor(seen[:7]).float() / 255
    wanted = ((x.numpy() - newest.mean(0)) / np.maximum(newest.std(0), LEAST_CONTRAST)).clip(-10, 10)
    assert normalizer(x.clone()).numpy() == pytest.approx(wanted, abs=1e-4)
    laid_out = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(normalizer(laid_out.clone(memory_format=torch.preserve_format)), normalizer(x.clone()))
    x[0, 1, 0, 0] += 0.1  # five times what is taken for noise
    assert float(normalizer(x)[0, 1, 0, 0]) == pytest.approx(5, rel=1e-3)


def test_an_agent_sees_normalised_pixels_and_what_it_is_given_stays_as_it_was():
    agent = Agent(IMAGE, Config(normalize_obs=True, bfloat16=False))
    obs = torch.randint(0, 256, (5, *IMAGE.obs_shape), dtype=torch.uint8)
    kept = obs.clone()
    agent.normalizer.update(obs)
    policy, value = agent(obs)
    assert torch.equal(obs, kept)
    features = agent.trunk(agent.normalizer(obs.float() / 255))
    assert torch.allclose(policy, agent.actor(features), atol=1e-5)
    assert torch.allclose(value, agent.critic(features)[:, 0], atol=1e-5)


def test_discrete_policy_is_torchs_categorical():
    agent, logits = Agent(VECTOR, Config()), torch.tensor([[0.3, -1.2], [2.0, 2.0], [-5.0, 5.0]])
    actions, reference = torch.tensor([1, 0, 1]), torch.distributions.Categorical(logits=logits)
    log_prob, entropy = agent.log_prob(logits, actions)
    assert torch.allclose(log_prob, reference.log_prob(actions), atol=1e-6)
    assert torch.allclose(entropy, reference.entropy(), atol=1e-6)
    assert agent.sample(logits[[0, 2]], None).tolist() == [0, 1]
    policy = torch.tensor([[0.0, math.log(2), math.log(5)]]).expand(40_000, -1)
    drawn = agent.sample(policy, torch.Generator().manual_seed(0))
    frequencies = torch.bincount(drawn, minlength=3) / len(drawn)
    assert frequencies.tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.01)  # 4 standard errors


def test_continuous_policy_is_torchs_normal():
    info = dataclasses.replace(TORQUE, action_shape=(2,), action_low=(-2.0, 0.0), action_high=(2.0, 1.0))
    agent = Agent(info, Config())
    with torch.no_grad():
        agent.log_std.copy_(torch.tensor([-1.0, 0.5]))
    means, actions = torch.randn(5, 2), torch.randn(5, 2)
    reference = torch.distributions.Independent(torch.distributions.Normal(means, agent.log_std.exp()), 1)
    log_prob, entropy = agent.log_prob(means, actions)
    assert torch.allclose(log_prob, reference.log_prob(actions))
    assert torch.allclose(entropy, reference.entropy())
    assert torch.equal(agent.sample(means, None), means)
    policy = torch.tensor([[0.25, -3.0]]).expand(40_000, -1)
    drawn = agent.sample(policy, torch.Generator().manual_seed(0)).detach()
    assert drawn.mean(0).tolist() == pytest.approx([0.25, -3.0], abs=0.04)
    assert drawn.std(0).tolist() == pytest.approx([math.exp(-1), math.exp(0.5)], rel=0.02)


def test_an_untrained_policy_has_the_standard_deviation_that_is_set():
    agent = Agent(dataclasses.replace(TORQUE, action_shape=(2,)), Config(initial_std=0.25))
    drawn = agent.sample(torch.zeros(40_000, 2), torch.Generator().manual_seed(0)).detach()
    assert drawn.std(0).tolist() == pytest.approx([0.25, 0.25], rel=0.02)


def test_actions_go_to_the_environment_and_back():
    bounds = dict(action_low=(-2.0, 0.0, -math.inf), action_high=(2.0, 10.0, 5.0))
    agent = Agent(dataclasses.replace(TORQUE, action_shape=(3,), **bounds), Config())
    inside = torch.tensor([[-1.0, 0.0, 0.5], [0.5, 1.0, -1.0]])
    taken = agent.to_env(inside)
    assert taken.dtype == np.float32
    assert taken.tolist() == [[-2.0, 5.0, 4.5], [1.0, 10.0, 3.0]]  # open below: [3, 5]
    assert torch.allclose(agent.from_env(torch.as_tensor(taken)), inside)
    beyond = torch.tensor([[3.0, -7.0, 1.5]])
    assert agent.to_env(beyond).tolist() == [[2.0, 0.0, 5.0]]
    assert agent.from_env(torch.as_tensor(agent.to_env(beyond))).tolist() == [[1.0, -1.0, 1.0]]
    discrete, actions = Agent(VECTOR, Config()), torch.tensor([1, 0])
    assert discrete.to_env(actions).tolist() == [1, 0]
    assert discrete.to_env(actions).dtype == np.int64
    assert torch.equal(discrete.from_env(actions), actions)


def test_seeds_differ_wherever_their_paths_do():
    paths = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (1, 2, 3), (1, 3, 2), (1, 2, 3, 0)]
    assert len({train.seed_from(*p) for p in paths}) == len(paths)
