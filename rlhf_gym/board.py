"""What TensorBoard shows of a session, and Weights & Biases with --track: every metric, the settings, the clips that
the reward model likes most and least, and histograms of predicted rewards.

    tensorboard --logdir data        compares all sessions of a data directory; their settings are under HPARAMS

Metrics of the agent stand over its steps, all others over rounds. The clips are animated GIFs, made of the sheets that
the person saw; where nobody looks there are none.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rlhf_gym.config import Config
from rlhf_gym.labels import Labels
from rlhf_gym.sheets import open_sheet
from rlhf_gym.store import Clip, Session, finite
from rlhf_gym.track import Tracker
from rlhf_gym.train import RewardModel, Rollout

COMPARED = (  # columns that HPARAMS shows beside the settings
    "eval/mean", "charts/true_return", "charts/predicted_reward", "reward/prequential_accuracy",
    "reward/held_out_accuracy", "labels/consistency",
)  # fmt: skip
MAX_ROWS = 200_000  # steps of the labeled clips judged after each round, the newest ones
MAX_IMAGES = 2_000  # the same, where they are images
SHOWN = 3  # clips of each kind
WIDTH = 240  # pixels of one of them
TALLEST = 8  # times as tall as wide
CAPTION = 18  # pixels above it
MOST_FPS = 15.0  # of a GIF: half the frames of a sheet
LAST_SECONDS = 0.6  # for which it stands still before it begins again
PALETTE = 64  # colours


@dataclass(frozen=True)
class Liked:
    """A labeled clip and its mean predicted reward per step, absorbing steps counted."""

    clip: Clip
    value: float


class Board:
    """Shows what it is given. Not thread-safe: the loop alone uses it, through its monitor."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.writer: Any = None  # TensorBoard's, opened at the first metric: it takes a second to import
        self.tracker: Tracker | None = None

    def begin(self, config: Config) -> None:
        """Opens the run at Weights & Biases, if there is to be one; may ask on the terminal to log in.

        Raises:
            UserError: it cannot be opened.
        """
        if config.track and self.tracker is None:
            self.tracker = Tracker(self.session, config)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.tracker is not None:
            self.tracker.close()
        self.writer = self.tracker = None

    def numbers(self, metrics: Mapping[str, float | None], number: int, steps: int | None = None) -> None:
        """Shows those that are numbers, over the agent's steps so far, or else over rounds."""
        values = {name: value for name, found in metrics.items() if (value := finite(found)) is not None}
        for name, value in values.items():
            self._open().add_scalar(name, value, number if steps is None else steps)
        if self.tracker is not None and values:
            self.tracker.numbers(values, number, steps)

    def histogram(self, name: str, values: np.ndarray, number: int, steps: int | None = None) -> None:
        """Of one value per step; where it stands as of numbers."""
        values = values[np.isfinite(values)]
        if not len(values):
            return
        self._open().add_histogram(name, values, number if steps is None else steps)
        if self.tracker is not None:
            self.tracker.histogram(name, values, number, steps)

    def judged(self, number: int, labels: Labels, model: RewardModel) -> None:
        """After train_reward: what the new reward model gives the steps of the labeled clips, and which of them it
        likes most and least."""
        if not model.scale.any():  # it tells no clip from another
            return
        position, rewards, count = judge(labels, model)
        self.histogram("reward/labeled_clips", np.repeat(rewards, count.astype(int)), number)
        for name, liked in zip(("most_liked", "least_liked"), extremes(self.session, labels, position), strict=True):
            if (gif := animation(self.session, liked)) is None:
                continue
            self._open().file_writer.add_summary(picture(f"clips/{name}", gif), number)
            if self.tracker is not None:
                self.tracker.picture(f"clips/{name}", gif, number)

    def recorded(self, number: int) -> None:
        """After a round's video was made; TensorBoard shows none, and the dashboard shows all."""
        if self.tracker is not None and self.session.video(number).is_file():
            self.tracker.video("agent/video", self.session.video(number), number)

    def _open(self) -> Any:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # a second to import

            self.writer = SummaryWriter(str(self.session.path / "tb"))
            config, now = self.session.config, max(self.session.where().round, 0)
            for summary in hyperparameters(config):
                self.writer.file_writer.add_summary(summary, 0)
            self.writer.add_text("settings", settings_table(config), now)
        return self.writer


# ---------------------------------------------------------------------------------------------- settings


def hyperparameters(config: Config) -> list[Any]:
    """The settings for TensorBoard's HPARAMS, in the directory of the metrics (add_hparams makes one more a call)."""
    from torch.utils.tensorboard.summary import hparams

    # What is no number is text: a column of 0 and 1 does not say that it is no and yes, and JSON has no infinity.
    values = {
        name: value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        else value if isinstance(value, str) else json.dumps(value)
        for name, value in dataclasses.asdict(config).items()
    }  # fmt: skip
    return list(hparams(values, dict.fromkeys(COMPARED, 0.0)))


def settings_table(config: Config) -> str:
    """All settings as a table in Markdown."""
    rows = ((name, json.dumps(value, ensure_ascii=False)) for name, value in dataclasses.asdict(config).items())
    lines = [f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows]
    return "\n".join(["| setting | value |", "|---|---|", *lines])


# ---------------------------------------------------------------------------------------------- predicted rewards


class Watched:
    """A reward model's `score`, which keeps what it gave the newest rollout.

    In the other processes of a team, to which it goes as a pickle, it is that `score` and no more.
    """

    def __init__(self, model: RewardModel) -> None:
        self.model, self.rewards = model, None

    rewards: Tensor | None  # (T, N)

    def __call__(self, roll: Rollout, true_rewards: np.ndarray | None = None) -> None:
        self.model.score(roll, true_rewards)
        self.rewards = roll.rewards

    def __reduce__(self) -> Any:
        return getattr, (self.model, "score")

    def newest(self) -> np.ndarray:
        """One predicted reward per step, (T * N,); empty before the first rollout."""
        return np.empty(0) if self.rewards is None else self.rewards.flatten().cpu().numpy()


def judge(labels: Labels, model: RewardModel) -> tuple[dict[int, float], np.ndarray, np.ndarray]:
    """Predicted rewards of the labeled clips; of the newest ones alone where there are very many.

    Returns:
        by position among the clips the mean predicted reward per step, absorbing steps counted; and of each row the
        predicted reward (R,) and how many steps it stands for (R,), see `Labels`.
    """
    rows, device = len(labels.count), model.scale.device
    first = int(
        torch.searchsorted(labels.begin, max(0, rows - (MAX_IMAGES if model.image else MAX_ROWS))).clamp(
            max=len(labels.begin) - 1
        )
    )
    parts = list[Tensor]()
    for part in torch.arange(int(labels.begin[first]), rows).split(8192):
        parts.append(model.reward(*labels.steps(part, device), labels.beside(part, device)).cpu())
    rewards = torch.cat(parts)
    count = labels.count[rows - len(rewards) :]
    sizes = (labels.end - labels.begin)[first:]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    means = torch.zeros(len(sizes)).index_add(0, owner, rewards * count) / labels.length[first:]
    return {first + i: float(mean) for i, mean in enumerate(means)}, rewards.numpy(), count.numpy()


def extremes(session: Session, labels: Labels, values: Mapping[int, float]) -> tuple[list[Liked], list[Liked]]:
    """The clips that the reward model likes most, best first, and least, worst first; of those that have pictures."""
    ids: dict[int, int] = {}  # of the clips, by position
    for places, name in ((labels.left, "left_clip"), (labels.right, "right_clip")):
        ids |= {i: getattr(pair, name) for i, pair in zip(places.tolist(), labels.pairs, strict=True)}
    clips = session.clips([ids[i] for i in values])
    drawn = [Liked(clips[ids[i]], value) for i, value in values.items() if has_pictures(session, clips[ids[i]])]
    drawn.sort(key=lambda liked: -liked.value)
    some = min(SHOWN, len(drawn) // 2)
    return drawn[:some], drawn[::-1][:some]


# ---------------------------------------------------------------------------------------------- pictures


def has_pictures(session: Session, clip: Clip) -> bool:
    return bool(clip.sheet and clip.frames) and session.file(clip.sheet or "") is not None


def frames_of(session: Session, clip: Clip, every: int) -> list[Image.Image]:
    """Every so many frames of a clip's sheet, and its last, at the size shown here; none where it cannot be read."""
    sheet = open_sheet(session.file(clip.sheet or ""), clip)
    if sheet is None or sheet.height > TALLEST * sheet.width:
        return []
    shown = (WIDTH, max(1, round(WIDTH * sheet.height / sheet.width)))
    wanted = sorted({*range(0, sheet.frames, every), sheet.frames - 1})
    return [sheet.frame(i).resize(shown, Image.Resampling.BOX) for i in wanted]


def animation(session: Session, liked: Sequence[Liked]) -> bytes | None:
    """Clips side by side, each with its value above, as an animated GIF; None where there is nothing to show."""
    usable = [one for one in liked if 0 < one.clip.fps <= 1000]
    fps = max((one.clip.fps for one in usable), default=1.0)
    every = max(1, round(fps / MOST_FPS))
    films = [(one, frames) for one in usable if (frames := frames_of(session, one.clip, every))]
    if not films:
        return None
    height = max(frames[0].height for _, frames in films)
    images = []
    for t in range(max(len(frames) for _, frames in films)):
        image = Image.new("RGB", (len(films) * (WIDTH + 4) - 4, CAPTION + height), "#202020")
        draw = ImageDraw.Draw(image)
        for i, (one, frames) in enumerate(films):
            left = i * (WIDTH + 4)
            draw.text((left + 4, 3), f"{one.value:+.3f} a step, round {one.clip.round}", fill="#ffffff")
            image.paste(frames[min(t, len(frames) - 1)], (left, CAPTION))  # one that is over holds its last frame
        images.append(image.quantize(PALETTE, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE))
    pause = round(1000 * every / fps)
    buffer = io.BytesIO()
    durations = [pause] * (len(images) - 1) + [round(1000 * LAST_SECONDS)]
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    return buffer.getvalue()


def picture(tag: str, gif: bytes) -> Any:
    """As SummaryWriter.add_video would write it, which needs moviepy for that."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(io.BytesIO(gif)) as image:
        width, height = image.size
    shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
    return Summary(value=[Summary.Value(tag=tag, image=shown)])
