"""The peers' sides of scripts/bench/speed.py: CleanRL and Stable-Baselines3, each run in a process of its own.

    python scripts/bench/sides/peers.py NAME '{"seed": 1, ...}'

It runs with an interpreter that has them, and imports nothing of rlhf-gym: what makes rlhf-gym faster must not make a
peer faster. CleanRL's files are run as they lie in its checkout. They are written for gymnasium 0.29, so gymnasium 1 is
given the names they call and the automatic resets they reckon with (`adapt`); what they do is watched from the vector
environment. The last line printed is a JSON object: what was measured, and perhaps a `note`.
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

PONG = (
    "PongNoFrameskip-v4"  # what CleanRL and Stable-Baselines3 call it: no sticky actions, frames skipped by a wrapper
)
NUM_ENVS = 8  # Atari, as CleanRL sets it; so are four minibatches and four epochs
ENOUGH_EPISODES = 100
LATELY = f"last {ENOUGH_EPISODES} episodes"

# ---------------------------------------------------------------------------------------------- gymnasium


class Enough(Exception):
    """The agent is as good as was asked for."""


class Watch:
    """What is seen of a CleanRL program while it runs.

    Args:
        num_steps: steps of a rollout, in each environment.
        stop_at: end the program once the mean of the last 100 episodes reaches this.
        score: gives the rewards (N,) that it learns from, of observations (N, ...) and actions (N,).
    """

    def __init__(
        self,
        num_steps: int,
        stop_at: float = float("inf"),
        score: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.num_steps, self.stop_at, self.score = num_steps, stop_at, score
        self.began = self.ended = 0.0
        self.rollouts: list[float] = []  # when each began
        self.steps = 0
        self.returns: deque[float] = deque(maxlen=ENOUGH_EPISODES)
        self.vector: Any = None

    def step(self) -> None:
        """A step is about to be taken."""
        if self.steps % self.num_steps == 0:
            self.rollouts.append(time.perf_counter())
        self.steps += 1

    def episode(self, total: float) -> None:
        """An episode has ended with this return."""
        self.returns.append(float(total))
        if len(self.returns) == ENOUGH_EPISODES and np.mean(self.returns) >= self.stop_at:
            self.ended = time.perf_counter()
            raise Enough


def adapt(watch: Watch) -> None:
    """Makes gymnasium 1 what a CleanRL file expects of 0.29, and lets `watch` see what it does."""

    class Watched(SyncVectorEnv):
        """Resets at once, and tells of ended episodes in a list, as SyncVectorEnv did then."""

        def __init__(self, env_fns: Any) -> None:
            watch.began, watch.vector = time.perf_counter(), self
            super().__init__(env_fns, autoreset_mode=AutoresetMode.SAME_STEP)

        def reset(self, **kwargs: Any) -> Any:
            obs, infos = super().reset(**kwargs)
            self.seen = obs
            return obs, infos

        def step(self, actions: Any) -> Any:
            watch.step()
            obs, rewards, terminated, truncated, infos = super().step(actions)
            if watch.score is not None:
                rewards = watch.score(self.seen, actions)
            self.seen = obs
            if "final_info" in infos:
                infos["final_info"] = final_infos(infos, self.num_envs)
                for info in infos["final_info"]:
                    if info is not None:
                        watch.episode(info["episode"]["r"])
            return obs, rewards, terminated, truncated, infos

        def close(self, **kwargs: Any) -> None:
            watch.ended = watch.ended or time.perf_counter()
            super().close(**kwargs)

    wrappers: Any = gym.wrappers
    transform = wrappers.TransformObservation
    wrappers.TransformObservation = lambda env, f, space=None: transform(env, f, space or env.observation_space)
    wrappers.GrayScaleObservation = wrappers.GrayscaleObservation
    wrappers.FrameStack = wrappers.FrameStackObservation
    vector: Any = gym.vector
    vector.SyncVectorEnv = Watched


def final_infos(infos: dict[str, Any], num_envs: int) -> list[dict[str, Any] | None]:
    """The episodes that ended, as gymnasium 0.29 told them: a dict for each environment in which one did, else None."""
    final = infos["final_info"]
    ended = final.get("_episode", np.zeros(num_envs, bool))
    return [{"episode": {k: final["episode"][k][i] for k in ("r", "l")}} if ended[i] else None for i in range(num_envs)]


def register_pong() -> None:
    """ale-py no longer registers the old name."""
    import ale_py

    gym.register_envs(ale_py)
    if PONG not in gym.registry:
        spec = gym.spec("ALE/Pong-v5")
        kwargs = {**spec.kwargs, "frameskip": 1, "repeat_action_probability": 0.0}
        gym.register(PONG, entry_point=spec.entry_point, kwargs=kwargs)


def return_of(act: Callable[[np.ndarray], np.ndarray], env_id: str, episodes: int, seed: int) -> float:
    """Mean return of whole episodes on the environment as it is."""
    env, total = gym.make(env_id), 0.0
    for episode in range(episodes):
        obs, _ = env.reset(seed=1000 * seed + episode)
        over = False
        while not over:
            action = act(obs)
            if isinstance(env.action_space, gym.spaces.Box):
                action = np.clip(action, env.action_space.low, env.action_space.high)
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            over = terminated or truncated
    env.close()
    return total / episodes


# ---------------------------------------------------------------------------------------------- CleanRL


class RewardEnsemble(nn.Module):
    """The reward model of rlhf-gym on images, in plain 32 bits: K of Christiano's networks as grouped convolutions.

    One after the other they took 4.5 ms for eight observations, grouped 3.1 ms (two threads).
    """

    def __init__(self, num_actions: int, members: int = 3) -> None:
        super().__init__()
        self.num_actions, self.members = num_actions, members
        k, c, features = members, 16 * members, 16 * 11 * 11
        convs = [nn.Conv2d(4, c, 7, 3), nn.Conv2d(c, c, 5, 2, groups=k)]
        convs += [nn.Conv2d(c, c, 3, 1, 1, groups=k), nn.Conv2d(c, c, 3, 1, 1, groups=k)]
        self.convs = nn.Sequential(*[part for conv in convs for part in (conv, nn.LeakyReLU(0.01))])
        sizes = ((features + num_actions, 64), (64, 1))
        self.weights = nn.ParameterList(torch.randn(k, n, m) / n**0.5 for n, m in sizes)
        self.biases = nn.ParameterList(torch.zeros(k, 1, m) for _, m in sizes)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs (B, 4, 84, 84) uint8, actions (B,) -> rewards (K, B)."""
        x = self.convs(obs.float() / 255.0).reshape(len(obs), self.members, -1).transpose(0, 1)
        a = nn.functional.one_hot(actions.long(), self.num_actions).float()
        x = torch.cat([x, a.expand(self.members, -1, -1)], -1)
        x = torch.tanh(torch.baddbmm(self.biases[0], x, self.weights[0]))
        return torch.baddbmm(self.biases[1], x, self.weights[1]).squeeze(-1)


def scored_by(model: RewardEnsemble, device: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Scores one step of all environments at a time."""

    @torch.no_grad()
    def score(obs: np.ndarray, actions: np.ndarray) -> np.ndarray:
        raw = model(torch.as_tensor(obs, device=device), torch.as_tensor(actions, device=device))
        return raw.mean(0).cpu().numpy()

    return score


def run_cleanrl(cleanrl: str, name: str, words: list[str], watch: Watch) -> dict[str, Any]:
    """Runs one of its files as the program that it is. Returns its globals, empty if it was ended early."""
    adapt(watch)
    file = Path(cleanrl) / "cleanrl" / name
    sys.argv = [str(file), *words]
    try:
        return runpy.run_path(str(file), run_name="__main__")
    except Enough:
        return {}


def cleanrl_atari(cleanrl: str, seed: int, iterations: int, num_steps: int, device: str) -> dict[str, Any]:
    """PPO on Pong with a reward model scored at each step."""
    register_pong()
    torch.manual_seed(seed)
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    env = gym.make(PONG)
    model = RewardEnsemble(int(env.action_space.n)).to(device)  # type: ignore[attr-defined]
    env.close()
    watch = Watch(num_steps, score=scored_by(model, device))
    total = iterations * num_steps * NUM_ENVS
    words = ["--env-id", PONG, "--seed", str(seed), "--total-timesteps", str(total), "--num-steps", str(num_steps)]
    run_cleanrl(cleanrl, "ppo_atari.py", words + ["--no-cuda"] * (device == "cpu"), watch)
    return {"steps/s": (total - num_steps * NUM_ENVS) / (watch.ended - watch.rollouts[1])}


def cleanrl_stepping(cleanrl: str, seed: int, num_envs: int, seconds: float) -> dict[str, Any]:
    """Random actions in its Atari environments."""
    register_pong()
    adapt(Watch(1))
    make_env = runpy.run_path(str(Path(cleanrl) / "cleanrl" / "ppo_atari.py"), run_name="cleanrl")["make_env"]
    vector = gym.vector.SyncVectorEnv([make_env(PONG, i, False, "") for i in range(num_envs)])
    vector.reset(seed=seed)
    rng, count = np.random.default_rng(seed), int(vector.single_action_space.n)  # type: ignore[attr-defined]
    for _ in range(20):
        vector.step(rng.integers(0, count, num_envs))
    began, steps = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        vector.step(rng.integers(0, count, num_envs))
        steps += num_envs
    return {"steps/s": steps / passed}


def cleanrl_cartpole(cleanrl: str, seed: int, stop_at: float) -> dict[str, Any]:
    """Its own settings, until the agent is good enough."""
    watch = Watch(128, stop_at)
    run_cleanrl(cleanrl, "ppo.py", ["--seed", str(seed), "--no-cuda"], watch)
    result: dict[str, Any] = {"training, s": watch.ended - watch.began, "steps": watch.steps * watch.vector.num_envs}
    if not watch.returns or np.mean(watch.returns) < stop_at:
        result["note"] = f"not reached, {np.mean(watch.returns or [np.nan]):.0f} at the end"
    return result


def cleanrl_plain(cleanrl: str, seed: int, env_id: str, steps: int, episodes: int) -> dict[str, Any]:
    """Its own settings; evaluated on its likeliest actions, with the statistics that its observations have by then."""
    file = cleanrl_file(env_id)
    watch = Watch(128 if file == "ppo.py" else 2048)
    words = ["--env-id", env_id, "--seed", str(seed), "--total-timesteps", str(steps), "--no-cuda"]
    agent = run_cleanrl(cleanrl, file, words, watch)["agent"]

    @torch.no_grad()
    def act(obs: np.ndarray) -> np.ndarray:
        if file == "ppo.py":
            return agent.actor(torch.as_tensor(obs, dtype=torch.float32)[None])[0].argmax().numpy()
        moments = watch.vector.envs[0].get_wrapper_attr("obs_rms")
        normal = np.clip((obs - moments.mean) / np.sqrt(moments.var + 1e-8), -10, 10)
        return agent.actor_mean(torch.as_tensor(normal, dtype=torch.float32)[None])[0].numpy()

    seconds = watch.ended - watch.began
    done = {"training, s": seconds, "steps/s": watch.steps * watch.vector.num_envs / seconds}
    lately = float(np.mean(watch.returns)) if watch.returns else float("nan")
    return {**done, LATELY: lately, "true return": return_of(act, env_id, episodes, seed)}


def cleanrl_file(env_id: str) -> str:
    """Its program for the environment's actions."""
    env = gym.make(env_id)
    env.close()
    return "ppo.py" if isinstance(env.action_space, gym.spaces.Discrete) else "ppo_continuous_action.py"


# ---------------------------------------------------------------------------------------------- Stable-Baselines3


def sb3_atari(seed: int, iterations: int, num_steps: int, device: str) -> dict[str, Any]:
    """PPO on Pong with CleanRL's settings, no reward model."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    register_pong()
    rollouts: list[float] = []

    class Clock(BaseCallback):
        def _on_rollout_start(self) -> None:
            rollouts.append(time.perf_counter())

        def _on_step(self) -> bool:
            return True

    vector = VecFrameStack(make_atari_env(PONG, n_envs=NUM_ENVS, seed=seed), 4)
    per_iteration = NUM_ENVS * num_steps
    model = PPO(
        "CnnPolicy", vector, n_steps=num_steps, batch_size=per_iteration // 4, n_epochs=4,
        learning_rate=lambda left: 2.5e-4 * left, clip_range=0.1, clip_range_vf=0.1, ent_coef=0.01, vf_coef=0.5,
        max_grad_norm=0.5, seed=seed, device=device,
    )  # fmt: skip
    model.learn(iterations * per_iteration, callback=Clock())
    return {"steps/s": (iterations - 1) * per_iteration / (time.perf_counter() - rollouts[1])}


def sb3_plain(seed: int, env_id: str, steps: int, episodes: int, zoo: bool) -> dict[str, Any]:
    """PPO with its own settings, or with those that its zoo tuned for the environment."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    began = time.perf_counter()
    settings = dict(ZOO[env_id]) if zoo else {}
    vector: Any = make_vec_env(env_id, settings.pop("n_envs", 1), seed=seed)
    if settings.pop("normalize", False):
        vector = VecNormalize(vector, gamma=settings["gamma"])
    if "policy_kwargs" in settings:
        settings["policy_kwargs"] = settings["policy_kwargs"] | {"activation_fn": nn.ReLU}
    model = PPO("MlpPolicy", vector, seed=seed, device="cpu", **settings)
    model.learn(steps)
    seconds = time.perf_counter() - began
    buffer = model.ep_info_buffer or []
    lately = float(np.mean([e["r"] for e in buffer])) if buffer else float("nan")

    def act(obs: np.ndarray) -> np.ndarray:
        if isinstance(vector, VecNormalize):
            obs = vector.normalize_obs(obs)
        return np.asarray(model.predict(obs, deterministic=True)[0])

    mean = return_of(act, env_id, episodes, seed)
    done = {"training, s": seconds, "steps/s": model.num_timesteps / seconds}
    return {**done, LATELY: lately, "true return": mean}


def falling(start: float) -> Callable[[float], float]:
    """A step size, or clip range, that falls to zero."""
    return lambda left: start * left


WIDE = dict(log_std_init=-2, ortho_init=False, net_arch=dict(pi=[256, 256], vf=[256, 256]))
ZOO: dict[str, dict[str, Any]] = {  # figures of rl-baselines3-zoo, hyperparams/ppo.yml
    "CartPole-v1": dict(
        n_envs=8, n_steps=32, batch_size=256, gae_lambda=0.8, gamma=0.98, n_epochs=20, ent_coef=0.0,
        learning_rate=falling(0.001), clip_range=falling(0.2),
    ),
    "Pendulum-v1": dict(
        n_envs=4, n_steps=1024, gae_lambda=0.95, gamma=0.9, n_epochs=10, ent_coef=0.0, learning_rate=1e-3,
        clip_range=0.2, use_sde=True, sde_sample_freq=4,
    ),
    "LunarLander-v3": dict(
        n_envs=16, n_steps=1024, batch_size=64, gae_lambda=0.98, gamma=0.999, n_epochs=4, ent_coef=0.01,
    ),
    "HalfCheetah-v5": dict(
        normalize=True, batch_size=64, n_steps=512, gamma=0.98, learning_rate=2.0633e-05, ent_coef=0.000401762,
        clip_range=0.1, n_epochs=20, gae_lambda=0.92, max_grad_norm=0.8, vf_coef=0.58096, policy_kwargs=WIDE,
    ),
    "Hopper-v5": dict(
        normalize=True, batch_size=32, n_steps=512, gamma=0.999, learning_rate=9.80828e-05, ent_coef=0.00229519,
        clip_range=0.2, n_epochs=5, gae_lambda=0.99, max_grad_norm=0.7, vf_coef=0.835671, policy_kwargs=WIDE,
    ),
}  # fmt: skip


SIDES = {
    side.__name__: side
    for side in (cleanrl_atari, cleanrl_stepping, cleanrl_cartpole, cleanrl_plain, sb3_atari, sb3_plain)
}

if __name__ == "__main__":
    print("\n" + json.dumps(SIDES[sys.argv[1]](**json.loads(sys.argv[2]))))
