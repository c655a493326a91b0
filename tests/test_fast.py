"""The fast path against the plain one: the same loss, gradients and agents, up to rounding.

Tolerances: vectors in float64 1e-9 for the gradient and 1e-7 for parameters after three updates (the normaliser is
float32 in both); images in float32 1e-4 of the largest gradient; bfloat16 3e-2, and a cosine of 0.999.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools

import pytest
import torch
from labelings import random_labels

from rlhf_gym import fast, train
from rlhf_gym.config import Config
from rlhf_gym.envs import EnvInfo
from rlhf_gym.fast import VectorLearner
from rlhf_gym.train import Agent, RewardModel, Rollout

CPU = torch.device("cpu")
DISCRETE = EnvInfo("classic", (4,), False, 3, (), None, None, 50.0, 500)
CONTINUOUS = EnvInfo("mujoco", (4,), False, None, (2,), (-2.0, -1.0), (2.0, 1.0), 30.0, 200)
IMAGE = EnvInfo("pixels", (4, 52, 52), True, 3, (), None, None, 15.0, 50)
NATIVE = fast.native_bfloat16
CASES = list(itertools.product((DISCRETE, CONTINUOUS), (True, False), (True, False), (0.0, 0.02)))


@pytest.fixture(autouse=True)
def a_seed_and_no_bfloat16(monkeypatch):
    """Whatever the processor has."""
    torch.manual_seed(0)
    monkeypatch.setattr(fast, "native_bfloat16", functools.cache(lambda device: False))


def twins(info: EnvInfo, config: Config, dtype=torch.float64) -> tuple[Agent, Agent]:
    """Two equal agents, away from their initial weights so that no gradient is small by chance."""
    agent = Agent(info, config).to(dtype)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    if agent.normalizer is not None:
        agent.normalizer.update(2 * torch.randn(50, *info.obs_shape) + 1)
    return agent, copy.deepcopy(agent)


def made_up(info: EnvInfo, t=16, n=8, dtype=torch.float64) -> tuple[Rollout, torch.Tensor, torch.Tensor]:
    """A rollout with old values and log-probabilities on both sides of every clip, advantages, returns."""
    obs = torch.randn(t, n, *info.obs_shape, dtype=dtype)
    if info.image:
        obs = torch.randint(0, 256, (t, n, *info.obs_shape), dtype=torch.uint8)
    actions = torch.randint(0, 3, (t, n)) if info.num_actions else torch.randn(t, n, 2, dtype=dtype)
    x = [torch.randn(t, n, dtype=dtype) for _ in range(6)]
    flags = torch.zeros(t, n, dtype=torch.bool)
    nobody = torch.zeros(0, 2, dtype=torch.int64)
    roll = Rollout(
        obs, actions, 0.5 * x[0] - 1.5, x[1], x[2], x[3], 0 * x[3], nobody, obs[:0, 0], flags, flags, obs[-1]
    )
    return roll, x[4], x[5]


def plain(config: Config, agent: Agent) -> torch.optim.Adam:
    return torch.optim.Adam(agent.parameters(), lr=config.learning_rate, eps=1e-5)


def largest_difference(a: Agent, b: Agent) -> float:
    return max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(("info", "clip_vloss", "norm_adv", "ent_coef"), CASES)
@pytest.mark.parametrize("value_only", [False, True])
def test_the_gradient_written_out_is_that_of_the_loss(info, clip_vloss, norm_adv, ent_coef, value_only):
    config = Config(clip_vloss=clip_vloss, norm_adv=norm_adv, ent_coef=ent_coef, normalize_obs=False)
    reference, agent = twins(info, config)
    roll, advantages, returns = made_up(info)
    mb = {"obs": roll.obs, "actions": roll.actions, "log_probs": roll.log_probs, "values": roll.values}
    mb = {k: v.flatten(0, 1) for k, v in (mb | {"advantages": advantages, "returns": returns}).items()}
    loss, stats = train.ppo_loss(reference, mb, config, value_only)
    loss.backward()
    learner = VectorLearner(agent, config)
    if norm_adv:
        mb["advantages"] = (mb["advantages"] - mb["advantages"].mean()) / (mb["advantages"].std() + 1e-8)
    told = learner.backward(mb, value_only, stats=True)
    assert set(told) == set(stats)
    assert all(float(told[k]) == pytest.approx(float(stats[k].detach()), rel=1e-9) for k in stats)
    found = learner._parts(learner.grad)
    for name, parameter in reference.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(found[name], expected, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("target_kl", [0.0, 0.01])
@pytest.mark.parametrize("info", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_updates_are_those_of_the_plain_path_warm_up_included(info, target_kl):
    config = Config(learning_rate=1e-3, normalize_obs=True, ent_coef=0.01, max_grad_norm=0.3, target_kl=target_kl)
    reference, agent = twins(info, config)
    start = copy.deepcopy(agent)
    optimizer, learner = plain(config, reference), VectorLearner(agent, config)
    for value_only in (True, False, False):
        roll, advantages, returns = made_up(info)
        for who, by in ((reference, optimizer), (agent, learner)):
            generator = torch.Generator().manual_seed(1)
            train.update(who, by, roll, advantages, returns, config, generator, value_only)
    assert largest_difference(reference, agent) < 1e-7
    assert largest_difference(start, agent) > 1e-2  # there was something to compare
    ours, theirs = learner.state_dict(), optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for i, state in theirs["state"].items():
        assert all(torch.allclose(ours["state"][i][k], v, atol=1e-7) for k, v in state.items())


@pytest.mark.parametrize("info", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_it_acts_as_the_plain_agent(info):
    config = Config(normalize_obs=True)
    reference, agent = twins(info, config, torch.float32)
    learner = VectorLearner(agent, config)
    for _ in range(2):
        obs = 3 * torch.randn(8, 4)
        with torch.no_grad():
            expected = reference.choose(obs, torch.Generator().manual_seed(5))
            found = learner.choose(obs, torch.Generator().manual_seed(5))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, found, strict=True))
        for who in (reference, agent):  # the moments move between rollouts
            who.normalizer.update(obs)


def test_each_goes_on_from_the_others_checkpoint():
    config = Config(learning_rate=1e-3)
    reference, agent = twins(DISCRETE, config)
    roll, advantages, returns = made_up(DISCRETE)

    def go(who: Agent, by, times: int) -> None:
        generator = torch.Generator().manual_seed(3)
        for _ in range(times):
            train.update(who, by, roll, advantages, returns, config, generator)

    go(reference, plain(config, reference), 2)
    go(agent, first := VectorLearner(agent, config), 1)
    # the second time by one that knows only the state: plain from fast, and fast from fast
    again = copy.deepcopy(agent)
    by, second = plain(config, again), VectorLearner(agent, config)
    for learner in (by, second):
        learner.load_state_dict(copy.deepcopy(first.state_dict()))
    for who, learner in ((again, by), (agent, second)):
        generator = torch.Generator().manual_seed(3)
        for _ in range(config.update_epochs):  # as far as the first update's draws went
            torch.randperm(128, generator=generator)
        train.update(who, learner, roll, advantages, returns, config, generator)
    assert largest_difference(again, agent) < 1e-7
    assert largest_difference(reference, agent) < 1e-7


def test_images_laid_out_for_convolutions_give_the_same_gradients():
    config = Config(update_epochs=1, num_minibatches=1, max_grad_norm=1e6)
    reference, agent = twins(IMAGE, config, torch.float32)
    slow = dataclasses.replace(config, fast=False)
    assert fast.prepare(reference, slow, CPU) is None
    assert fast.prepare(agent, config, CPU) is None
    assert agent.trunk[0].weight.is_contiguous(memory_format=torch.channels_last)
    roll, advantages, returns = made_up(IMAGE, dtype=torch.float32)
    for who, c in ((reference, slow), (agent, config)):
        train.update(who, plain(c, who), roll, advantages, returns, c, torch.Generator().manual_seed(0))
    for (name, a), b in zip(reference.named_parameters(), agent.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() < 1e-4 * a.grad.abs().max(), name


def test_bfloat16_gradients_are_close(monkeypatch):
    config = Config(update_epochs=1, num_minibatches=1, max_grad_norm=1e6, bfloat16=True)
    reference, agent = twins(IMAGE, config, torch.float32)
    roll, advantages, returns = made_up(IMAGE, dtype=torch.float32)
    for who, native in ((reference, False), (agent, True)):
        monkeypatch.setattr(fast, "native_bfloat16", lambda device, native=native: native)
        train.update(who, plain(config, who), roll, advantages, returns, config, torch.Generator().manual_seed(0))
    a, b = (torch.cat([p.grad.flatten() for p in who.parameters()]) for who in (reference, agent))
    assert 0 < (a - b).norm() < 3e-2 * a.norm()
    assert torch.cosine_similarity(a, b, 0) > 0.999


def test_bfloat16_is_for_images_on_devices_that_have_it(monkeypatch):
    on, off = Config(bfloat16=True), Config(fast=False, bfloat16=True)
    seen = []

    def hooked(model: torch.nn.Module) -> torch.nn.Module:
        model.register_forward_hook(lambda m, args, out: seen.append(torch.is_autocast_enabled("cpu")))
        return model

    vector, image, slow = Agent(DISCRETE, on), Agent(IMAGE, on), Agent(IMAGE, off)
    reward = RewardModel(IMAGE, on)
    parts = [hooked(m) for m in (vector.actor, image.trunk, slow.trunk, reward.convs)]
    assert len(parts) == 4
    frames, actions = torch.zeros(2, *IMAGE.obs_shape, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    monkeypatch.setattr(fast, "native_bfloat16", NATIVE)
    for native in (False, True):
        fast.native_bfloat16.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"avx512_bf16": native})
        out = [vector(torch.zeros(2, 4)), image(frames), slow(frames), (reward(frames, actions),)]
        assert seen == [False, native, False, native]
        assert all(x.dtype == torch.float32 for pair in out for x in pair)
        seen.clear()
    fast.native_bfloat16.cache_clear()


@pytest.mark.parametrize("quick", [True, False])
def test_the_reward_model_is_the_same_whichever_way_its_memory_lies(quick):
    config = Config(fast=quick)
    plain_one, info = RewardModel(IMAGE, Config(fast=False)), IMAGE
    model = RewardModel(info, config)
    model.load_state_dict(plain_one.state_dict())
    for m in (model, plain_one):
        m.regions = [(0, 9, 3, 20)]
    if quick:
        fast.lay_out(model)
    frames, actions = torch.randint(0, 256, (6, *info.obs_shape), dtype=torch.uint8), torch.randint(0, 3, (6,))
    for m in (model, plain_one):
        m(frames, actions).square().sum().backward()
    for a, b in zip(plain_one.parameters(), model.parameters(), strict=True):
        if a.grad is not None:
            assert (a.grad - b.grad).abs().max() <= 1e-4 * a.grad.abs().max()


def test_without_it_all_is_plain():
    config = Config(fast=False)
    assert fast.prepare(Agent(DISCRETE, config), config, CPU) is None
    agent = Agent(IMAGE, config)
    assert fast.prepare(agent, config, CPU) is None
    assert agent.trunk[0].weight.is_contiguous()


@pytest.mark.parametrize("images", [1, 25, 400])
def test_the_gradients_of_parts_add_up(images, monkeypatch):
    """Of one pair at a time, of several, of all at once; one pair has no weight for one member, clips have ends."""
    labels = random_labels(7, 2, IMAGE, 6)
    pairs = torch.tensor([5, 0, 3, 2, 6])
    target, weight = labels.target, labels.weight * torch.rand_like(labels.weight)
    monkeypatch.setattr(fast, "CACHED_IMAGES", images)
    gradients = []
    for on in (True, False):
        torch.manual_seed(1)
        model = RewardModel(IMAGE, Config(fast=on, ensemble_size=2))
        parts = fast.parts(pairs, model, labels)
        assert torch.equal(torch.cat(parts), pairs)
        assert len(parts) == {1: 5, 25: 3, 400: 1}[images] if on else parts == (pairs,)
        for part in parts:
            loss = train.label_loss(train.pair_logits(model, labels, part, CPU), target[part], 0.1)
            ((loss * weight[:, part]).sum() / len(pairs)).backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + 1e-6


def test_vectors_are_taken_whole():
    labels = random_labels(7)
    pairs = torch.arange(7)
    assert fast.parts(pairs, RewardModel(DISCRETE, Config()), labels) == (pairs,)
