"""What a person taught, from Python: the agent, the reward model, environments that pay by it, and the labels.

    taught = rlhf_gym.load("data/cartpole-1")
    action = taught.policy.act(obs)
    reward = taught.reward_model.reward(obs, action)
    env = rlhf_gym.RewardWrapper(gymnasium.make("CartPole-v1"), taught)
    labels = rlhf_gym.LabelDataset("data/cartpole-1")

The session's directory and a CPU are enough. Nothing in the session is changed, save that one of an older format is
brought up to date first; nothing that it names is run, save by `Taught.make_env`. docs/api.md has it at length.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import sqlalchemy as sa
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from torch.utils.data import Dataset

from rlhf_gym import catalog, faults, trust
from rlhf_gym.checkpoints import Snapshot
from rlhf_gym.config import Config, UserError
from rlhf_gym.envs import EnvInfo, Twin
from rlhf_gym.segments import Segment, load_segment
from rlhf_gym.store import Pair, Session
from rlhf_gym.train import Agent, RewardModel

CHOSEN = {"left": 1.0, "equal": 0.5, "right": 0.0}


@contextlib.contextmanager
def opened(session_dir: str | os.PathLike[str]) -> Iterator[Session]:
    """A session by its directory, closed again; what is wrong with it is a UserError."""
    path = Path(os.path.abspath(Path(session_dir).expanduser()))
    try:
        session = catalog.open_session(path.parent, path.name)
        try:
            yield session
        finally:
            session.close()
    except sa.exc.DatabaseError as error:
        raise UserError(faults.sentence(error, path) or f"The database of {path} cannot be read ({error}).") from None


def load(session_dir: str | os.PathLike[str], round: int | None = None, device: torch.device | str = "cpu") -> Taught:
    """The agent and the reward model of a session, wherever they were trained.

    Args:
        session_dir: e.g. "data/cartpole-1".
        round: None means the newest, as in `rlhf-gym watch`; -1 the untrained agent.
        device: where the networks shall be.

    Raises:
        UserError: there is no such session or round, or it cannot be read.
    """
    with opened(session_dir) as session, torch.random.fork_rng([]):  # your own seed goes on as if nothing had been
        config = session.config
        snapshot = Snapshot.load(session.checkpoint(session.resolve_round(round)), device, of=config)
        return Taught(session.name, snapshot.round, snapshot.config, snapshot.info, snapshot.agent, snapshot.reward,
                      foreign=would_run(session, config))  # fmt: skip


def would_run(session: Session, config: Config) -> str:
    """What making the environment of somebody else's session would run; "" if it is one's own, or brings nothing."""
    given = trust.brings(replace(config, score="", track=False))  # only its loop does these
    with contextlib.suppress(UserError):  # without a key none is one's own
        if not given or trust.is_signed(session, config):
            return ""
    return ", ".join(f"{trust.NAMES[k]} {trust.quote(v)[: trust.MAX_SHOWN]}" for k, v in given.items())


# ---------------------------------------------------------------------------------------------- agent and reward model


@dataclass(frozen=True)
class Taught:
    """What a round of a session came to. It can be pickled, and needs the session no more."""

    name: str
    """Of the session."""
    round: int
    config: Config
    """Every setting, as the round was trained with."""
    info: EnvInfo
    """What the environment is, and what the agent sees of it."""
    agent: Agent
    """The network itself, a torch module."""
    network: RewardModel | None
    """The reward model's networks, a torch module; None before the first labels."""
    foreign: str = ""
    """What `make_env` would run of somebody else's; "" if nothing."""

    @functools.cached_property
    def policy(self) -> Policy:
        return Policy(self.agent, self.info)

    @property
    def reward_model(self) -> LearnedReward:
        """Raises UserError where nothing was learned yet."""
        if self.network is None:
            raise UserError(
                f"Session {self.name!r} has no reward model in round {self.round}, that of the untrained agent: label "
                "a batch, or choose another round."
            )
        return LearnedReward(self.network, self.agent, self.info, self.config)

    @property
    def observation_space(self) -> spaces.Box:
        """What the agent sees: a vector, or stacked gray images (stack, H, W)."""
        if self.info.image:
            return spaces.Box(0, 255, self.info.obs_shape, np.uint8)
        return spaces.Box(-np.inf, np.inf, self.info.obs_shape, np.float32)

    @property
    def action_space(self) -> spaces.Discrete | spaces.Box:
        """What `policy.act` returns: counted from 0, or a vector within the environment's bounds."""
        if self.info.num_actions is not None:
            return spaces.Discrete(self.info.num_actions)
        low, high = (bound.astype(np.float32) for bound in self.info.action_bounds())
        return spaces.Box(low, high, dtype=np.float32)

    def make_env(self, *, render: bool = False, trust: bool = False) -> gymnasium.Env[np.ndarray, Any]:
        """The session's environment as its agent sees it: flat vectors, or stacked gray images; Atari as preprocessed.

        Its reward is the environment's own.

        Args:
            render: whether `render()` will be called; it returns (H, W, 3) uint8.
            trust: run the code that somebody else's session names.

        Raises:
            UserError: it is somebody else's and not trusted, or cannot be made here.
        """
        if self.foreign and not trust:
            raise UserError(
                f"Session {self.name!r} was not made by you on this machine and would run code of its own "
                f"({self.foreign}): look at that, and confirm it with make_env(trust=True)."
            )
        return AgentView(self, render)


class Policy:
    """The agent."""

    def __init__(self, agent: Agent, info: EnvInfo) -> None:
        self._agent, self._info = agent, info
        self._generator: torch.Generator | None = None

    def seed(self, seed: int) -> None:
        """Of the actions drawn with deterministic=False."""
        self._generator = torch.Generator(self._agent_device()).manual_seed(seed)

    def act(self, obs: np.ndarray, deterministic: bool = True) -> Any:
        """What the agent does, as the environment takes it.

        Args:
            obs: one observation, obs_shape, or B of them, (B, *obs_shape).
            deterministic: the likeliest action; else one is drawn.

        Returns:
            one action: a number counted from 0, or (A,) float32 within the bounds; of a batch (B,) or (B, A).
        """
        batch, single = batched(obs, self._info)
        if not deterministic and self._generator is None:
            self.seed(secrets.randbits(63))  # torch.seed() would begin the caller's own random numbers anew
        actions = self._agent.act(batch, None if deterministic else self._generator)
        return actions[0] if single else actions

    def _agent_device(self) -> torch.device:
        return next(self._agent.parameters()).device


class LearnedReward:
    """The reward model: what the person seems to want, about mean zero, and a spread of 10 (1 - gamma) over clips."""

    def __init__(self, network: RewardModel, agent: Agent, info: EnvInfo, config: Config) -> None:
        self._network, self._agent, self._info, self._config = network, agent, info, config

    @property
    def sees_next(self) -> bool:
        """Whether what a step led to matters, and what was seen before an end (--reward-potential)."""
        return self._network.potential is not None

    def reward(self, obs: np.ndarray, action: Any, next_obs: np.ndarray | None = None) -> Any:
        """The predicted reward of an action taken on seeing obs: a float, or (B,) float32 of a batch.

        Args:
            obs: obs_shape, or (B, *obs_shape).
            action: as the environment takes it, counted from 0 or within its bounds (what lies beyond is clipped).
            next_obs: what it led to, shaped as obs; None where the episode ended by it: the step has gained nothing.
        """
        batch, single = batched(obs, self._info)
        actions = np.asarray(action)
        wanted = self._info.action_shape
        if actions.shape != (wanted if single else (len(batch), *wanted)):
            given = shape_wanted(wanted, None if single else len(batch))
            raise UserError(f"The actions have the shape {actions.shape}: {given}")
        rewards = self._ask(batch, actions[None] if single else actions, False, self._beside(batch, next_obs))
        return float(rewards[0]) if single else rewards

    def end_reward(self, final_obs: np.ndarray, before: np.ndarray | None = None) -> Any:
        """r_abs: what each of the steps after an episode gives that terminated in final_obs. Shapes as of `reward`.

        Args:
            before: what was seen just before; None: the same.
        """
        batch, single = batched(final_obs, self._info)
        actions = np.zeros((len(batch), *self._info.action_shape), np.float32)
        rewards = self._ask(batch, actions, True, self._beside(batch, before))
        return float(rewards[0]) if single else rewards

    def end_worth(self, final_obs: np.ndarray, gamma: float | None = None, before: np.ndarray | None = None) -> Any:
        """What all steps after a termination are worth together, r_abs / (1 - gamma), as in training here.

        0 with episode_ends "hide", where an end means nothing.

        Args:
            gamma: None means the session's.
            before: see `end_reward`.
        """
        gamma = checked_gamma(self._config.gamma if gamma is None else gamma)
        hidden = self._config.episode_ends == "hide"
        return self.end_reward(final_obs, before) * (0.0 if hidden else 1 / (1 - gamma))

    def _beside(self, batch: np.ndarray, other: np.ndarray | None) -> np.ndarray:
        """The observations that stand beside those of a batch, which they are as many as."""
        beside = batch if other is None else batched(other, self._info)[0]
        if len(beside) != len(batch):
            raise UserError(f"{len(beside)} observations are given beside {len(batch)}: give as many.")
        return beside

    def _ask(self, obs: np.ndarray, actions: np.ndarray, ended: bool, beside: np.ndarray) -> np.ndarray:
        """obs, beside (B, *obs_shape), actions (B,) or (B, A) -> (B,) float32."""
        device = self._network.scale.device
        if self._info.num_actions is not None:
            wrong = (actions < 0) | (actions >= self._info.num_actions) | (actions != np.floor(actions))
            if wrong.any():
                last = self._info.num_actions - 1
                raise UserError(f"There is no action {actions[wrong][0]}: they are whole numbers from 0 to {last}.")
            x = torch.as_tensor(actions.astype(np.int64), device=device)
        else:
            x = self._agent.from_env(torch.as_tensor(actions.astype(np.float32), device=device))
        over = torch.full((len(obs),), ended, device=device)
        other = None if self._network.potential is None else torch.as_tensor(beside, device=device)
        return self._network.reward(torch.as_tensor(obs, device=device), x, over, other).cpu().numpy()


def batched(obs: np.ndarray, info: EnvInfo) -> tuple[np.ndarray, bool]:
    """Observations as the networks take them, (B, *obs_shape), and whether there was one alone.

    Raises:
        UserError: another shape, or images that are not bytes.
    """
    array = np.asarray(obs)
    single = array.shape == info.obs_shape
    if not single and array.shape[1:] != info.obs_shape:
        raise UserError(f"The observations have the shape {array.shape}: {shape_wanted(info.obs_shape)}")
    if info.image and array.dtype != np.uint8:
        raise UserError(f"The observations are {array.dtype}: the agent sees images of uint8, from 0 to 255.")
    array = np.ascontiguousarray(array, np.uint8 if info.image else np.float32)
    return (array[None] if single else array), single


def shape_wanted(shape: tuple[int, ...], batch: int | None = None) -> str:
    together = ", ".join(["B" if batch is None else str(batch), *map(str, shape)])
    return f"give {shape or 'a number'} for one, or ({together}) for a batch."


def checked_gamma(gamma: float) -> float:
    if not 0 <= gamma < 1:
        raise UserError(f"gamma {gamma} is out of range: give a value from 0 to below 1.")
    return gamma


class AgentView(gymnasium.Env[np.ndarray, Any]):
    """See Taught.make_env. An episode is the seed of its reset and its actions."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012, gymnasium has it so

    def __init__(self, taught: Taught, render: bool) -> None:
        self._twin = Twin(taught.config, render)
        self.render_mode = "rgb_array" if render else None
        self.metadata = {**self.metadata, "render_fps": taught.info.fps}
        self.observation_space, self.action_space = taught.observation_space, taught.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self._twin.reset(int(self.np_random.integers(2**31)) if seed is None else seed), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self._twin.step(action)

    def render(self) -> Any:
        return self._twin.frame() if self.render_mode else None

    def close(self) -> None:
        self._twin.close()


# ---------------------------------------------------------------------------------------------- environments


class View:
    """How the observations and actions of an environment become those of a taught agent.

    Raises:
        UserError: they are not what the session was taught on.
    """

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any], taught: Taught) -> None:
        info = taught.info
        self._space, self._shape = observations, info.action_shape
        self._start = int(actions.start) if isinstance(actions, spaces.Discrete) else 0
        self._flat = not info.image and not (isinstance(observations, spaces.Box) and len(observations.shape) == 1)
        if not same_observations(observations, info):
            raise UserError(
                f"The environment shows {observations}, and the reward model of session {taught.name!r} was taught on "
                f"{taught.observation_space}: {remedy(taught)}"
            )
        if not same_actions(actions, info):
            raise UserError(
                f"The environment takes {actions}, and the reward model of session {taught.name!r} was taught on "
                f"{taught.action_space}: put what changes actions around the reward wrapper, not into it."
            )

    def obs(self, obs: Any) -> np.ndarray:
        """One observation, as a copy."""
        return np.array(spaces.flatten(self._space, obs) if self._flat else obs)

    def many(self, obs: np.ndarray) -> np.ndarray:
        """(N, …) observations -> (N, *obs_shape), as a copy."""
        return np.array(obs).reshape(len(obs), -1) if self._flat else np.array(obs)

    def actions(self, actions: Any, batch: tuple[int, ...] = ()) -> np.ndarray:
        """One action, or N of them with batch=(N,), as `LearnedReward.reward` takes them."""
        return (np.asarray(actions) - self._start).reshape((*batch, *self._shape))


def same_observations(space: spaces.Space[Any], info: EnvInfo) -> bool:
    """Whether these are what the agent sees, or become it by being flattened as envs.py does."""
    if info.image:
        return space.shape == info.obs_shape and space.dtype == np.uint8
    known = not isinstance(space, spaces.Dict | spaces.Text) and space.is_np_flattenable
    return known and (spaces.flatdim(space),) == info.obs_shape


def same_actions(space: spaces.Space[Any], info: EnvInfo) -> bool:
    if info.num_actions is not None:
        return isinstance(space, spaces.Discrete) and int(space.n) == info.num_actions
    if not isinstance(space, spaces.Box) or int(np.prod(space.shape)) != info.action_shape[0]:
        return False
    bounds = ((space.low, info.action_low), (space.high, info.action_high))
    return all(np.allclose(theirs.ravel(), np.asarray(ours), rtol=1e-5) for theirs, ours in bounds)


def remedy(taught: Taught) -> str:
    """What to wrap instead."""
    config = taught.config
    if taught.info.kind == "atari":
        size, stack = config.image_size, config.frame_stack
        return (
            f'use taught.make_env(), or gymnasium.make_vec("{config.env_id}", N, vectorization_mode='
            f'"vector_entry_point", img_height={size}, img_width={size}, stack_num={stack}, '
            f"frameskip={config.frameskip})."
        )
    return "wrap the environment it was taught on, which taught.make_env() makes as the agent saw it."


class RewardWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that pays the learned reward; what it pays itself is in info["true_reward"].

    Episode ends. Here, a life goes on for ever after a termination, each step giving r_abs, so that an end is worth
    r_abs / (1 - gamma) (docs/architecture.md, "Episode ends"). Other libraries take what follows a termination to be
    worth nothing, and with rewards about zero their agents would neither seek nor shun an end as they were taught to.
    So the last step pays for the rest: r + gamma * r_abs / (1 - gamma). Give the learner's own gamma if it is another
    than the session's. A truncation adds nothing: the learner goes on from the value of what was seen last, as it
    should. With episode_ends "hide" nothing is added either.

    Args:
        env: shows what the session was taught on; nothing in it may change observations or actions.
        taught: from `rlhf_gym.load`.
        gamma: the learner's discount; None means the session's.
        ends: False leaves what an end is worth to you (`taught.reward_model.end_worth`).

    Raises:
        UserError: observations or actions are not those the reward model was taught on.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], taught: Taught, gamma: float | None = None, ends: bool = True
    ) -> None:
        super().__init__(env)
        self._view, self._model = View(env.observation_space, env.action_space, taught), taught.reward_model
        self._gamma = checked_gamma(taught.config.gamma if gamma is None else gamma)
        self._ends = ends
        self._obs: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._obs = self._view.obs(obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._obs is None:
            raise gymnasium.error.ResetNeeded("Cannot call env.step() before calling env.reset()")
        obs, true_reward, terminated, truncated, info = self.env.step(action)
        before, self._obs = self._obs, self._view.obs(obs)
        reward = self._model.reward(before, self._view.actions(action), None if terminated else self._obs)
        if terminated and self._ends:
            reward += self._gamma * self._model.end_worth(self._obs, self._gamma, before)
        return obs, reward, bool(terminated), bool(truncated), {**info, "true_reward": float(true_reward)}


class VectorRewardWrapper(VectorWrapper[Any, Any, Any, Any, Any]):
    """As RewardWrapper, of environments side by side, and faster: the reward model sees all at once.

    Whichever way they reset themselves (autoreset_mode): what was seen last is judged, not what a new episode begins
    with, and a step that only resets (NEXT_STEP) pays 0.

    Args and raises as of RewardWrapper.
    """

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], taught: Taught, gamma: float | None = None, ends: bool = True
    ) -> None:
        super().__init__(envs)
        space = envs.single_observation_space
        if not isinstance(space, spaces.Box):
            raise UserError(f"The environments show {space}: put a RewardWrapper around each of them instead.")
        self._mode = envs.metadata.get("autoreset_mode")
        if not isinstance(self._mode, AutoresetMode):
            raise UserError(
                f'The environments do not say how they reset themselves (metadata["autoreset_mode"] is '
                f"{self._mode!r}): put a RewardWrapper around each of them instead."
            )
        self._view, self._model = View(space, envs.single_action_space, taught), taught.reward_model
        self._gamma = checked_gamma(taught.config.gamma if gamma is None else gamma)
        self._ends = ends
        self._obs: np.ndarray | None = None
        self._over = np.zeros(envs.num_envs, bool)  # before the step at hand: the episode has ended

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).get("reset_mask")  # environments take it out
        obs, infos = self.env.reset(seed=seed, options=options)
        self._over[slice(None) if mask is None else mask] = False
        self._obs = self._view.many(obs)
        return obs, infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._obs is None:
            raise gymnasium.error.ResetNeeded("Cannot call envs.step() before calling envs.reset()")
        obs, true_rewards, terminated, truncated, infos = self.env.step(actions)
        count = (self.num_envs,)
        before, self._obs = self._obs, self._view.many(obs)
        ended, self_reset = np.flatnonzero(terminated), self._mode == AutoresetMode.SAME_STEP
        led = None
        if self._model.sees_next:
            led = self._obs.copy()
            for i in np.flatnonzero(truncated) if self_reset else ():
                led[i] = self._view.many(infos["final_obs"][i][None])[0]
            led[ended] = before[ended]
        rewards = self._model.reward(before, self._view.actions(actions, count), led).astype(np.float64)
        if self._mode == AutoresetMode.NEXT_STEP:
            rewards[self._over] = 0.0
        if len(ended) and self._ends:
            last = self._obs[ended]
            if self_reset:
                last = self._view.many(np.stack([infos["final_obs"][i] for i in ended]))
            rewards[ended] += self._gamma * self._model.end_worth(last, self._gamma, before[ended])
        self._over = np.asarray(terminated | truncated)
        given = {"true_reward": np.array(true_rewards), "_true_reward": np.ones(count, bool)}
        return obs, rewards, terminated, truncated, {**infos, **given}


# ---------------------------------------------------------------------------------------------- labels


class LabelDataset(Dataset[dict[str, Any]]):
    """The labels of a session that say something: better, or equal. Those that could not tell are left out.

    Each item is a dict of
        left_obs, right_obs: (T, *obs_shape) float32 or uint8: raw; after an episode's end what was seen last, held
        left_actions, right_actions: (T,) int64 or (T, A) float32, as the environment took them; 0 where absorbing
        left_absorbing, right_absorbing: (T,) bool: the steps after the end
        target: float32: 1 if left is better, 0 if right is, 0.5 if they are equal
        strength: "normal" or "strong" (much better)
        round: of the agent in the clips
        pair: its id
        original: the pair that it repeats with sides swapped, else its own id; keep both on one side of a split

    T is one number for both clips of a pair, and for all pairs unless the session's clip_seconds was changed.

    Attributes:
        damaged: what was wrong with clips that cannot be read; their pairs are left out.

    Raises:
        UserError: there is no such session, or it cannot be read.
    """

    def __init__(self, session_dir: str | os.PathLike[str]) -> None:
        with opened(session_dir) as session:
            after, clips = session.wishes().forgotten, session.clips()
            pairs = [p for p in session.pairs() if p.choice in CHOSEN and p.counts(after)]
            used = sorted({c for p in pairs for c in (p.left_clip, p.right_clip)})
            files = {i: session.file(clips[i].path) for i in used}
        self.damaged: list[str] = []
        self._files: dict[int, Path] = {}
        self._kept: dict[int, Segment] = {}  # vectors; images are read again, as all of them may not fit into memory
        for i, file in files.items():
            if file is None:
                self.damaged.append(
                    f"Clip {clips[i].path[:200]!r} cannot be read (there is no such file in its session)."
                )
                continue
            try:
                segment = load_segment(file)
            except UserError as error:
                self.damaged.append(str(error))
                continue
            self._files[i] = file
            if segment.observations.dtype != np.uint8:
                self._kept[i] = segment
        self.pairs: list[Pair] = [p for p in pairs if {p.left_clip, p.right_clip} <= set(self._files)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        item: dict[str, Any] = {
            "target": torch.tensor(CHOSEN[pair.choice or "equal"]), "strength": pair.strength, "round": pair.round,
            "pair": pair.id, "original": pair.repeat_of or pair.id,
        }  # fmt: skip
        for side, clip in (("left", pair.left_clip), ("right", pair.right_clip)):
            segment = self._kept.get(clip) or load_segment(self._files[clip])
            item[f"{side}_obs"] = torch.tensor(segment.observations)
            item[f"{side}_actions"] = torch.tensor(segment.actions)
            item[f"{side}_absorbing"] = torch.tensor(segment.absorbing)
        return item
