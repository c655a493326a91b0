"""PPO against cases worked by hand: advantages, the loss, and what an update leaves alone."""

from __future__ import annotations

import dataclasses
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from labelings import CPU, IMAGE, TORQUE, VECTOR, one_thread_and_a_seed

from rlhf_gym import envs, fast, train
from rlhf_gym.config import Config, UserError, resolve
from rlhf_gym.envs import EnvInfo, Envs
from rlhf_gym.episodes import EpisodeTracker
from rlhf_gym.retrain import TrueReward
from rlhf_gym.train import Agent, Rollout, gae

# ---------------------------------------------------------------------------------------------- advantages

__all__ = ["one_thread_and_a_seed"]  # a fixture


def made_rollout(rewards, values, next_values, terminated=(), truncated=()) -> Rollout:
    """A rollout of one environment, float64; terminated and truncated: the steps at which."""
    r, v, nv = (torch.tensor(x, dtype=torch.float64)[:, None] for x in (rewards, values, next_values))
    ends = [torch.tensor([[t in where] for t in range(len(r))]) for where in (terminated, truncated)]
    nothing = torch.zeros(len(r), 1)
    where = (ends[0] | ends[1]).nonzero()
    finals = torch.zeros(len(where), 1)
    return Rollout(nothing, nothing, nothing, v, nv, r, torch.zeros_like(r), where, finals, *ends, nothing[0])


@pytest.mark.parametrize(
    ("hide", "terminated", "truncated", "advantages"),
    [
        # gamma 0.5, lambda 0.5; delta = r + 0.5 next - v, and a = delta + 0.25 a'
        (False, [], [], [1 + 0.25 * (1 + 0.25 * 4), 1 + 0.25 * 4, 4]),
        # r_abs 3 for ever is worth 6: delta_1 = 2 + 0.5 * 6 - 2 = 3, and nothing comes after it
        (False, [1], [], [1 + 0.25 * 3, 3, 4]),
        (False, [1], [1], [1 + 0.25 * 3, 3, 4]),  # both: it has terminated
        (False, [2], [], [1 + 0.25 * (1 + 0.25 * 5), 1 + 0.25 * 5, 5]),  # 3 + 0.5 * 6 - 1
        # truncated: the bootstrap stands (delta as without), but the next episode is not added
        (False, [], [1], [1 + 0.25 * 1, 1, 4]),
        # hidden: ends do not exist
        (True, [1], [], [1 + 0.25 * (1 + 0.25 * 4), 1 + 0.25 * 4, 4]),
        (True, [], [1, 2], [1 + 0.25 * (1 + 0.25 * 4), 1 + 0.25 * 4, 4]),
    ],
)
def test_gae_by_hand(hide, terminated, truncated, advantages):
    config = Config(gamma=0.5, gae_lambda=0.5, episode_ends="hide" if hide else "absorb")
    roll = made_rollout([1, 2, 3], [1, 2, 1], [2, 2, 4], terminated, truncated)
    roll.absorbing = torch.full_like(roll.rewards, 3.0)
    found, returns = gae(roll, config)
    assert found[:, 0].tolist() == pytest.approx(advantages)
    assert torch.allclose(returns, found + roll.values)


@pytest.mark.parametrize("truncate", [False, True])
def test_every_end_is_followed_by_the_value_of_what_was_seen_last(truncate):
    """Which of them `gae` needs is its own affair."""
    config = resolve({"env_id": "CartPole-v1", "num_envs": 2, "num_steps": 64, "num_minibatches": 2}, "classic")
    info = envs.describe(config)
    agent, vec = Agent(info, config), Remembering(config, truncate)
    roll, _, _ = train.rollout(agent, vec, vec.reset(), config, torch.Generator().manual_seed(1), CPU)
    vec.close()
    ended = roll.truncated if truncate else roll.terminated
    assert ended.sum() >= 2
    for t, i in ended.nonzero().tolist():
        _, value = agent(torch.as_tensor(vec.finals[t][i])[None])
        assert float(roll.next_values[t, i]) == pytest.approx(value.item(), abs=1e-5)


class Remembering(envs.Envs):
    """Keeps what each step led to; with `truncate` calls every termination a truncation."""

    def __init__(self, config, truncate):
        super().__init__(config, config.num_envs, (1, 2))
        self.truncate, self.finals = truncate, []

    def step(self, actions):
        step = super().step(actions)
        self.finals.append(step.final_obs.copy())
        ends = (np.zeros_like(step.terminated), step.terminated) if self.truncate else (step.terminated, step.truncated)
        return dataclasses.replace(step, terminated=ends[0], truncated=ends[1])


def life_in_a_chain(rng: np.random.Generator, gamma: float):
    """A random chain of 6 states (the last is absorbing), its exact values for rewards r, and a walk through it."""
    chain = rng.dirichlet(np.ones(6), size=5)  # 5 live states -> 6

    def exact_values(rewards: np.ndarray, absorbing: float) -> np.ndarray:
        end = absorbing / (1 - gamma)
        live = np.linalg.solve(np.eye(5) - gamma * chain[:, :5], rewards + gamma * chain[:, 5] * end)
        return np.append(live, end)

    states, nexts, terminated, truncated, state = [], [], [], [], 0
    for t in range(300):
        following = int(rng.choice(6, p=chain[state]))
        states.append(state)
        nexts.append(following)
        if following == 5:
            terminated.append(t)
        elif rng.random() < 0.05:
            truncated.append(t)
        ended = following == 5 or truncated[-1:] == [t]
        state = int(rng.integers(5)) if ended else following
    return exact_values, np.array(states), np.array(nexts), terminated, truncated


@pytest.mark.parametrize("c", [-7.0, 0.3, 1000.0])
def test_a_constant_on_every_reward_changes_no_advantage(c):
    """The design's constant-shift test: with the exact value function, absorbing rewards included."""
    gamma, r_abs, rng = 0.9, -0.4, np.random.default_rng(5)
    config = Config(gamma=gamma, gae_lambda=0.8)
    exact_values, states, nexts, terminated, truncated = life_in_a_chain(rng, gamma)
    assert len(terminated) > 5
    assert len(truncated) > 5
    rewards = rng.normal(size=5)
    values, shifted = exact_values(rewards, r_abs), exact_values(rewards + c, r_abs + c)
    assert shifted == pytest.approx(values + c / (1 - gamma))

    def advantages(reward: np.ndarray, value: np.ndarray, absorbing: float) -> torch.Tensor:
        next_values = value[nexts]
        next_values[terminated] = 1e6  # where the environment went on: what it says there must not count
        roll = made_rollout(reward[states], value[states], next_values, terminated, truncated)
        roll.absorbing = torch.full_like(roll.rewards, absorbing)
        return gae(roll, config)[0]

    plain = advantages(rewards, values, r_abs)
    assert torch.allclose(advantages(rewards + c, shifted, r_abs + c), plain, atol=1e-8 * max(1, abs(c)))
    assert abs(plain.mean()) < 0.2  # under the exact value function they are nothing but noise
    assert plain.std() > 0.3
    # and it can tell: an end that is worth nothing, as in most PPOs, would change them
    assert not torch.allclose(advantages(rewards + c, shifted, 0.0), plain, atol=1e-2)


class Counter(gymnasium.Env):
    """Shows (step, episode); ends by itself after `life` steps, and is cut off after three."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, life: int = 99) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.life, self.episode = life, -1

    def reset(self, *, seed=None, options=None):
        self.t, self.episode = 0, self.episode + 1
        return np.array([0, self.episode], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array([self.t, self.episode], np.float32), 10.0 * self.t + action, self.t >= self.life, False, {}


gymnasium.register("train/Counter-v0", entry_point=Counter, max_episode_steps=3)


@pytest.mark.parametrize("ends", ["absorb", "hide"])
@pytest.mark.parametrize("life", [2, 99])
def test_rollout_knows_what_each_step_led_to(ends, life):
    config = Config(env_id="train/Counter-v0", env_kwargs={"life": life}, num_steps=7, episode_ends=ends)
    vec = Envs(config, 2, (0,))
    agent = Agent(vec.info, config)
    first = vec.reset()
    roll, obs, true_rewards = train.rollout(agent, vec, first, config, torch.Generator().manual_seed(0), CPU)
    vec.close()
    period = min(life, 3)
    steps = np.arange(7)
    for i in range(2):
        assert roll.obs[:, i, 0].tolist() == (steps % period).tolist()
        assert roll.obs[:, i, 1].tolist() == (steps // period).tolist()
        assert true_rewards[:, i].tolist() == (10.0 * (steps % period + 1) + roll.actions[:, i].numpy()).tolist()
    ended = torch.as_tensor(steps % period == period - 1)
    assert torch.equal(roll.terminated[:, 0], ended & (life == 2))
    assert torch.equal(roll.truncated[:, 0], ended & (life != 2))
    with torch.no_grad():
        policy, values = agent(roll.obs.flatten(0, 1))
        log_probs, _ = agent.log_prob(policy, roll.actions.flatten())
        assert torch.allclose(roll.values.flatten(), values)
        assert torch.allclose(roll.log_probs.flatten(), log_probs)
        following = torch.cat([roll.obs[1:], torch.as_tensor(obs)[None]])
        if ends == "absorb" and life != 2:  # life goes on past a truncation, unseen
            following[ended] = torch.stack([torch.tensor([3.0, e]) for e in roll.obs[ended][:, 0, 1]])[:, None]
        _, next_values = agent(following.flatten(0, 1))
    # past a termination the value is r_abs / (1 - gamma), which `gae` puts there
    counts = ~roll.terminated if ends == "absorb" else torch.ones_like(roll.terminated)
    assert torch.allclose(roll.next_values[counts], next_values.reshape(7, 2)[counts], atol=1e-6)


# ---------------------------------------------------------------------------------------------- the update


class Said:
    """An agent that says what the test wants: log-probabilities, entropies, values."""

    def __init__(self, log_probs, entropy, values):
        self.said = torch.tensor(log_probs), torch.tensor(entropy)
        self.values = torch.tensor(values)

    def __call__(self, obs, value_only=False):
        return obs, self.values

    def log_prob(self, policy, actions):
        return self.said


def test_ppo_loss_by_hand():
    ratios = [1.5, 0.5, 1.1, 1.0]
    agent = Said([math.log(r) - 1 for r in ratios], [0.2, 0.4, 0.6, 0.8], [1.0, 2.0, 0.0, -1.0])
    mb = dict(
        obs=torch.zeros(4), actions=torch.zeros(4), log_probs=torch.full((4,), -1.0),
        values=torch.tensor([0.0, 2.0, 0.1, 1.0]), returns=torch.tensor([2.0, 0.0, 1.0, 0.5]),
        advantages=torch.tensor([1.0, -2.0, 3.0, -4.0]),
    )  # fmt: skip
    config = Config(clip_coef=0.2, norm_adv=False, clip_vloss=False, ent_coef=0.1, vf_coef=0.5)
    loss, stats = train.ppo_loss(agent, mb, config)
    pg = -np.mean([1.2 * 1, 0.8 * -2, 1.1 * 3, -4])  # 1.5 is clipped to 1.2; 0.5 * -2 is worse clipped, 0.8 * -2
    v = 0.5 * np.mean([1, 4, 1, 1.5**2])
    assert float(stats["losses/policy_loss"]) == pytest.approx(pg, rel=1e-5)
    assert float(stats["losses/value_loss"]) == pytest.approx(v, rel=1e-5)
    assert float(stats["losses/entropy"]) == pytest.approx(0.5)
    assert float(loss) == pytest.approx(pg - 0.1 * 0.5 + 0.5 * v, rel=1e-5)
    kl = np.mean([r - 1 - math.log(r) for r in ratios])
    assert float(stats["losses/approx_kl"]) == pytest.approx(kl, rel=1e-4)
    assert float(stats["losses/clipfrac"]) == 0.5

    _, stats = train.ppo_loss(agent, mb, dataclasses.replace(config, clip_vloss=True))
    # new values within 0.2 of the old: 0.2, 2, 0, 0.8; the worse of the two errors counts
    assert float(stats["losses/value_loss"]) == pytest.approx(0.5 * np.mean([1.8**2, 4, 1, 1.5**2]), rel=1e-5)

    _, stats = train.ppo_loss(agent, mb, dataclasses.replace(config, norm_adv=True))
    a = np.array([1.0, -2.0, 3.0, -4.0])
    a = (a + 0.5) / a.std(ddof=1)
    r = np.array(ratios)
    assert float(stats["losses/policy_loss"]) == pytest.approx(
        np.maximum(-a * r, -a * r.clip(0.8, 1.2)).mean(), rel=1e-4
    )

    alone = Said([0.5], [0.2], [1.0])  # an advantage alone has no spread to divide by
    loss, _ = train.ppo_loss(alone, {k: v[:1] for k, v in mb.items()}, dataclasses.replace(config, norm_adv=True))
    assert loss.isfinite()

    loss, stats = train.ppo_loss(agent, mb, config, value_only=True)
    assert set(stats) == {"losses/value_loss"}
    assert float(loss) == pytest.approx(0.5 * v, rel=1e-5)


def some_rollout(info: EnvInfo, agent: Agent, steps: int = 8) -> Rollout:
    size = (steps, 2, *info.obs_shape)
    obs = torch.randint(0, 256, size, dtype=torch.uint8) if info.image else torch.randn(size)
    with torch.no_grad():
        policy, values = agent(obs.flatten(0, 1))
        actions = agent.sample(policy, torch.Generator().manual_seed(0))
        log_probs, _ = agent.log_prob(policy, actions)
    flags = torch.zeros(steps, 2, dtype=torch.bool)
    values, log_probs = values.reshape(steps, 2), log_probs.reshape(steps, 2)
    nobody, rewards = torch.zeros(0, 2, dtype=torch.int64), torch.randn(steps, 2)
    actions = actions.unflatten(0, (steps, 2))
    return Rollout(
        obs, actions, log_probs, values, values, rewards, 0 * rewards, nobody, obs[:0, 0], flags, flags, obs[-1]
    )


@pytest.mark.parametrize("info", [VECTOR, TORQUE, IMAGE], ids=["vector", "torque", "image"])
def test_fitting_the_value_alone_leaves_the_policy_alone(info):
    config = Config(update_epochs=2, num_minibatches=2)
    agent = Agent(info, config)
    roll = some_rollout(info, agent)
    obs = roll.obs.flatten(0, 1)
    policy, value = (x.detach() for x in agent(obs))
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2, eps=1e-5)
    advantages, returns = gae(roll, config)
    update = (agent, optimizer, roll, advantages, returns, config, torch.Generator().manual_seed(0))
    train.update(*update, value_only=True)
    assert torch.equal(agent(obs)[0], policy)
    assert not torch.allclose(agent(obs)[1], value)
    moved = {name for name, p in agent.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved
    assert all(name.startswith("critic") for name in moved)
    train.update(*update, value_only=False)
    assert not torch.equal(agent(obs)[0], policy)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("target_kl", "value_only", "passes"), [(0.0, False, 4), (1e-6, False, 1), (1e6, False, 4), (1e-6, True, 4)]
)
def test_an_update_ends_once_the_policy_has_moved_far_enough(target_kl, value_only, passes, quick, monkeypatch):
    config = Config(update_epochs=4, num_minibatches=2, target_kl=target_kl, fast=quick)
    agent = Agent(VECTOR, config)
    roll = some_rollout(VECTOR, agent, steps=64)
    optimizer = fast.prepare(agent, config, torch.device("cpu"))
    assert (optimizer is not None) == quick
    optimizer, steps = optimizer or torch.optim.Adam(agent.parameters(), lr=1e-2, eps=1e-5), []
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda *args: steps.append(step(*args)))
    advantages, returns = gae(roll, config)
    generator = torch.Generator().manual_seed(0)
    stats = train.update(agent, optimizer, roll, advantages, returns, config, generator, value_only)
    assert len(steps) == 2 * passes
    assert value_only or float(stats["losses/approx_kl"]) > 1e-6


def test_an_update_makes_good_actions_likelier():
    config = Config(update_epochs=4, num_minibatches=2, ent_coef=0.0)
    agent = Agent(VECTOR, config)
    roll = some_rollout(VECTOR, agent, steps=64)
    advantages = roll.actions.float() * 2 - 1  # action 1 is good, whatever is seen
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2, eps=1e-5)
    train.update(agent, optimizer, roll, advantages, roll.values, config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        p = agent(roll.obs.flatten(0, 1))[0].softmax(-1)[:, 1].mean()
    assert p > 0.55


def test_the_true_reward_is_scaled_by_the_spread_of_the_return():
    config = Config(num_envs=2, gamma=0.5)
    rewards = np.array([[1.0, -1.0], [2.0, 0.0], [4.0, 6.0]], np.float32)
    roll = made_rollout([0, 0, 0], [0, 0, 0], [0, 0, 0])
    roll.terminated = torch.tensor([[False, False], [True, False], [False, False]])
    roll.truncated = torch.zeros(3, 2, dtype=torch.bool)
    returns = [1.0, -1.0, 2.5, -0.5, 4.0, 5.75]  # env 0 began anew after its second step
    TrueReward(config)(roll, rewards)
    assert torch.allclose(roll.rewards, torch.as_tensor(rewards / np.std(returns), dtype=torch.float32), rtol=1e-4)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_true_reward_that_is_no_number_is_refused_before_it_spoils_the_agent(wrong):
    roll = made_rollout([0, 0], [0, 0], [0, 0])
    with pytest.raises(UserError, match="a true reward that is NaN or infinite: mend it, or learn from labels"):
        TrueReward(Config(num_envs=1))(roll, np.array([[1.0], [wrong]], np.float32))


def test_the_tracker_adds_up_whole_episodes():
    tracker = EpisodeTracker(2)
    assert tracker.means() == {}
    true, predicted = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[0.5, 0.0], [0.5, 1.0]])
    tracker.add(true, predicted, np.array([[False, True], [False, False]]))
    tracker.add(true, predicted, np.array([[True, False], [False, True]]))
    found = tracker.means()  # env 0: 1 + 3 + 1; env 1: 2, then 4 + 2 + 4
    assert found["charts/true_return"] == pytest.approx((5 + 2 + 10) / 3)
    assert found["charts/predicted_return"] == pytest.approx((1.5 + 0 + 2) / 3)
    assert found["charts/episode_length"] == pytest.approx((3 + 1 + 3) / 3)
    assert found["charts/episodes"] == 3
