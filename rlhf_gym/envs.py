"""Environments: many side by side for acting and learning (`Envs`), and one that can be seen (`Twin`).

An episode is a seed and its actions. Every reset has an explicit seed, so that `Twin` can play any episode of `Envs`
again, bit for bit, and show it. `describe` says what an environment is before a session is made of it.
Nothing here imports torch; emulators and simulators are loaded when an environment needs them.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from rlhf_gym.atari import AtariOne, AtariVector, is_atari
from rlhf_gym.config import Config, UserError
from rlhf_gym.spec import EnvInfo, find_spec, raised, said
from rlhf_gym.watchdog import CALL

SMALLEST_IMAGE = 36  # pixels: what Christiano's CNN (7-5-3-3 kernels, strides 3-2-1-1) needs
DEFAULT_FPS = 30.0
EGL_REMEDY = ". On Debian: apt install libegl1 libgl1-mesa-dri, and leave MUJOCO_GL unset."
# Their reset keeps the Box2D world, which remembers: 14 of 25 BipedalWalker episodes differed from fresh ones.
WORLDS_THAT_REMEMBER = ("gymnasium.envs.box2d.bipedal_walker", "gymnasium.envs.box2d.car_racing")


@dataclass
class Step:
    """What one step of N environments led to. Arrays are the caller's to keep, but not to write into."""

    obs: np.ndarray
    """(N, *obs_shape): to act on next; already the new episode's where one ended."""
    rewards: np.ndarray
    """(N,) float32: the environment's own reward, untouched."""
    terminated: np.ndarray
    """(N,) bool"""
    truncated: np.ndarray
    """(N,) bool"""
    final_obs: np.ndarray
    """(N, *obs_shape): what the step itself led to; the same array as `obs` if no episode ended."""
    infos: list[dict[str, Any]]
    """The environments' own infos of this step, never those of a reset."""

    def info_of(self, i: int) -> dict[str, float]:
        """The numbers in environment i's info (arrays, texts and nested dicts are left out)."""
        return numbers(self.infos[i])


def numbers(info: dict[str, Any]) -> dict[str, float]:
    """The scalars of an info dict as floats."""
    return {k: float(v) for k, v in info.items() if isinstance(v, int | float | np.number | np.bool_)}


def describe(config: Config) -> EnvInfo:
    """Makes the environment, resets it once, and says what it is.

    Needs only env_id, env_kwargs, pixels, image_size, frame_stack and frameskip of the config, so it works before
    the preset of its kind is known: `resolve(explicit, describe(Config(**explicit)).kind)`.

    Raises:
        UserError: if rlhf-gym cannot use the environment, with what to do about it.
    """
    env = make_one(config, render=False)
    try:
        env.reset(0)
        return env.info
    finally:
        env.close()


def require_render(config: Config) -> None:
    """Draws one frame, and so raises the UserError now that the first clip would raise after a round's work."""
    twin = Twin(config)
    try:
        twin.reset(0)
        twin.frame()
    finally:
        twin.close()


# --- many side by side ------------------------------------------------------------------------------------------


class Envs:
    """N environments, reset as soon as an episode ends, each episode with a seed of its own.

    Args:
        config: the session's settings.
        num_envs: N.
        seed_path: whole numbers that name this use of the environments, e.g. (seed, round, phase). Episode k of
            environment i has a seed derived from (*seed_path, i, k), so it never depends on what else ran.

    Raises:
        UserError: as `describe`.
    """

    episode_seeds: np.ndarray
    """(N,) int64: the seeds with which the running episodes were reset."""

    def __init__(self, config: Config, num_envs: int, seed_path: tuple[int, ...]) -> None:
        assert num_envs > 0, num_envs
        self.num_envs = num_envs
        self.episode_seeds = np.zeros(num_envs, np.int64)
        self._id = config.env_id
        self._seed_path = tuple(seed_path)
        self._episodes = [0] * num_envs  # begun so far
        with CALL.into(self._id):
            self._vector = AtariVector(config, num_envs) if is_atari(config) else Loop(config, num_envs)
        self.info: EnvInfo = self._vector.info

    def reset(self) -> np.ndarray:
        """Begins a new episode everywhere. Returns (N, *obs_shape)."""
        with CALL.into(self._id):
            return self._vector.reset(self._new_seeds(np.ones(self.num_envs, bool)))

    def step(self, actions: np.ndarray) -> Step:
        """Steps everywhere, then begins new episodes where one ended.

        Args:
            actions: (N,) whole numbers below num_actions, or (N, A) floats, which are clipped to the bounds.
        """
        with CALL.into(self._id):
            obs, rewards, terminated, truncated, infos = self._vector.step(actions)
            ended = terminated | truncated
            next_obs = self._vector.restart(obs, ended, self._new_seeds(ended)) if ended.any() else obs
        return Step(next_obs, rewards, terminated, truncated, obs, infos)

    def close(self) -> None:
        self._vector.close()

    def _new_seeds(self, where: np.ndarray) -> np.ndarray:
        for i in np.flatnonzero(where):
            entropy = (*self._seed_path, int(i), self._episodes[i])
            # 31 bits: ALE takes a signed int, in which negative means "no seed"
            self.episode_seeds[i] = np.random.SeedSequence(entropy).generate_state(1)[0] >> 1
            self._episodes[i] += 1
        return self.episode_seeds


class EnvironmentFault(UserError):
    """An environment, whose code is not ours, failed or gave what it must not."""


def refuse_infinite(env_id: str, obs: np.ndarray) -> None:
    """Of observations (N, *obs_shape): a network that learns from NaN or infinity is lost for good."""
    if obs.dtype == np.float32 and not (finite := np.isfinite(obs)).all():
        wrong = obs[int(finite.reshape(len(obs), -1).all(1).argmin())]
        raise EnvironmentFault(f"{env_id} gave an observation with NaN or infinity in it: {wrong}")


class Loop:
    """N gymnasium environments, one after the other. About as fast as SyncVectorEnv, with a dict of info for each."""

    def __init__(self, config: Config, num_envs: int) -> None:
        self.envs = [GymEnv(config, render=False) for _ in range(num_envs)]
        self.info = self.envs[0].info
        self._dtype = np.uint8 if self.info.image else np.float32

    def _empty(self) -> np.ndarray:
        return np.empty((len(self.envs), *self.info.obs_shape), self._dtype)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        obs = self._empty()
        for i, env in enumerate(self.envs):
            obs[i] = env.reset(int(seeds[i]))
        refuse_infinite(self.envs[0].id, obs)
        return obs

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, n = self._empty(), len(self.envs)
        rewards, terminated, truncated = np.empty(n, np.float32), np.empty(n, bool), np.empty(n, bool)
        infos = []
        for i, (env, action) in enumerate(zip(self.envs, self.envs[0].native(actions), strict=True)):
            obs[i], rewards[i], terminated[i], truncated[i], info = env.step(action)
            infos.append(info)
        refuse_infinite(self.envs[0].id, obs)
        return obs, rewards, terminated, truncated, infos

    def restart(self, obs: np.ndarray, ended: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        obs = obs.copy()
        for i in np.flatnonzero(ended):
            obs[i] = self.envs[i].reset(int(seeds[i]))
        refuse_infinite(self.envs[0].id, obs)
        return obs

    def close(self) -> None:
        for env in self.envs:
            env.close()


# --- one that can be seen ---------------------------------------------------------------------------------------


class Twin:
    """One environment that plays any episode of `Envs` again and can be looked at.

    Args:
        config: the session's settings.
        render: False if `frame` will not be called, which is cheaper.

    Raises:
        UserError: as `describe`, and if the environment cannot render to an array.
    """

    def __init__(self, config: Config, render: bool = True) -> None:
        self._id = config.env_id
        with CALL.into(self._id):
            self._env = make_one(config, render)
        self.info: EnvInfo = self._env.info

    def reset(self, seed: int) -> np.ndarray:
        """Returns obs_shape."""
        with CALL.into(self._id):
            return self._copy(self._env.reset(int(seed)))

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """(observation, true reward, terminated, truncated, info); reset it yourself when an episode has ended.

        On Atari, info["ram"] is the console's memory, (128,) uint8.
        """
        (native,) = self._env.native(np.asarray(action)[None])
        with CALL.into(self._id):
            obs, reward, terminated, truncated, info = self._env.step(native)
        return self._copy(obs), float(np.float32(reward)), bool(terminated), bool(truncated), info

    def _copy(self, obs: np.ndarray) -> np.ndarray:
        copied = np.array(obs, np.uint8 if self.info.image else np.float32)
        refuse_infinite(self._id, copied[None])
        return copied

    def frame(self) -> np.ndarray:
        """What a person sees now: (H, W, 3) uint8, RGB."""
        with CALL.into(self._id):
            return self._env.frame()

    def action_names(self) -> list[str]:
        """What the environment calls its discrete actions; empty where it does not say."""
        return self._env.action_names()

    def close(self) -> None:
        self._env.close()


def make_one(config: Config, render: bool) -> GymEnv | AtariOne:
    return AtariOne(config, render) if is_atari(config) else GymEnv(config, render)


# --- gymnasium --------------------------------------------------------------------------------------------------


class GymEnv:
    """One gymnasium environment with the agent's view of it: a flat vector, or a stack of gray images."""

    def __init__(self, config: Config, render: bool) -> None:
        self.id = config.env_id
        self._frames = config.pixels
        self._make = lambda: make_gym(config, render or config.pixels)
        self._env = self._make()
        self._forgets = type(self._env.unwrapped).__module__ not in WORLDS_THAT_REMEMBER
        self._size = config.image_size
        self._reset_before = self._drawn_before = False
        self._space: Any = self._env.observation_space
        self._stack: np.ndarray | None = None
        if self._frames or is_image(self._space):
            self._shape = self._image_shape()
            self._stack = np.zeros((config.frame_stack, *self._shape), np.uint8)
        self._plain = type(self._space) is spaces.Box and len(self._space.shape or ()) == 1
        self.info = self._describe()

    def _image_shape(self) -> tuple[int, int]:
        height, width = (self._size, self._size) if self._frames else self._space.shape[:2]
        if not self._frames and self._space.shape[2:] not in ((), (1,), (3,)):
            raise UserError(
                f"{self.id} shows images of shape {self._space.shape}, and rlhf-gym knows (H, W), (H, W, 1) and "
                "(H, W, 3): bring the channels to the end, or learn from its frames with --pixels."
            )
        if min(height, width) < SMALLEST_IMAGE:
            raise UserError(
                f"{self.id} shows images of {height}x{width} pixels, and the networks need {SMALLEST_IMAGE}x"
                f"{SMALLEST_IMAGE} at least: enlarge them in the environment, or learn from its frames with --pixels."
            )
        return (height, width) if max(height, width) <= self._size else (self._size, self._size)

    def _describe(self) -> EnvInfo:
        env = self._env
        space: Any = env.action_space
        obs_shape: tuple[int, ...]
        if self._stack is not None:
            obs_shape = self._stack.shape
        else:
            refuse_observation(self.id, self._space)
            obs_shape = (spaces.flatdim(self._space),)
        discrete = isinstance(space, spaces.Discrete)
        if not discrete and not (isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)):
            raise UserError(
                f"{self.id} has {type(space).__name__} actions, and rlhf-gym knows Discrete and floating-point Box: "
                "wrap the environment so that it has one of these."
            )
        modules = {c.__module__ for c in type(env.unwrapped).__mro__}
        if self._stack is not None:
            kind = "pixels"
        elif any(m.startswith("gymnasium.envs.mujoco") for m in modules):
            kind = "mujoco-falls" if getattr(env.unwrapped, "_terminate_when_unhealthy", False) else "mujoco"
        elif any(m.startswith("gymnasium.envs.box2d") for m in modules):
            kind = "box2d"
        else:
            kind = "classic" if discrete else "classic-continuous"
        fps = float(env.metadata.get("render_fps") or DEFAULT_FPS)
        limit = env.spec.max_episode_steps if env.spec else None
        if discrete:
            return EnvInfo(kind, obs_shape, self._stack is not None, int(space.n), (), None, None, fps, limit)
        low, high = (tuple(float(x) for x in bound.ravel()) for bound in (space.low, space.high))
        return EnvInfo(kind, obs_shape, self._stack is not None, None, (len(low),), low, high, fps, limit)

    def native(self, actions: np.ndarray) -> Any:
        """(N,) or (N, A) actions as N actions in the environment's own terms, clipped to its bounds."""
        space: Any = self._env.action_space
        if isinstance(space, spaces.Discrete):
            return list(actions.astype(np.int64) + int(space.start))  # Discrete.contains is slow for Python's own ints
        return np.clip(actions.reshape(-1, *space.shape).astype(space.dtype), space.low, space.high)

    def reset(self, seed: int) -> np.ndarray:
        if self._reset_before and not self._forgets:
            self._env.close()
            self._env = self._make()
        try:
            raw, _ = self._env.reset(seed=seed)
        except Exception as error:  # code that is not ours
            raise EnvironmentFault(f"{self.id} failed in reset(seed={seed}): {raised(error)}") from error
        self._reset_before = True
        if self._stack is None:
            return self._view(raw)
        self._stack[:] = self._view(raw)
        return self._stack

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """The observation is only valid until the next call, and may be of another precision: copy it.

        Raises:
            EnvironmentFault: it raised, or gave a reward, an observation or an info that is none.
        """
        try:
            raw, reward, terminated, truncated, info = self._env.step(action)
        except Exception as error:  # code that is not ours
            raise EnvironmentFault(f"{self.id} failed in step(action={action!r}): {raised(error)}") from error
        if not isinstance(info, dict):
            raise EnvironmentFault(f"{self.id} gave an info that is no dict but {type(info).__name__}")
        if not isinstance(reward, float):
            reward = self._number(reward)
        if self._stack is None:
            return self._view(raw), reward, terminated, truncated, info
        self._stack[:-1] = self._stack[1:]
        self._stack[-1] = self._view(raw)
        return self._stack, reward, terminated, truncated, info

    def _number(self, reward: Any) -> float:
        try:
            return float(np.asarray(reward, np.float64).item())
        except (TypeError, ValueError) as error:
            raise EnvironmentFault(f"{self.id} gave a reward that is not one number: {said(error)}") from error

    def _view(self, raw: Any) -> np.ndarray:
        """What the agent sees of an observation: the vector, or the newest image of its stack."""
        try:
            if self._stack is not None:
                return gray(self.frame() if self._frames else raw, self._shape)
            seen = np.asarray(raw if self._plain else spaces.flatten(self._space, raw))
            if seen.shape != self.info.obs_shape:
                raise ValueError(f"its shape is {seen.shape}, where its space has {self.info.obs_shape}")
            return seen
        except UserError:
            raise
        except Exception as error:  # it is not what the environment says that it is
            raise EnvironmentFault(f"{self.id} gave an observation that is not of its space: {said(error)}") from error

    def frame(self) -> np.ndarray:
        if not self._drawn_before:
            self._prepare_drawing()
        renderer = getattr(self._env.unwrapped, "mujoco_renderer", None)
        if renderer is not None:
            renderer.viewer.make_context_current()  # else it draws with the textures of whichever was made last
        return np.ascontiguousarray(self._draw())

    def _draw(self) -> np.ndarray:
        try:
            frame = self._env.render()
        except Exception as error:  # code that is not ours
            remedy = EGL_REMEDY if hasattr(self._env.unwrapped, "mujoco_renderer") else ""
            raise EnvironmentFault(f"{self.id} cannot render a frame: {said(error)}{remedy}") from error
        if not (isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8):
            what = getattr(frame, "shape", type(frame).__name__)
            raise EnvironmentFault(f"{self.id} renders {what}: its rgb_array must be a (H, W, 3) array of uint8.")
        return frame

    def action_names(self) -> list[str]:
        meanings = getattr(self._env.unwrapped, "get_action_meanings", None)
        return [str(name) for name in meanings()] if callable(meanings) else []

    def _prepare_drawing(self) -> None:
        """Draws once, to see whether it can; lets MuJoCo's camera follow, and makes its software rendering quick."""
        inner: Any = self._env.unwrapped
        renderer = getattr(inner, "mujoco_renderer", None)
        if renderer is not None:
            import mujoco

            inner.model.vis.quality.offsamples = 0
            if renderer.camera_id == -1:
                # gymnasium 1.4 makes the camera free at each frame, so the agent walks out of the picture; the
                # model's own camera follows it. -1, as before, where the model has none.
                renderer.camera_id = mujoco.mj_name2id(inner.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        self._draw()
        if renderer is not None:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                renderer.viewer.scn.flags[flag] = 0
        self._drawn_before = True

    def close(self) -> None:
        viewer = getattr(getattr(self._env.unwrapped, "mujoco_renderer", None), "viewer", None)
        if viewer is not None:
            # gymnasium leaves this to the garbage collector, which frees it while a later environment's context is
            # current, and takes that one's buffers: all its frames are black from then on.
            viewer.make_context_current()
            viewer.con.free()
        self._env.close()


def make_gym(config: Config, render: bool) -> gymnasium.Env[Any, Any]:
    """gymnasium.make, with every way in which it fails told in one sentence."""
    headless()
    spec = find_spec(config.env_id)
    if "render_mode" in config.env_kwargs:
        raise UserError("--env-kwargs has render_mode, which rlhf-gym chooses itself: leave it out.")
    kwargs = dict(config.env_kwargs, **({"render_mode": "rgb_array"} if render else {}))
    try:
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
            import mujoco

            # else it prints, and writes MUJOCO_LOG.TXT into the user's folder
            mujoco.set_mju_user_warning(logging.getLogger(__name__).info)
        env: gymnasium.Env[Any, Any] = gymnasium.make(spec, disable_env_checker=True, **kwargs)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise UserError(_missing(config.env_id, spec, error)) from error
    except Exception as error:
        if render and "render_mode" in str(error):
            raise UserError(_unseen(config.env_id)) from error
        given = f" with --env-kwargs {config.env_kwargs}" if config.env_kwargs else ""
        # a MUJOCO_GL that the user set and the machine has not fails in `import mujoco`, as one of these
        gl = isinstance(error, AttributeError | RuntimeError) and "mujoco" in str(spec.entry_point)
        remedy = f" (MUJOCO_GL is {os.environ.get('MUJOCO_GL')!r}){EGL_REMEDY}" if gl else ""
        raise UserError(f"{config.env_id} could not be made{given}: {said(error)}{remedy}") from error
    if render and "rgb_array" not in (env.metadata.get("render_modes") or ()):
        env.close()
        raise UserError(_unseen(config.env_id))
    return env


def headless() -> None:
    """Where there is no display, lets MuJoCo draw through EGL and pygame draw nowhere. The user's choice stands."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
        if "MUJOCO_GL" not in os.environ:
            try:
                ctypes.CDLL("libEGL.so.1")
                os.environ["MUJOCO_GL"] = "egl"
            except OSError:
                pass  # `import mujoco` would fail with it set; so it can simulate, and `frame` says what is missing


def is_image(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def refuse_observation(env_id: str, space: spaces.Space[Any]) -> None:
    """Raises UserError if `space` cannot be made a vector of fixed length without inventing an order or a meaning."""
    if isinstance(space, spaces.Dict | spaces.Text) or not space.is_np_flattenable:
        raise UserError(
            f"{env_id} has {type(space).__name__} observations, which rlhf-gym cannot read: register it with "
            "gymnasium.wrappers.FlattenObservation around it, or learn from its frames with --pixels."
        )


def gray(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 as a gray image of `shape`, averaged over areas (Pillow's BOX)."""
    from PIL import Image

    picture = Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if picture.mode != "L":
        picture = picture.convert("L")
    if image.shape[:2] != shape:
        picture = picture.resize(shape[::-1], Image.Resampling.BOX)
    return np.asarray(picture)


def _missing(env_id: str, spec: gymnasium.envs.registration.EnvSpec, error: Exception) -> str:
    for extra, module in (("box2d", "gymnasium.envs.box2d"), ("mujoco", "gymnasium.envs.mujoco")):
        if str(spec.entry_point).startswith(module):
            return f'{env_id} needs a package that is not installed: pip install "rlhf-gym[{extra}]" ({said(error)})'
    return f"{env_id} needs a package that cannot be imported: {said(error)}"


def _unseen(env_id: str) -> str:
    return (
        f"{env_id} has no rgb_array among its render_modes, so nobody could see its clips: "
        "add it to the environment's metadata and its render()."
    )
