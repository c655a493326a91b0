"""Films for `rlhf-gym watch`: episodes, or the agents of all rounds, side by side in one grid with one clock.

Each tile plays an episode of its own, step by step as the film is written, so that no more than one frame of each is
ever held. One that has ended stays on its last frame, marked "over". On demand a tile also shows the action and the
predicted reward, which is the newest reward model's in all of them, as on the wall, so that tiles compare.
"""

from __future__ import annotations

import contextlib
import functools
import math
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from rlhf_gym import movies
from rlhf_gym.checkpoints import Damaged, Snapshot
from rlhf_gym.config import Config
from rlhf_gym.envs import EnvInfo, Twin
from rlhf_gym.evaluate import episode_seed, generator_for, plays_greedily
from rlhf_gym.files import write_atomic
from rlhf_gym.store import START, Session, finite
from rlhf_gym.train import Agent, RewardModel
from rlhf_gym.verdicts import video_stride

MAX_TILES = 16
TILE = 480  # pixels: a tile's picture is at most as wide and as high
SMALLEST_TILE = 200  # what is written above it fits in
FILM = {".mp4": (1920, 1080), ".gif": (960, 720)}  # at most as wide and as high, in pixels
GIF_FPS = 15  # at most
GAP, TITLE, STRIP = 8, 42, 54  # pixels: around tiles, above and below their pictures
HOLD_SECONDS = 1.5  # of the last frame, so that one sees it before the film begins anew
HISTORY_SECONDS = 5.0  # of play, that the curve of predicted rewards reaches back

# the colours of the pages, webui/static/style.css
BACK, SURFACE, SUNKEN, LINE = "#f5f4f0", "#fffefa", "#ebe9e2", "#dcd9cf"
INK, QUIET, GOOD, BAD = "#1c1f24", "#62666d", "#1f64c8", "#b4560a"

# What the actions of gymnasium's own environments mean, which do not say it themselves.
MEANINGS = {
    "CartPole": ("left", "right"), "MountainCar": ("left", "none", "right"),
    "Acrobot": ("torque −1", "torque 0", "torque +1"), "LunarLander": ("nothing", "left engine", "main engine",
    "right engine"), "CarRacing": ("nothing", "right", "left", "gas", "brake"),
    "rlhf_gym/Dot": ("stay", "up", "down", "left", "right"),
}  # fmt: skip


@dataclass(frozen=True)
class Cast:
    """Who plays in a tile, from which seed, and what is written above it."""

    agent: Agent
    config: Config
    title: str
    note: str = ""
    seed: int = 0


@dataclass
class Moment:
    """A tile's state at one frame of the film."""

    frame: np.ndarray  # (H, W, 3) uint8
    action: np.ndarray | None = None  # None after the last step
    predicted: float | None = None  # mean of the steps since the frame before, the one that follows included
    total: float = 0.0  # true return so far
    over: str = ""  # how it ended


def play(cast: Cast, stride: int, max_steps: int, judge: RewardModel | None) -> Generator[Moment]:
    """Plays one episode; yields every stride-th step, and the last."""
    twin = Twin(cast.config)
    generator = generator_for(plays_greedily(twin.info), cast.agent, (cast.seed,))
    total, predicted = 0.0, []
    try:
        obs = twin.reset(cast.seed)
        for t in range(max_steps):
            action = cast.agent.act(obs[None], generator)[0]
            frame = twin.frame().copy() if t % stride == 0 else None  # the step may draw into it
            before, (obs, reward, terminated, truncated, _) = obs, twin.step(action)
            if judge is not None:
                predicted.append(predict(judge, cast.agent, before, action, before if terminated else obs))
            if frame is not None:
                yield Moment(frame, action, float(np.mean(predicted)) if predicted else None, total)
                predicted = []
            total += reward
            if terminated or truncated:
                yield Moment(twin.frame(), total=total, over="over" if terminated else "time is up")
                return
        yield Moment(twin.frame(), total=total)
    finally:
        twin.close()


def predict(judge: RewardModel, agent: Agent, obs: np.ndarray, action: np.ndarray, led: np.ndarray) -> float:
    """The predicted reward of one step, which led to `led` (obs itself, where the episode ended by it)."""
    seen, done, beside = (torch.as_tensor(x[None], device=judge.scale.device) for x in (obs, action, led))
    return float(judge.reward(seen, agent.from_env(done), None, beside))


def action_names(config: Config, info: EnvInfo) -> list[str]:
    """What each discrete action means, or its number; empty for continuous ones."""
    if info.num_actions is None:
        return []
    twin = Twin(config, render=False)
    names = twin.action_names()
    twin.close()
    if len(names) != info.num_actions:
        known = config.env_id.rpartition(":")[2].rpartition("-v")[0]
        names = list(MEANINGS.get(known, ()))
    return names if len(names) == info.num_actions else [f"action {i}" for i in range(info.num_actions)]


# ---------------------------------------------------------------------------------------------- who plays


def cast_episodes(snapshot: Snapshot, episodes: int) -> list[Cast]:
    """One agent in several episodes."""
    return [
        Cast(snapshot.agent, snapshot.config, f"episode {k + 1}", seed=episode_seed(snapshot.config, k))
        for k in range(episodes)
    ]


def cast_rounds(session: Session, warn: Callable[[str], None]) -> list[Cast]:
    """The agents of all rounds in the same episode, oldest first. Where there are too many, first and last and some."""
    casts, rounds = [], spread(session.trained_rounds(), MAX_TILES)
    returns, pairs = session.true_returns(), session.pairs()
    for number in rounds:
        try:
            snapshot = Snapshot.load(session.checkpoint(number), of=session.config)
        except Damaged as error:
            warn(f"{error} Its round is left out.")
            continue
        labels = sum(p.choice is not None and p.round <= number for p in pairs)
        notes = [f"{labels:,} label{'' if labels == 1 else 's'}"]
        if (mean := returns.get(number)) is not None:
            notes.append(f"true return {number_text(mean)}")
        title = "untrained" if number == START else f"round {number}"
        casts.append(Cast(snapshot.agent, snapshot.config, title, ", ".join(notes), episode_seed(snapshot.config)))
    return casts


def spread(items: Sequence[int], most: int) -> list[int]:
    """Up to that many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def newest_judge(session: Session) -> RewardModel | None:
    """The newest reward model that can be read, as on the wall."""
    for number in reversed(session.trained_rounds()):
        with contextlib.suppress(Damaged):
            if (judge := Snapshot.load(session.checkpoint(number), of=session.config).reward) is not None:
                return judge
    return None


# ---------------------------------------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Look:
    """What an overlay is drawn with."""

    names: list[str]  # of discrete actions
    bounds: tuple[np.ndarray, np.ndarray]  # of continuous ones
    deviation: float  # the standard deviation of predicted rewards in labeled clips; 0 where there is no model
    history: int  # values of the curve


@functools.cache
def font(size: int) -> Any:
    return ImageFont.load_default(size)


@dataclass(frozen=True)
class Grid:
    """Where the tiles of a film stand."""

    columns: int
    picture: tuple[int, int]  # width and height of a tile's picture
    cell: tuple[int, int]  # and of the whole tile
    bare: bool  # one picture and nothing else
    overlay: bool
    header: int  # pixels above the tiles
    size: tuple[int, int]  # of the film

    def place(self, i: int) -> tuple[int, int]:
        """Left and top of tile i."""
        if self.bare:
            return 0, 0
        row, column = divmod(i, self.columns)
        return GAP + column * (self.cell[0] + GAP), self.header + GAP + row * (self.cell[1] + GAP)


def lay_out(tiles: int, frame: tuple[int, int], film: tuple[int, int], overlay: bool, bare: bool) -> Grid:
    """As many columns as make the tiles largest, and leave few places empty.

    Args:
        frame: width and height of the environment's frames.
        film: width and height that the film has at most.
        bare: nothing is written around the picture of a single tile.
    """
    above, below = 0 if bare else TITLE, STRIP if overlay else 0
    gap, header = (0, 0) if bare else (GAP, 0 if tiles == 1 else TITLE - GAP)
    largest = film[0] if bare else TILE
    best = (0.0, 0.0, 1)
    for columns in range(1, tiles + 1):
        rows = math.ceil(tiles / columns)
        width = min(largest, (film[0] - gap) / columns - gap)
        height = min(largest, (film[1] - header - gap) / rows - gap - above - below)
        if columns > 1 and width < SMALLEST_TILE:
            break
        scale = min(width / frame[0], height / frame[1])
        best = max(best, (scale * (tiles / (rows * columns)) ** 0.5, scale, columns))
    _, scale, columns = best
    scale = min(scale, movies.times_larger(frame[0]))  # large ones never
    picture = max(1, round(frame[0] * scale)), max(1, round(frame[1] * scale))
    cell = picture[0] if bare and not overlay else max(picture[0], SMALLEST_TILE), above + picture[1] + below
    rows = math.ceil(tiles / columns)
    width, height = gap + columns * (cell[0] + gap), header + gap + rows * (cell[1] + gap)
    return Grid(columns, picture, cell, bare, overlay, header, (width + width % 2, height + height % 2))


class Tile:
    """Draws one tile onto the film's canvas."""

    def __init__(self, canvas: Image.Image, grid: Grid, i: int, cast: Cast, look: Look) -> None:
        self.canvas, self.draw, self.grid, self.look = canvas, ImageDraw.Draw(canvas), grid, look
        self.note, self.over = cast.note, ""
        self.left, self.top = grid.place(i)
        self.picture_top = self.top + (0 if grid.bare else TITLE)
        self.curve: deque[float] = deque(maxlen=look.history)
        if not grid.bare:
            self.fill(self.left, self.top, *grid.cell, SURFACE)
            self.draw.text((self.left + 8, self.top + 4), cast.title, INK, font(16))
            self.write(cast.note)

    def fill(self, left: float, top: float, width: float, height: float, color: str) -> None:
        if width >= 1 and height >= 1:
            self.draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color)

    def write(self, text: str) -> None:
        """The quiet line below the title."""
        self.fill(self.left, self.top + 22, self.grid.cell[0], TITLE - 22, SURFACE)
        self.draw.text((self.left + 8, self.top + 23), text, QUIET, font(13))

    def show(self, moment: Moment) -> None:
        width, height = self.grid.picture
        picture = fit(moment.frame, self.grid.picture)
        left = self.left + (self.grid.cell[0] - width) // 2
        self.canvas.paste(picture, (left, self.picture_top))
        if not self.grid.bare and not self.note and finite(moment.total) is not None:
            self.write(f"true return so far {number_text(moment.total)}")
        if moment.over and not self.grid.bare:
            self.mark(left + width - 6, self.picture_top + 6, moment.over)
        if self.grid.overlay:
            if moment.predicted is not None:
                self.curve.append(moment.predicted)
            self.strip(moment, self.picture_top + height)

    def mark(self, right: int, top: int, text: str) -> None:
        """A small badge."""
        wide = math.ceil(font(13).getlength(text)) + 12
        self.draw.rounded_rectangle((right - wide, top, right, top + 20), 5, INK)
        self.draw.text((right - wide + 6, top + 2), text, SURFACE, font(13))

    def strip(self, moment: Moment, top: int) -> None:
        """The action on the left, the predicted reward of the last seconds on the right."""
        width, middle = self.grid.cell[0], self.left + int(self.grid.cell[0] * 0.42)
        self.fill(self.left, top, width, STRIP, SURFACE)
        self.fill(self.left, top, width, 1, LINE)
        inside = middle - self.left - 16
        self.draw.text((self.left + 8, top + 3), "action", QUIET, font(11))
        if moment.action is not None and self.look.names:
            name = shortened(self.look.names[int(moment.action)], inside, font(15))
            self.draw.text((self.left + 8, top + 20), name, INK, font(15))
        elif moment.action is not None:
            self.bars(moment.action, self.left + 8, top + 19, inside, STRIP - 24)
        if self.look.deviation:
            self.predictions(middle, top, self.left + width - 8 - middle)

    def bars(self, action: np.ndarray, left: int, top: int, width: int, height: int) -> None:
        """Continuous actions: a bar for each, from the middle of its range up or down."""
        low, high = self.look.bounds
        part = (2 * (np.clip(action.ravel(), low, high) - low) / np.maximum(high - low, 1e-9) - 1).tolist()
        each, zero = min(width / len(part), 24.0), top + height / 2
        for i, x in enumerate(part):
            at, thick = left + i * each, max(1.0, each - 2)
            self.fill(at, top, thick, height, SUNKEN)
            self.fill(at, zero - max(x, 0) * height / 2, thick, max(2.0, abs(x) * height / 2), INK)
        self.fill(left, zero, each * len(part) - 1, 1, QUIET)

    def predictions(self, left: int, top: int, width: int) -> None:
        """Bars around zero, the mean in labeled clips; one standard deviation of theirs fills three quarters."""
        height = STRIP - 20
        zero = top + 16 + height // 2
        each = width / self.look.history
        for i, value in enumerate(self.curve):
            tall = round(height / 2 * math.tanh(value / self.look.deviation))
            at = left + int(i * each)
            until = left + int((i + 1) * each)
            self.fill(at, zero - max(tall, 0), max(1, until - at), abs(tall), GOOD if tall > 0 else BAD)
        self.fill(left, zero, width, 1, QUIET)
        said = f"predicted reward {self.curve[-1]:+.2f}" if self.curve else "predicted reward"
        self.draw.text((left, top + 3), shortened(said, width, font(11)), QUIET, font(11))


def fit(frame: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The frame in that size: small ones enlarged pixel by pixel, so that they stay sharp."""
    picture = Image.fromarray(np.ascontiguousarray(movies.enlarge(frame)))
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BOX, reducing_gap=2.0)


def number_text(value: float) -> str:
    """12.3, 1,234"""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"


def shortened(text: str, width: float, letters: Any) -> str:
    """The text, or as much of its end as fits."""
    while text and letters.getlength(text) > width:
        text = text.partition(" ")[2] or text[:-1]
    return text


# ---------------------------------------------------------------------------------------------- writing


def write_film(
    casts: Sequence[Cast],
    info: EnvInfo,
    path: Path,
    *,
    judge: RewardModel | None = None,
    overlay: bool = False,
    header: str = "",
    max_seconds_shown: float = 30.0,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Plays one episode for each of the cast, side by side, and writes them as .mp4 (H.264) or .gif; atomically.

    Args:
        judge: whose predicted reward `overlay` shows.
        overlay: show action and predicted reward, too.
        header: written above more than one tile, with the clock.
        max_seconds_shown: in seconds of play.
        report: hears how many steps are played, of how many at most.

    Raises:
        UserError: it cannot be written.
    """
    gif = path.suffix == ".gif"
    stride = math.ceil(info.fps / GIF_FPS) if gif else video_stride(info)
    film = Film(casts, info, FILM[path.suffix], stride, overlay, judge, header)
    pictures = film.pictures(max(1, int(max_seconds_shown * info.fps)), report)
    rate = Fraction(info.fps / stride).limit_denominator(1000)
    with movies.writing("film", path), tempfile.TemporaryFile() as file, contextlib.closing(pictures):
        (write_gif if gif else movies.encode)(file, map(np.asarray, pictures), rate)
        file.seek(0)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, file.read(), durable=False)
    return path


class Film:
    """All tiles, and the canvas that they are drawn on."""

    def __init__(
        self, casts: Sequence[Cast], info: EnvInfo, most: tuple[int, int], stride: int, overlay: bool,
        judge: RewardModel | None, header: str,
    ) -> None:  # fmt: skip
        assert 1 <= len(casts) <= MAX_TILES, len(casts)
        self.casts, self.info, self.most, self.stride = casts, info, most, stride
        self.overlay, self.judge, self.header = overlay, judge if overlay else None, header

    def pictures(self, max_steps: int, report: Callable[[int, int], None] | None) -> Generator[Image.Image]:
        """Every picture of the film; always the same object, drawn over."""
        parts = [play(c, self.stride, max_steps, self.judge) for c in self.casts]
        hold = round(HOLD_SECONDS * self.info.fps / self.stride)
        with contextlib.ExitStack() as stack:
            for part in parts:
                stack.enter_context(contextlib.closing(part))
            moments = [next(part) for part in parts]
            canvas, grid, tiles = self.stage(moments[0].frame)
            playing, t = set(range(len(parts))), 0
            while True:
                for i in playing:
                    tiles[i].show(moments[i])
                self.tell_time(canvas, grid, t / self.info.fps)
                yield canvas
                if report is not None:
                    report(min(t, max_steps), max_steps)
                following = {i: next(parts[i], None) for i in sorted(playing)}
                moments = [following.get(i) or moment for i, moment in enumerate(moments)]
                playing = {i for i, moment in following.items() if moment is not None}
                if not playing:
                    break
                t += self.stride
            for _ in range(hold if len(parts) > 1 else 0):
                yield canvas
        if report is not None:
            report(max_steps, max_steps)

    def stage(self, frame: np.ndarray) -> tuple[Image.Image, Grid, list[Tile]]:
        """The empty canvas and its tiles."""
        bare = len(self.casts) == 1
        grid = lay_out(len(self.casts), (frame.shape[1], frame.shape[0]), self.most, self.overlay, bare)
        config, fps = self.casts[0].config, self.info.fps / self.stride
        bounds = self.info.action_bounds() if self.info.num_actions is None else (np.zeros(0), np.zeros(0))
        look = Look(
            names=action_names(config, self.info) if self.overlay else [], bounds=bounds,
            deviation=10 * (1 - config.gamma) if self.judge is not None else 0.0,
            history=max(1, round(HISTORY_SECONDS * fps)),
        )  # fmt: skip
        canvas = Image.new("RGB", grid.size, BACK)
        return canvas, grid, [Tile(canvas, grid, i, cast, look) for i, cast in enumerate(self.casts)]

    def tell_time(self, canvas: Image.Image, grid: Grid, seconds: float) -> None:
        if not grid.header:
            return
        draw, said = ImageDraw.Draw(canvas), f"{seconds:.1f} s"
        draw.rectangle((0, 0, grid.size[0], grid.header), fill=BACK)
        right = grid.size[0] - GAP - 8 - font(16).getlength(said)
        draw.text((right, 12), said, QUIET, font(16))
        draw.text((GAP + 8, 12), shortened_end(self.header, right - 2 * GAP - 24, font(16)), INK, font(16))


def shortened_end(text: str, width: float, letters: Any) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def write_gif(file: IO[bytes], pictures: Iterable[np.ndarray], rate: Fraction) -> None:
    """In one palette, made for all of its pictures: they are written without loss first, and looked at twice."""
    import av

    with tempfile.TemporaryFile() as aside:
        movies.encode(
            aside, pictures, rate,
            kind="matroska", codec="libx264rgb", pixels="rgb24", options={"qp": "0", "preset": "ultrafast"},
        )  # fmt: skip
        aside.seek(0)
        with av.open(aside) as once:
            palette = make_palette(once)
        aside.seek(0)
        with av.open(aside, "r") as again, av.open(file, "w", format="gif") as gif:
            source = again.streams.video[0]
            graph = av.filter.Graph()
            first, second = graph.add_buffer(template=source), palette_buffer(graph, palette)
            use, sink = (
                graph.add("paletteuse", "dither=bayer:bayer_scale=5:diff_mode=rectangle"),
                graph.add("buffersink"),
            )
            first.link_to(use, 0, 0)
            second.link_to(use, 0, 1)
            use.link_to(sink)
            graph.configure()
            stream: Any = gif.add_stream("gif", rate=rate)
            stream.width, stream.height, stream.pix_fmt = source.width, source.height, "pal8"
            second.push(palette)
            second.push(None)
            for frame in again.decode(source):
                first.push(frame)
                for reduced in pulled(sink):
                    gif.mux(stream.encode(reduced))
            first.push(None)
            for reduced in pulled(sink):
                gif.mux(stream.encode(reduced))
            gif.mux(stream.encode())


def make_palette(container: Any) -> Any:
    """The 256 colours that suit a whole video, as a frame."""
    import av

    source, graph = container.streams.video[0], av.filter.Graph()
    first, make, sink = (
        graph.add_buffer(template=source),
        graph.add("palettegen", "reserve_transparent=1"),
        graph.add("buffersink"),
    )
    first.link_to(make)
    make.link_to(sink)
    graph.configure()
    for frame in container.decode(source):
        first.push(frame)
    first.push(None)
    return next(pulled(sink))


def palette_buffer(graph: Any, palette: Any) -> Any:
    return graph.add_buffer(
        width=palette.width, height=palette.height, format=palette.format, time_base=Fraction(1, 100)
    )


def pulled(sink: Any) -> Iterator[Any]:
    """What a filter has ready."""
    import av

    while True:
        try:
            yield sink.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
