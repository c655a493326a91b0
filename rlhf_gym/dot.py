"""rlhf_gym/Dot-v0: the smallest task that needs eyes. Bring a bright dot to the middle of a dark picture.

The observation is a 44x44 gray image, so the whole pixel path (CNNs, frame stacks, image clips) can be tried and
tested in a minute. Importing this module registers the environment; `rlhf-gym run rlhf_gym/Dot-v0` does so itself.

An episode is 50 steps and never terminates. The reward of a step is 1 - d / 20, where d is the L1 distance in cells
between dot and middle after the move, so it lies in [0, 1]. The best policy earns OPTIMAL_RETURN on average, one that
stays put STAY_RETURN; the task counts as solved at a mean return of SOLVED_RETURN, 90 % of the best.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

SIDE = 44  # pixels
DOT = 4  # pixels
STRIDE = 2  # pixels in a cell
CELLS = (SIDE - DOT) // STRIDE + 1  # 21 places along each axis
MIDDLE = CELLS // 2  # cell 10: the dot covers pixels 20..23 of 0..43
MIN_START = 8  # cells: an episode begins at least this far (L1) from the middle
STEPS = 50
FPS = 15
SCALE = 6  # the rendered frame is 264x264
MOVES = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))  # stay, up, down, left, right, in (rows, columns)

BACKGROUND, DOT_COLOUR, MARK = (24, 28, 48), (255, 196, 87), (86, 96, 138)

STARTS = [
    (y, x) for y in range(CELLS) for x in range(CELLS) if abs(y - MIDDLE) + abs(x - MIDDLE) >= MIN_START
]  # fmt: skip


def _best_return(distance: int) -> float:
    """Return of going straight to the middle from `distance` cells away and staying there."""
    return sum(1 - max(distance - t, 0) / (2 * MIDDLE) for t in range(1, STEPS + 1))


_DISTANCES = [abs(y - MIDDLE) + abs(x - MIDDLE) for y, x in STARTS]
OPTIMAL_RETURN = float(np.mean([_best_return(d) for d in _DISTANCES]))
STAY_RETURN = float(np.mean([STEPS * (1 - d / (2 * MIDDLE)) for d in _DISTANCES]))
SOLVED_RETURN = 0.9 * OPTIMAL_RETURN


class Dot(gymnasium.Env[np.ndarray, int]):
    """Observation (44, 44) uint8; actions stay, up, down, left, right; info {"distance": cells to the middle}."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012 (gymnasium's name)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)
        self.action_space: gymnasium.spaces.Space[Any] = gymnasium.spaces.Discrete(len(MOVES))
        self.cell = (0, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.cell = STARTS[int(self.np_random.integers(len(STARTS)))]
        return self._image(), {"distance": self._distance()}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        dy, dx = MOVES[action]
        y, x = self.cell
        self.cell = (min(max(y + dy, 0), CELLS - 1), min(max(x + dx, 0), CELLS - 1))
        distance = self._distance()
        return self._image(), 1 - distance / (2 * MIDDLE), False, False, {"distance": distance}

    def render(self) -> np.ndarray:
        """The picture in colour, (264, 264, 3) uint8 RGB, the middle marked for the person who judges."""
        picture = np.empty((SIDE, SIDE, 3), np.uint8)
        picture[:] = BACKGROUND
        mark = MIDDLE * STRIDE
        picture[mark - 1 : mark + DOT + 1, mark - 1 : mark + DOT + 1] = MARK
        picture[mark : mark + DOT, mark : mark + DOT] = BACKGROUND
        picture[self._pixels()] = DOT_COLOUR
        return picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1)

    def _distance(self) -> int:
        return abs(self.cell[0] - MIDDLE) + abs(self.cell[1] - MIDDLE)

    def _pixels(self) -> tuple[slice, slice]:
        top, left = self.cell[0] * STRIDE, self.cell[1] * STRIDE
        return slice(top, top + DOT), slice(left, left + DOT)

    def _image(self) -> np.ndarray:
        image = np.zeros((SIDE, SIDE), np.uint8)
        image[self._pixels()] = 255
        return image


if "rlhf_gym/Dot-v0" not in gymnasium.registry:
    gymnasium.register("rlhf_gym/Dot-v0", entry_point="rlhf_gym.dot:Dot", max_episode_steps=STEPS)
