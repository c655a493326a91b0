"""What a person taught, used from Python: load(), the wrappers, the data set, and the code in docs/api.md."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_learning import ENVIRONMENTS, TINY, run_loop

import rlhf_gym
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import UserError
from rlhf_gym.library import Taught

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """CartPole, taught to stay up in one round; in a folder as docs/api.md has it."""
    where = tmp_path_factory.mktemp("library") / "data"
    found = run_loop(where, "cartpole-1", "CartPole-v1", seed=2, rounds=1, agent_steps_per_round=20_000)
    found.close()
    return found


@pytest.fixture(scope="module")
def taught(session):
    return rlhf_gym.load(session.path)


def test_importing_it_loads_no_torch():
    code = "import sys, rlhf_gym; assert 'torch' not in sys.modules; rlhf_gym.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = rlhf_gym.nothing_like_it


def test_the_policy_acts_as_the_agent(session, taught):
    agent = Snapshot.load(session.checkpoint(0)).agent
    obs = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
    actions = taught.policy.act(obs)
    assert actions.shape == (32,)
    np.testing.assert_array_equal(actions, agent.act(obs))
    assert [taught.policy.act(one) for one in obs] == actions.tolist()
    drawn = np.stack([taught.policy.act(obs[:4], deterministic=False) for _ in range(200)])
    probability = agent(torch.as_tensor(obs[:4]))[0].softmax(-1)[:, 1].detach().numpy()
    np.testing.assert_allclose(drawn.mean(0), probability, atol=0.15)


def test_rewards_are_the_ensembles(session, taught):
    model = Snapshot.load(session.checkpoint(0)).reward
    obs = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
    actions = np.arange(32) % 2
    rewards = taught.reward_model.reward(obs, actions)
    np.testing.assert_allclose(rewards, model.reward(torch.as_tensor(obs), torch.as_tensor(actions)), rtol=1e-5)
    assert taught.reward_model.reward(obs[3], actions[3]) == pytest.approx(rewards[3], rel=1e-4)
    raw = model(torch.as_tensor(obs), torch.as_tensor(actions), torch.ones(32, dtype=torch.bool))
    ended = ((raw - model.offset[:, None]) * model.scale[:, None]).mean(0).detach().numpy()
    np.testing.assert_allclose(taught.reward_model.after_end(obs), ended / (1 - taught.config.gamma), rtol=1e-4)


@pytest.mark.parametrize(
    ("obs", "action", "says"),
    [
        (np.zeros(3), 0, r"shape \(3,\) do not fit: give \(4,\) or \(B, 4\)"),
        (np.zeros((2, 4)), 0, "do not fit 2 observations"),
        (np.zeros(4), 2, "2 do not fit 1 observations: give each a whole number from 0 to 1"),
        (np.zeros(4), 0.5, "give each a whole number"),
    ],
)
def test_what_does_not_fit_is_told(obs, action, says, taught):
    with pytest.raises(UserError, match=says):
        taught.reward_model.reward(obs, action)


def test_rounds_that_are_not_there_are_told(session, tmp_path):
    assert rlhf_gym.load(session.path, -1).round == -1
    with pytest.raises(UserError, match="has no reward model"):
        _ = rlhf_gym.load(session.path, -1).reward_model
    with pytest.raises(UserError, match="has no round 7"):
        rlhf_gym.load(session.path, 7)
    with pytest.raises(UserError, match='No session "nothing-1"'):
        rlhf_gym.load(tmp_path / "nothing-1")


def test_a_whole_episode_in_the_agents_view(taught):
    env = taught.make_env(render=True)
    returns = []
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        again, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(obs, again)
        total, over = 0.0, False
        while not over:
            assert obs in env.observation_space
            obs, reward, terminated, truncated, _ = env.step(taught.policy.act(obs))
            total, over = total + reward, terminated or truncated
        returns.append(total)
    assert np.mean(returns) > 100  # it was taught to stay up
    assert env.render().shape == (400, 600, 3)
    env.close()


# ---------------------------------------------------------------------------------------------- wrappers


def until_it_falls(step, limit=200):
    """Steps in which an episode terminates, pushing to the right."""
    for _ in range(limit):
        found = step()
        yield found
        if np.any(found[2]):
            return


def test_the_wrapper_gives_the_learned_reward_and_at_the_end_what_comes_after(taught):
    env = rlhf_gym.RewardWrapper(gymnasium.make("CartPole-v1"), taught)
    obs, _ = env.reset(seed=1)
    model, gamma = taught.reward_model, taught.config.gamma
    for following, reward, terminated, _, info in until_it_falls(lambda: env.step(1)):
        expected = model.reward(obs, 1) + (gamma * model.after_end(following) if terminated else 0.0)
        assert reward == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert info["true_reward"] == 1.0
        obs = following
    assert terminated
    other = rlhf_gym.RewardWrapper(gymnasium.make("CartPole-v1"), taught, gamma=0.0)
    other.reset(seed=1)
    *_, (_, last, *_) = until_it_falls(lambda: other.step(1))
    assert last != pytest.approx(reward, abs=1e-3)  # falling is bad, and with gamma 0 nothing comes after


def test_with_hidden_ends_nothing_comes_after(session):
    taught = rlhf_gym.load(session.path)
    object.__setattr__(taught.config, "episode_ends", "hide")
    assert taught.reward_model.after_end(np.ones(4)) == 0.0


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_vector_wrapper_agrees_with_the_single_one(mode, taught):
    envs = rlhf_gym.VectorRewardWrapper(
        SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=mode), taught
    )
    one = rlhf_gym.RewardWrapper(gymnasium.make("CartPole-v1"), taught)
    one.reset(seed=5)
    envs.reset(seed=[5, 6])
    actions, ends = np.array([1, 0]), 0
    for _, reward, terminated, *_ in until_it_falls(lambda: one.step(1)):
        _, rewards, ended, _, infos = envs.step(actions)
        assert rewards[0] == pytest.approx(reward, rel=1e-4, abs=1e-6)
        assert bool(ended[0]) == terminated
        np.testing.assert_array_equal(infos["true_reward"], 1.0)
        ends += terminated
        if ended[1]:
            break
    obs, rewards, *_ = envs.step(actions)
    if ends and mode == AutoresetMode.NEXT_STEP:
        assert rewards[0] == 0.0  # that step was a reset
        np.testing.assert_array_equal(envs._obs, obs)
    else:
        assert rewards[0] != 0.0


def test_other_environments_are_refused(taught):
    with pytest.raises(UserError, match=r"taught on observations of shape \(4,\)"):
        rlhf_gym.RewardWrapper(gymnasium.make("Acrobot-v1"), taught)
    env = gymnasium.make("CartPole-v1")
    env.action_space = gymnasium.spaces.Discrete(5)
    with pytest.raises(UserError, match=r"taught on 2 discrete actions, and the environment takes Discrete\(5\)"):
        rlhf_gym.RewardWrapper(env, taught)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "rlhf_gym/Dot-v0", "ALE/Pong-v5"])
def test_continuous_actions_and_images(env_id, tmp_path):
    settings = {**TINY, "rounds": 1, "score": "test_learning:looks", **ENVIRONMENTS[env_id]}
    run_loop(tmp_path, "one", env_id, **settings).close()
    taught = rlhf_gym.load(tmp_path / "one", trust=True)  # its score is a module of the tests
    env = rlhf_gym.RewardWrapper(taught.make_env(), taught)
    obs, _ = env.reset(seed=3)
    for _ in range(3):
        action = taught.policy.act(obs, deterministic=False)
        assert action in env.action_space
        expected = taught.reward_model.reward(obs, action)
        following, reward, _, _, info = env.step(action)
        assert reward == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert np.isfinite(info["true_reward"])
        obs = following
    assert taught.policy.act(np.stack([obs, obs])).shape == (2, *taught.info.action_shape)
    env.close()


def test_a_strangers_environment_is_not_made(session, monkeypatch):
    found = rlhf_gym.load(session.path)
    foreign = rlhf_gym.library.trusting
    asked: list[bool] = []
    monkeypatch.setattr(foreign, "require", lambda session, confirmed: asked.append(confirmed))
    found.make_env().close()
    rlhf_gym.load(session.path, trust=True).make_env().close()
    assert asked == [False, True]
    assert isinstance(found, Taught)


# ---------------------------------------------------------------------------------------------- labels and examples


def test_the_data_set_holds_the_labels_that_count(session):
    labels = rlhf_gym.LabelDataset(session.path)
    assert len(labels) == 20
    for i, pair in enumerate(labels.pairs):
        item = labels[i]
        assert item["target"] == {"left": 0.95, "right": pytest.approx(0.05), "equal": 0.5}[pair.choice]
        left, right = item["left"], item["right"]
        assert left["observations"].shape == right["observations"].shape
        assert left["observations"].shape[1:] == (4,)
        assert left["actions"].shape == left["absorbing"].shape == left["observations"].shape[:1]
    lived = [
        float((~labels[i]["left"]["absorbing"]).sum() - (~labels[i]["right"]["absorbing"]).sum()) for i in range(20)
    ]
    assert all((d > 0) == (labels[i]["target"] > 0.5) for i, d in enumerate(lived) if d)  # as the labeler judged


def run_example(name: str, monkeypatch, capsys, *args: object) -> str:
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    runpy.run_path(str(ROOT / "scripts" / "examples" / name), run_name="__main__")
    return capsys.readouterr().out


def test_a_reward_model_in_plain_torch(session, monkeypatch, capsys):
    said = run_example("reward_from_labels.py", monkeypatch, capsys, session.path)
    right, held_out = map(int, re.search(r"right about (\d+) of (\d+) held out", said).groups())
    assert held_out == 4
    assert right >= 3


def test_stable_baselines_learns_from_the_taught_reward(session, monkeypatch, capsys):
    said = run_example("sb3.py", monkeypatch, capsys, session.path, "--steps", 16_384)
    before, after = map(float, re.search(r"true return ([\d.]+) before, ([\d.]+) after", said).groups())
    assert after > max(100, 3 * before)


def test_the_code_in_the_documents_runs(session, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.S)
    assert len(blocks) == 4
    monkeypatch.chdir(session.path.parent.parent)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert names["rewards"].shape == (4,)
    assert os.path.isdir("data/cartpole-1")
