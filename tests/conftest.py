"""What the tests share: options, a real Chromium, and sessions with drawn clips.

--full runs the tests marked `full` as well; --chromium PATH names the browser (else the first one on the PATH).
"""

from __future__ import annotations

import functools
import io
import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from rlhf_gym import catalog, store
from rlhf_gym.config import Config
from rlhf_gym.store import START, Session

# What is under test is called as it is once installed: rlhf-gym on the PATH.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# Where pytest-xdist runs tests side by side, each process and all that it starts keep to one core: threads that wait for
# each other on a busy machine are twenty times slower.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

# Tests press Ctrl-C in processes that they start. A shell's background job ignores it, and so would its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM_ARGS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests that take minutes, too")
    parser.addoption("--chromium", metavar="PATH", help="the Chromium for the browser tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
            if os.environ.get("CI"):  # once more where a busy machine upset the browser's timing; the summary names it
                item.add_marker(pytest.mark.flaky(reruns=1))
    if not config.getoption("--full"):
        long = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """With two, the dot learns a fifth as fast as with one where another process has one of two cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A headless Chromium. In CI a missing one is a failure; elsewhere its tests are skipped, and say so."""
    asked = request.config.getoption("--chromium")
    path = asked or next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)
    if path is None or not Path(path).exists():
        reason = f"no Chromium ({asked or 'none on the PATH'}): install one, or name it with --chromium PATH"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


class Console:
    """What a page complained about; a test ends with none but what it allowed."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.allowed: list[str] = []

    def allow(self, pattern: str) -> None:
        self.allowed.append(pattern)

    def unexpected(self) -> list[str]:
        return [p for p in self.problems if not any(re.search(a, p) for a in self.allowed)]


@pytest.fixture
def console() -> Console:
    return Console()


@pytest.fixture
def context(browser: Any, console: Console) -> Iterator[Any]:
    """A fresh browser profile. Errors, violations of the content security policy (Chromium reports them on the
    console) and requests to anywhere but this machine fail the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(10_000)

    def watch_request(request: Any) -> None:
        if not re.match(r"(http://(127\.0\.0\.1|localhost|\[::1\])[:/]|data:|blob:)", request.url):
            console.problems.append(f"request to {request.url}")

    def watch_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            console.problems.append(f"console {message.type}: {message.text} ({message.location.get('url', '')})")

    context.on("request", watch_request)
    context.on("console", watch_console)
    context.on("weberror", lambda error: console.problems.append(f"error: {error.error}"))
    yield context
    context.close()
    assert console.unexpected() == []


@pytest.fixture
def page(context: Any) -> Any:
    return context.new_page()


# ---------------------------------------------------------------------------------------------- sessions


def draw_frame(width: int, height: int, x: float, angle: float, color: str) -> Image.Image:
    """A cart with a pole, more or less."""
    image = Image.new("RGB", (width, height), "#ffffff")
    draw = ImageDraw.Draw(image)
    ground, unit = height * 0.75, width / 12
    draw.line([(0, ground), (width, ground)], fill="#000000")
    left = width * (0.5 + x)
    draw.rectangle([left - unit, ground - unit / 2, left + unit, ground + unit / 2], fill="#111111")
    tip = (left + 4 * unit * math.sin(angle), ground - 4 * unit * math.cos(angle))
    draw.line([(left, ground - unit / 2), tip], fill=color, width=max(int(unit / 3), 2))
    return image


@functools.cache
def draw_sheet(width: int, height: int, frames: int, columns: int, lean: float, ended: int | None) -> bytes:
    rows = -(-frames // columns)
    sheet = Image.new("RGB", (width * columns, height * rows))
    for i in range(frames):
        t = min(i, ended if ended is not None else i) / frames
        frame = draw_frame(width, height, 0.15 * lean * t, lean * t * t + 0.05 * math.sin(12 * t), "#ca9865")
        sheet.paste(frame, ((i % columns) * width, (i // columns) * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class FakeLoop:
    """Plays the loop's part: writes to a session what the loop would."""

    def __init__(self, session: Session, width: int, height: int, frames: int) -> None:
        self.session = session
        self.size = (width, height)
        self.frames = frames

    def record(self, number: int, mean: float) -> None:
        """The round's agent exists and has been evaluated, so that the next batch is due."""
        self.session.checkpoint(number).write_bytes(b"weights")
        self.session.put_metrics(number, "record", 0, {"eval/mean": mean, "eval/mean_length": mean})

    def collect(self, number: int, pairs: int, attempt: int = 0, ended: int | None = 24) -> list[store.Pair]:
        """A batch of pairs; every second right clip shows an ended episode from frame `ended` on."""
        directory = self.session.clip_directory(number, attempt)
        directory.mkdir(parents=True, exist_ok=True)
        width, height = self.size
        clips = []
        for i in range(2 * pairs):
            ends = ended if i % 4 == 1 else None
            sheet = directory / f"{i:04d}.png"
            sheet.write_bytes(draw_sheet(width, height, self.frames, 8, 1.4 * math.sin(1.7 * i + number), ends))
            clips.append(dict(
                round=number, attempt=attempt, path=f"{directory.name}/{i:04d}.npz", frame_width=width,
                sheet=str(sheet.relative_to(self.session.path)), frame_height=height, columns=8, frames=self.frames,
                fps=30.0, steps=self.frames, ended_frame=ends, seed=i, start=0, true_return=float(i),
            ))  # fmt: skip
        rows = [dict(round=number, attempt=attempt, position=i, left=2 * i, right=2 * i + 1, kind="uniform")
                for i in range(pairs)]  # fmt: skip
        self.session.add_batch(clips, rows)
        return self.session.pairs(number, attempt)

    def labels(self, number: int, attempt: int = 0) -> list[str | None]:
        return [p.choice for p in self.session.pairs(number, attempt)]


@pytest.fixture
def make_session(tmp_path: Path) -> Iterator[Callable[..., FakeLoop]]:
    """make_session(name, pairs=…, …) -> FakeLoop of a session in tmp_path/data whose first batch waits for labels."""
    made: list[Session] = []

    def make(
        name: str = "cartpole-1", pairs: int = 6, width: int = 120, height: int = 80, frames: int = 30, **settings: Any
    ) -> FakeLoop:
        config = Config(**{"env_id": "CartPole-v1", "goal": "Keep the pole up.", "pairs_per_round": 6, **settings})
        loop = FakeLoop(catalog.create_session(tmp_path / "data", name, config), width, height, frames)
        made.append(loop.session)
        loop.record(START, 21.5)
        if pairs:
            loop.collect(0, pairs)
        return loop

    yield make
    for session in made:
        session.close()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose session `one` ran its two tiny rounds undisturbed; not to be changed."""
    from compare import run

    cwd = tmp_path_factory.mktemp("whole")
    result = run(cwd)
    assert result.status == 0, result.err
    return cwd


@pytest.fixture
def opened(cwd: Path) -> Iterator[Callable[[str], Session]]:
    """Sessions in data/ of a module's own `cwd`, closed at the end."""
    there: list[Session] = []

    def get(name: str) -> Session:
        there.append(catalog.open_session(cwd / "data", name))
        return there[-1]

    yield get
    for session in there:
        session.close()
