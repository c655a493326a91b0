"""What a person taught, from Python: the policy and the reward of a session, and its labels (docs/api.md).

    import rlhf_gym

    taught = rlhf_gym.load("data/cartpole-1")
    action = taught.policy.act(obs)
    reward = taught.reward_model.reward(obs, action)

A CPU and the session's directory are enough. What is loaded is numbers alone: nothing that a session brings is run,
unless its environment is made (`Taught.make_env`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import iterate

from rlhf_gym import trust as trusting
from rlhf_gym.catalog import open_session
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import Twin
from rlhf_gym.labels import target
from rlhf_gym.segments import load_clip
from rlhf_gym.spec import EnvInfo
from rlhf_gym.store import Pair, Session
from rlhf_gym.train import Agent, RewardModel

# ---------------------------------------------------------------------------------------------- a session's networks


def load(session_dir: str | os.PathLike[str], round: int | None = None, *, trust: bool = False) -> Taught:
    """The policy and the reward model of a session, on the CPU.

    Args:
        session_dir: its directory, e.g. "data/cartpole-1".
        round: of the agent; None: the newest; -1: the untrained one, which has no reward model.
        trust: let a session that somebody else made bring an environment of its own (`Taught.make_env`).

    Raises:
        UserError: there is no such session or round, or its checkpoint cannot be read.
    """
    session = open_dir(session_dir)
    try:
        snapshot = Snapshot.load(session.checkpoint(session.resolve_round(round)), of=session.config)
    finally:
        session.close()
    return Taught(session, snapshot, trust)


def open_dir(session_dir: str | os.PathLike[str]) -> Session:
    path = Path(session_dir).absolute()
    return open_session(path.parent, path.name)


class Taught:
    """What a session taught until one of its rounds.

    Attributes:
        policy: acts.
        config, info: the session's settings, and what its environment is.
        round: of the agent and the reward model; -1: untrained.
    """

    def __init__(self, session: Session, snapshot: Snapshot, trust: bool = False) -> None:
        self.config: Config = snapshot.config
        self.info: EnvInfo = snapshot.info
        self.round = snapshot.round
        self.policy = Policy(snapshot.agent.eval(), snapshot.info, snapshot.config.seed)
        self._session, self._snapshot, self._trust = session, snapshot, trust

    @property
    def reward_model(self) -> TaughtReward:
        """Raises UserError where no label had been learned from yet."""
        if self._snapshot.reward is None:
            raise UserError(
                f"Round {self.round} of session {self._session.name!r} has no reward model: it had learned from no "
                "label yet. Give the number of a later round, or label and train one."
            )
        return TaughtReward(self._snapshot.reward, self._snapshot.agent, self.config, self.info)

    def make_env(self, render: bool = False) -> AgentView:
        """The session's environment as its agent sees it: flat vectors, or stacks of gray images.

        Args:
            render: whether its `render` will be called, which gives what a person sees.

        Raises:
            UserError: it cannot be made; or it is code of a stranger, and `load` was not given trust=True.
        """
        trusting.require(self._session, self._trust)
        return AgentView(self.config, render)


class Policy:
    """Acts as the agent does."""

    def __init__(self, agent: Agent, info: EnvInfo, seed: int) -> None:
        self.agent, self.info = agent, info
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, obs: Any, deterministic: bool = True) -> Any:
        """The action for an observation, or those for a batch of them.

        Args:
            obs: obs_shape or (B, *obs_shape), as `Taught.make_env` gives them.
            deterministic: the likeliest action; else one is drawn.

        Returns:
            whole numbers from 0, () or (B,) int64; or A floats within the environment's bounds, (*action_shape,) or
            (B, *action_shape) float32.

        Raises:
            UserError: the observation has another shape.
        """
        batch, alone = batched(obs, self.info)
        actions = self.agent.act(batch, None if deterministic else self.generator)
        return actions[0] if alone else actions


class TaughtReward:
    """Rewards as the agent was trained on them: the ensemble's mean, scaled (docs/architecture.md, "Reward model")."""

    def __init__(self, model: RewardModel, agent: Agent, config: Config, info: EnvInfo) -> None:
        self.model, self.agent, self.config, self.info = model, agent, config, info

    def reward(self, obs: Any, action: Any) -> Any:
        """The predicted reward of an action in an observation: a float, or (B,) float32 for batches of both.

        Args:
            obs: obs_shape or (B, *obs_shape), as `Taught.make_env` gives them.
            action: whole numbers from 0, or floats in the environment's own units, one for each observation.

        Raises:
            UserError: they have other shapes.
        """
        batch, alone = batched(obs, self.info)
        actions = self._actions(action, len(batch), alone)
        rewards = self.model.reward(torch.as_tensor(batch), self.agent.from_env(actions)).numpy()
        return float(rewards[0]) if alone else rewards

    def after_end(self, obs: Any) -> Any:
        """What the time after an episode's end is worth, r_abs / (1 - gamma): a float, or (B,) float32.

        Zero with episode_ends "hide", where an end is no different from any other step.

        Args:
            obs: what was seen last, obs_shape or (B, *obs_shape).
        """
        batch, alone = batched(obs, self.info)
        worth: np.ndarray = np.zeros(len(batch), np.float32)
        if self.config.episode_ends == "absorb":
            shape = (len(batch),) if self.info.num_actions else (len(batch), *self.info.action_shape)
            actions = torch.zeros(shape, dtype=torch.int64 if self.info.num_actions else torch.float32)
            over = torch.ones(len(batch), dtype=torch.bool)
            worth = self.model.reward(torch.as_tensor(batch), actions, over).numpy() / (1 - self.config.gamma)
        return float(worth[0]) if alone else worth

    def _actions(self, action: Any, count: int, alone: bool) -> torch.Tensor:
        given = np.asarray(action)
        actions = given[None] if alone else given
        if self.info.num_actions:
            number = self.info.num_actions
            whole = np.issubdtype(actions.dtype, np.integer) and actions.shape == (count,)
            if not whole or (actions < 0).any() or (actions >= number).any():
                raise UserError(
                    f"Actions {shown(given)} do not fit {count} observations: give each a whole number from 0 to "
                    f"{number - 1}."
                )
            return torch.as_tensor(actions.astype(np.int64))
        size = int(np.prod(self.info.action_shape))
        if actions.shape[:1] != (count,) or actions[0].size != size or not np.issubdtype(actions.dtype, np.number):
            raise UserError(f"Actions {shown(given)} do not fit {count} observations: give each {size} numbers.")
        return torch.as_tensor(actions.reshape(count, -1).astype(np.float32))


def batched(obs: Any, info: EnvInfo) -> tuple[np.ndarray, bool]:
    """Observations as a batch (B, *obs_shape) of the kind that the networks take, and whether it was one alone."""
    array = np.asarray(obs)
    alone = array.shape == info.obs_shape
    if not alone and array.shape[1:] != info.obs_shape:
        raise UserError(
            f"Observations of shape {array.shape} do not fit: give {info.obs_shape} or (B, "
            f"{', '.join(map(str, info.obs_shape))}), as the environment of Taught.make_env() does."
        )
    if info.image and array.dtype != np.uint8:
        raise UserError(f"Images of {array.dtype} do not fit: give uint8, from 0 to 255.")
    return np.asarray(array[None] if alone else array, np.uint8 if info.image else np.float32), alone


def shown(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}" if array.size > 8 else np.array2string(array, separator=", ")


# ---------------------------------------------------------------------------------------------- environments


class AgentView(gymnasium.Env[np.ndarray, Any]):
    """One environment as the agent of a session sees it, its reward untouched."""

    def __init__(self, config: Config, render: bool = False) -> None:
        self._twin = Twin(config, render)
        self.render_mode = "rgb_array" if render else None
        info = self._twin.info
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": info.fps}
        low, high, dtype = (0, 255, np.uint8) if info.image else (-np.inf, np.inf, np.float32)
        self.observation_space = spaces.Box(low, high, info.obs_shape, dtype)
        self.action_space: spaces.Space[Any]
        if info.num_actions:
            self.action_space = spaces.Discrete(info.num_actions)
        else:
            lowest, highest = (bound.astype(np.float32) for bound in info.action_bounds())
            self.action_space = spaces.Box(lowest, highest, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        return self._twin.reset(number), {}

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        return self._twin.step(action)

    def render(self) -> Any:
        return self._twin.frame() if self.render_mode else None

    def close(self) -> None:
        self._twin.close()


def flat(space: spaces.Space[Any], obs: Any, info: EnvInfo) -> np.ndarray:
    """An observation of an environment as the agent sees it."""
    return np.asarray(obs) if info.image else np.asarray(spaces.flatten(space, obs), np.float32)


def check_spaces(observations: spaces.Space[Any], actions: spaces.Space[Any], info: EnvInfo) -> None:
    """Raises UserError where what was taught says nothing of an environment with these spaces."""
    if info.image:
        fits = isinstance(observations, spaces.Box) and observations.dtype == np.uint8
        fits = fits and observations.shape == info.obs_shape
    else:
        fits = observations.is_np_flattenable and spaces.flatdim(observations) == info.obs_shape[0]
    if not fits:
        raise UserError(
            f"The reward was taught on observations of shape {info.obs_shape}, and the environment gives "
            f"{observations}: take the environment of Taught.make_env()."
        )
    if info.num_actions:
        fits = isinstance(actions, spaces.Discrete) and int(actions.n) == info.num_actions
    else:
        fits = isinstance(actions, spaces.Box) and actions.shape == info.action_shape
    if not fits:
        wanted = f"{info.num_actions} discrete actions" if info.num_actions else f"actions of shape {info.action_shape}"
        raise UserError(f"The reward was taught on {wanted}, and the environment takes {actions}.")


def from_zero(space: spaces.Space[Any], actions: np.ndarray) -> np.ndarray:
    """Discrete actions counted from 0, continuous ones clipped to their bounds, as the environment takes them."""
    if isinstance(space, spaces.Discrete):
        return actions - int(space.start)
    return np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions


class RewardWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Gives the learned reward instead of the environment's own, which goes into info["true_reward"].

    Here an end is worth r_abs / (1 - gamma) for ever after (docs/architecture.md, "Episode ends"). Other learners take
    what comes after a termination for nothing, so the reward of the step that terminates holds it, discounted once:
    r(o, a) + gamma r_abs(o') / (1 - gamma).

    Args:
        taught: of `load`.
        gamma: the discount of whoever learns from it; None: the session's own.

    Raises:
        UserError: the environment has other observations or actions than the one it was taught on.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], taught: Taught, gamma: float | None = None) -> None:
        super().__init__(env)
        check_spaces(env.observation_space, env.action_space, taught.info)
        self._learned, self._info = taught.reward_model, taught.info
        self._gamma = taught.config.gamma if gamma is None else gamma
        self._obs = np.zeros(taught.info.obs_shape, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._obs = flat(self.env.observation_space, obs, self._info).copy()
        return obs, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, true_reward, terminated, truncated, info = self.env.step(action)
        reward = self._learned.reward(self._obs, from_zero(self.env.action_space, np.asarray(action)))
        self._obs = flat(self.env.observation_space, obs, self._info).copy()
        if terminated:
            reward += self._gamma * self._learned.after_end(self._obs)
        return obs, reward, terminated, truncated, {**info, "true_reward": float(true_reward)}


class VectorRewardWrapper(gymnasium.vector.VectorWrapper):
    """As RewardWrapper, for N environments side by side; infos["true_reward"] is (N,).

    With gymnasium's NEXT_STEP the step after an end is a reset: it has no reward, as always.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv[Any, Any, Any], taught: Taught, gamma: float | None = None):
        super().__init__(env)
        check_spaces(env.single_observation_space, env.single_action_space, taught.info)
        self._mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._learned, self._info = taught.reward_model, taught.info
        self._gamma = taught.config.gamma if gamma is None else gamma
        self._obs = np.zeros((env.num_envs, *taught.info.obs_shape), np.float32)
        self._resets = np.zeros(env.num_envs, bool)  # where the next step is a reset

    def _seen(self, obs: Any) -> np.ndarray:
        space = self.env.single_observation_space
        if self._info.image:
            return np.array(obs)
        return np.stack([flat(space, one, self._info) for one in iterate(self.env.observation_space, obs)])

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, infos = self.env.reset(seed=seed, options=options)
        mask = (options or {}).get("reset_mask")
        self._resets &= False if mask is None else ~np.asarray(mask)
        self._obs = self._seen(obs)
        return obs, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        obs, true_rewards, terminated, truncated, infos = self.env.step(actions)
        rewards = np.asarray(
            self._learned.reward(self._obs, from_zero(self.env.single_action_space, np.asarray(actions))), np.float64
        )
        seen = self._seen(obs)
        last = seen
        if self._mode == AutoresetMode.SAME_STEP and "final_obs" in infos:
            last = seen.copy()
            for i in np.flatnonzero(infos["_final_obs"]):
                last[i] = flat(self.env.single_observation_space, infos["final_obs"][i], self._info)
        rewards += np.where(terminated, self._gamma * self._learned.after_end(last), 0.0)
        rewards = np.where(self._resets, 0.0, rewards)
        if self._mode == AutoresetMode.NEXT_STEP:
            self._resets = terminated | truncated
        self._obs = seen
        told = {"true_reward": np.asarray(true_rewards, np.float64), "_true_reward": ~np.zeros(self.num_envs, bool)}
        return obs, rewards, terminated, truncated, {**infos, **told}


# ---------------------------------------------------------------------------------------------- labels


class LabelDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The labels of a session: pairs that were called left, right or equal. Its files are read as they are asked for.

    An item holds "left" and "right", dicts of observations (T, *obs_shape), actions (T,) or (T, A) in the environment's
    own units and absorbing (T,), T the same for both; "target", P(left is better) as the label says it (0.95 or 0.05,
    1 or 0 where it was said strongly, 0.5 for equal); "pair" and "round", whole numbers.

    Raises:
        UserError: there is no such session.
    """

    def __init__(self, session_dir: str | os.PathLike[str]) -> None:
        session = open_dir(session_dir)
        self._session = session
        forgotten = session.wishes().forgotten
        self.pairs: list[Pair] = [
            p for p in session.pairs() if p.choice in ("left", "right", "equal") and (p.label_id or 0) > forgotten
        ]
        self._clips = session.clips([c for p in self.pairs for c in (p.left_clip, p.right_clip)])
        session.close()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        item: dict[str, Any] = {"pair": pair.id, "round": pair.round, "target": target(pair)}
        for side, clip in (("left", pair.left_clip), ("right", pair.right_clip)):
            segment = load_clip(self._session, self._clips[clip])
            arrays = {"observations": segment.observations, "actions": segment.actions, "absorbing": segment.absorbing}
            item[side] = {name: torch.as_tensor(np.array(array)) for name, array in arrays.items()}
        return item
