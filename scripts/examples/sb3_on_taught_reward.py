"""Stable-Baselines3's PPO on a reward that a person taught.

    pip install stable-baselines3
    python scripts/examples/sb3_on_taught_reward.py data/cartpole-1 --steps 50000

It never sees the environment's own reward; that is looked at before and after, to compare.
"""

import argparse
from pathlib import Path

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import rlhf_gym


def true_return(agent: PPO, env: gymnasium.Env, episodes: int = 10) -> float:
    """Mean return by the environment's own reward, the likeliest actions taken."""
    total = 0.0
    for seed in range(episodes):
        obs, over = env.reset(seed=seed)[0], False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(agent.predict(obs, deterministic=True)[0])
            total, over = total + float(reward), terminated or truncated
    return total / episodes


def main(session: Path, steps: int, seed: int, out: Path | None) -> tuple[float, float]:
    taught = rlhf_gym.load(session)
    gamma = taught.config.gamma
    envs = make_vec_env(lambda: rlhf_gym.RewardWrapper(taught.make_env(), taught, gamma=gamma), n_envs=8, seed=seed)
    policy = "CnnPolicy" if taught.info.image else "MlpPolicy"
    agent = PPO(
        policy, envs, n_steps=128, batch_size=128, n_epochs=10, learning_rate=1e-3, gamma=gamma, seed=seed, device="cpu"
    )
    env = taught.make_env()
    before = true_return(agent, env)
    agent.learn(steps)
    after = true_return(agent, env)
    print(f"true return before {before:.1f}, after {steps:,} steps on the taught reward {after:.1f}")
    if out is not None:
        agent.save(out)
    envs.close()
    env.close()
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("session", type=Path, help="a session's directory, e.g. data/cartpole-1")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="where to save the agent (.zip)")
    args = parser.parse_args()
    try:
        main(args.session, args.steps, args.seed, args.out)
    except rlhf_gym.UserError as error:
        raise SystemExit(f"{Path(__file__).name}: {error}") from None
