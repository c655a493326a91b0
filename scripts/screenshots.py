"""Takes the pictures in docs/images: every page in both themes, on a desk and on a phone, of sessions that really ran.

Run it from the checkout, with the development requirements and a Chromium installed; it takes a few minutes:

    python scripts/screenshots.py --chromium /usr/bin/chromium
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"": {"width": 1280, "height": 800}, "-phone": {"width": 390, "height": 844}}
THEMES = ("light", "dark")
COLORS = 128  # of a picture: small files, and nobody sees the difference
GOAL = "Keep the pole upright, and stay near the middle."
CARTPOLE = (
    "run",
    "CartPole-v1",
    "--session",
    "cartpole-1",
    "--goal",
    GOAL,
    "--rounds",
    "3",
    "--mistake-rate",
    "0.1",
    "--clip-seconds",
    "1.7",
)
SMALL = ("--rounds", "1", "--pairs-per-round", "6", "--agent-steps-per-round", "2048", "--reward-steps", "50")
SYNTHETIC = ("--labeler", "synthetic", "--render")
OTHERS = (
    ("run", "ALE/Pong-v5", "--session", "pong-1", "--goal", "Win, but let the rally last.", *SMALL),
    ("run", "rlhf_gym/Dot-v0", "--session", "dot-1", "--goal", "Circle the middle.", *SMALL),
    ("run", "Acrobot-v1", "--session", "acrobot-1", "--goal", "Swing, like someone who enjoys it.", *SMALL),
)


def rlhf_gym(data_dir: Path, *words: str) -> None:
    name = words[words.index("--session") + 1]
    if (data_dir / name).exists():
        return  # from an earlier run with --data-dir
    command = [sys.executable, "-m", "rlhf_gym", *words, "--data-dir", str(data_dir)]
    subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


@contextmanager
def running(data_dir: Path, *words: str) -> Iterator[str]:
    """A program with pages; gives the address that it prints."""
    command = [sys.executable, "-m", "rlhf_gym", *words, "--data-dir", str(data_dir), "--no-browser"]
    log = data_dir / f"log-{time.monotonic_ns()}.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
    try:
        yield wait_for(lambda: re.search(r"Open (http\S+)", log.read_text())).group(1)
    finally:
        process.terminate()
        process.wait()


def wait_for(condition: Callable[[], Any], seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.05)
    return value


class Camera:
    """Opens pages in every size and theme and keeps what they look like."""

    def __init__(self, browser: Browser, directory: Path, address: str) -> None:
        self.browser, self.directory = browser, directory
        self.origin, self.key = re.match(r"(http://[^/]+).*token=(\S+)", address).groups()  # type: ignore[union-attr]
        self.api = httpx.Client(base_url=self.origin, headers={"Authorization": f"Bearer {self.key}"}, timeout=30)

    def take(self, name: str, path: str, arrange: Callable[[Page], None] | None = None) -> None:
        """Writes NAME-light.png, NAME-dark.png, NAME-phone-light.png and NAME-phone-dark.png."""
        for size, viewport in SIZES.items():
            phone = bool(size)
            context = self.browser.new_context(
                viewport=viewport, device_scale_factor=2 if phone else 1, has_touch=phone
            )
            context.add_init_script(
                "localStorage.setItem('rlhf-gym tour', 'seen'); localStorage.setItem('rlhf-gym call', 'no')"
            )
            page = context.new_page()
            joint = "&" if "?" in path else "?"
            page.goto(f"{self.origin}{path}{joint}token={self.key}")
            for theme in THEMES:
                page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                page.wait_for_timeout(800)
                if arrange:
                    arrange(page)
                page.wait_for_timeout(800)
                image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                file = self.directory / f"{name}{size}-{theme}.png"
                image.quantize(COLORS, dither=Image.Dither.NONE).save(file, optimize=True)
                print(file)
            context.close()


def panel(selector: str) -> Callable[[Page], None]:
    """Brings a panel of the dashboard into view."""

    def arrange(page: Page) -> None:
        to = page.locator("#views [data-to=dashboard]")
        if to.is_visible() and to.get_attribute("aria-current") is None:
            to.click()
        page.wait_for_selector(selector)
        page.locator(selector).evaluate("element => element.scrollIntoView({ block: 'start' })")
        page.wait_for_timeout(1500)

    return arrange


def label(page: Page) -> None:
    """A few labels, so that strip and pace have something to show."""
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowLeft") if page.locator("#strip li").count() < 8 else ():
        page.wait_for_selector("#stage[data-ready=true]")
        page.wait_for_timeout(400)
        page.keyboard.press(key)
    page.wait_for_selector("#stage[data-ready=true]")
    page.wait_for_timeout(900)


def label_all(camera: Camera, session: str) -> None:
    for pair in camera.api.get(f"/api/s/{session}/pairs", params={"limit": 100}).json()["pairs"]:
        ended = {side: pair[side]["ended_frame"] is not None for side in ("left", "right")}
        choice = "right" if ended["left"] and not ended["right"] else "left"
        camera.api.post(
            f"/api/s/{session}/labels", json={"id": f"picture-{pair['id']}", "pair": pair["id"], "choice": choice}
        )


def take_all(browser: Browser, data_dir: Path, directory: Path) -> None:
    for other in OTHERS:
        rlhf_gym(data_dir, *other, *SYNTHETIC)
    rlhf_gym(data_dir, *CARTPOLE, *SYNTHETIC)
    long = ("--rounds", "4", "--agent-steps-per-round", "400000")  # time for the pictures of the training
    with running(data_dir, "resume", "cartpole-1", "--labeler", "human", *long) as address:
        camera = Camera(browser, directory, address)
        state = "/api/s/cartpole-1"
        wait_for(lambda: camera.api.get(state).json()["view"] == "label")
        camera.take("labeling", "/s/cartpole-1", label)
        camera.take("keys", "/s/cartpole-1", lambda page: page.keyboard.press("?"))
        camera.take("sessions", "/")
        for name in ("wall", "curves", "labels"):
            camera.take(name, "/s/cartpole-1", panel(f"#{name}"))
        label_all(camera, "cartpole-1")
        wait_for(lambda: camera.api.get(state).json()["live"])
        camera.take("training", "/s/cartpole-1")
        camera.take("docs", "/docs")
        camera.take("error", "/s/nothing-here")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "images", help="directory of the pictures")
    parser.add_argument("--data-dir", type=Path, help="keep the sessions there")
    args = parser.parse_args(argv)
    if not args.chromium:
        print("There is no Chromium on the PATH: install one, or name it with --chromium PATH.", file=sys.stderr)
        return 2
    args.into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="rlhf-gym-pictures-") as temporary, sync_playwright() as playwright:
        data_dir = (args.data_dir or Path(temporary)).resolve()
        data_dir.mkdir(parents=True, exist_ok=True)
        flags = ["--no-sandbox", "--headless", "--disable-gpu", "--hide-scrollbars"]
        browser = playwright.chromium.launch(executable_path=args.chromium, args=flags)
        take_all(browser, data_dir, args.into)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
