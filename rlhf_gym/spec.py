"""What an environment is (`EnvInfo`), and the registered one of a name.

Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import json
import math
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from rlhf_gym.config import Config, UserError

DOT_ID = "rlhf_gym/Dot-v0"
MOST_NUMBERS = 128  # that are multiplied by each other: 8,384 weights a member


@dataclass(frozen=True)
class EnvInfo:
    kind: str
    """A key of config.PRESETS: classic, classic-continuous, box2d, mujoco, mujoco-falls, atari or pixels."""
    obs_shape: tuple[int, ...]
    """What the agent sees: (D,) float32, or (stack, H, W) uint8 if `image`."""
    image: bool
    num_actions: int | None
    """None if actions are continuous."""
    action_shape: tuple[int, ...]
    """() for discrete actions, (A,) for continuous ones."""
    action_low: tuple[float, ...] | None
    action_high: tuple[float, ...] | None
    fps: float
    """Agent steps in a second of play."""
    max_episode_steps: int | None
    """Agent steps after which an episode is truncated; None if it may last for ever."""

    def action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest continuous actions, both (A,), finite: where a side is open it lies 2 from the other."""
        low, high = np.asarray(self.action_low), np.asarray(self.action_high)
        low = np.where(np.abs(low) < 1e6, low, np.where(np.abs(high) < 1e6, high - 2, -1.0))
        return low, np.where(np.abs(high) < 1e6, high, low + 2)

    def as_json(self) -> dict[str, Any]:
        """As JSON has it, which knows no tuples, and no infinity: null stands for an open bound."""
        text = json.dumps(asdict(self)).replace("-Infinity", "null").replace("Infinity", "null")
        return dict(json.loads(text))

    @staticmethod
    def from_json(values: dict[str, Any]) -> EnvInfo:
        """What `as_json` gave, or before it asdict."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for name, open_bound in (("action_low", -math.inf), ("action_high", math.inf)):
            if fields.get(name) is not None:
                fields[name] = tuple(open_bound if x is None else x for x in fields[name])
        return EnvInfo(**fields)


def find_spec(env_id: str) -> gymnasium.envs.registration.EnvSpec:
    """The registered environment of that name, importing the module before a colon, our own, or ALE's."""
    gymnasium.logger.min_level = gymnasium.logger.ERROR  # it warns about versions, dtypes and render modes
    module, _, name = env_id.rpartition(":")
    if name == DOT_ID:
        module = "rlhf_gym.dot"
    if module:
        if os.getcwd() not in sys.path and "" not in sys.path:
            sys.path.insert(0, os.getcwd())  # a console script has its own folder there, not the user's
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UserError(
                f"{env_id} needs the module {module!r}, which cannot be imported from {os.getcwd()}: {said(error)}"
            ) from error
    if name not in gymnasium.registry:
        with contextlib.suppress(ImportError):  # then Atari's names are not on offer
            import ale_py  # importing it registers its games, those of old names, too

            gymnasium.register_envs(ale_py)
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error:
        near = difflib.get_close_matches(name, _known_ids(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "write it like CartPole-v1 or my_module:MyEnv-v0."
        raise UserError(f"There is no environment {env_id!r}: {hint}") from None
    if old_atari(spec):
        games = {s.kwargs.get("game"): s.id for s in gymnasium.registry.values() if s.namespace == "ALE"}
        raise UserError(
            f"{env_id} is an old name of an Atari game: use {games.get(spec.kwargs.get('game'), 'ALE/…-v5')} (with "
            "--repeat-action-probability 0 its actions do not stick)."
        )
    return spec


def old_atari(spec: gymnasium.envs.registration.EnvSpec) -> bool:
    return str(spec.entry_point).startswith("ale_py") and spec.namespace != "ALE"


def _known_ids() -> list[str]:
    """What is worth suggesting: of each name the newest version, and nothing that needs jax or shimmy."""
    newest: dict[tuple[str | None, str], gymnasium.envs.registration.EnvSpec] = {}
    for spec in gymnasium.registry.values():
        if spec.namespace in ("phys2d", "tabular") or spec.name.startswith("GymV2") or old_atari(spec):
            continue
        known = newest.setdefault((spec.namespace, spec.name), spec)
        if (spec.version or 0) > (known.version or 0):
            newest[spec.namespace, spec.name] = spec
    return sorted({*(spec.id for spec in newest.values()), DOT_ID})


def said(error: BaseException) -> str:
    """The error as half a line: its type, and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def raised(error: BaseException) -> str:
    """As `said`, and where in the code that is not ours it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said(error)} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else said(error)


def require_few_numbers(config: Config, info: EnvInfo) -> None:
    """Raises UserError where `--reward-quadratic` would have too much to multiply."""
    numbers = int(np.prod(info.obs_shape))
    if config.reward_sees_action:
        numbers += info.num_actions or int(np.prod(info.action_shape))
    if config.reward_quadratic and not info.image and numbers > MOST_NUMBERS:
        raise UserError(
            f"--reward-quadratic multiplies each two numbers that the reward model sees, and {numbers} of "
            f"{config.env_id} are too many for that ({MOST_NUMBERS} at most): leave it out."
        )
