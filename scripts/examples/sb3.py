"""Stable-Baselines3's PPO, trained on a reward that was taught here.

    pip install stable-baselines3
    python scripts/examples/sb3.py data/cartpole-1 --steps 50000

Prints the true return before and after, which the learner never sees.
"""

import argparse

import gymnasium
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import rlhf_gym


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("session", help="directory of a session, e.g. data/cartpole-1")
    parser.add_argument("--steps", type=int, default=50_000, help="of the new agent (default 50,000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    taught = rlhf_gym.load(options.session)
    env = rlhf_gym.RewardWrapper(taught.make_env(), taught)  # its default gamma is the session's, and so is PPO's below
    model = PPO("MlpPolicy", env, gamma=taught.config.gamma, seed=options.seed, device="cpu")

    true: gymnasium.Env = Monitor(taught.make_env())  # with the environment's own reward
    before, _ = evaluate_policy(model, true, n_eval_episodes=10)
    model.learn(options.steps)
    after, _ = evaluate_policy(model, true, n_eval_episodes=10)
    print(f"true return {before:.1f} before, {after:.1f} after {options.steps:,} steps on the taught reward")


if __name__ == "__main__":
    main()
