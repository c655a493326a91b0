"""How fast the labeling page is: from key press to the next pair's first frame, and to the label on disk.

Run it from the checkout, with Chromium installed:

    python scripts/bench/page.py --labels 200

A session with drawn clips is made in a temporary directory and served as `rlhf-gym serve` would; a headless Chromium
opens it and a key is pressed for each pair, by the browser's own input path. Measured in the page:

* frame: from the key event's own timestamp (when the browser received it) to the end of the first animation frame
  whose callbacks see the next pair on both canvases. A task posted from requestAnimationFrame runs once that frame
  has been handed on for painting; what the compositor and the screen add after it is not seen from a page.
* disk: from the same timestamp until another connection to the database sees the label's row: a thread polls SQLite
  every other millisecond, and `synchronous=FULL` means that a committed row has been fsynced. Both clocks are the
  wall clock of this machine (performance.timeOrigin in the page).
* control: the same as frame for a key that means nothing to the page, half-way between the presses: what machine and
  browser take for any frame at all. On a busy machine it is the figure to compare with.

Prints median, p95 and maximum, and the shares within the limits of 33 ms (two display frames) and 100 ms.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rlhf_gym import catalog, store
from rlhf_gym.config import Config
from webui.server import Server

SESSION = "bench-1"
FRAME_LIMIT_MS, DISK_LIMIT_MS = 33, 100
COLUMNS = 8
KEYS = ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown")

PROBE = """() => {
  const stage = document.getElementById("stage");
  const channel = new MessageChannel();
  const waiting = [];
  window.bench = [];
  window.control = [];
  channel.port1.onmessage = () => {
    const { key, control } = waiting.shift();
    if (control) window.control.push(performance.now() - key.at);
    else bench.push({ pair: key.pair, pressed: performance.timeOrigin + key.at, frame: performance.now() - key.at });
  };
  addEventListener("keydown", (event) => {
    const control = event.key === "F9";
    if (event.repeat || event.key === "Shift") return;
    const key = { pair: stage.dataset.pair, at: event.timeStamp };
    const look = () => {
      const drawn = [...document.querySelectorAll(".clip canvas")].every((c) => Number(c.dataset.frame) >= 0);
      const next = stage.dataset.pair;
      const shown = stage.dataset.ready === "true" && next !== key.pair && drawn;
      if (!control && !shown) return requestAnimationFrame(look);
      waiting.push({ key, control });
      channel.port2.postMessage(null); // runs once this frame has been handed on
    };
    requestAnimationFrame(look);
  }, { capture: true }); // before the page's own listener, so that its work counts
}"""


def make_session(data_dir: Path, pairs: int, width: int, height: int, frames: int) -> store.Session:
    """A session whose first batch waits for labels; a bar sweeps through each clip."""
    session = catalog.create_session(
        data_dir, SESSION, Config(env_id="CartPole-v1", goal="Bench", pairs_per_round=pairs)
    )
    session.checkpoint(store.START).write_bytes(b"none")
    directory = session.clip_directory(0, 0)
    directory.mkdir(parents=True)
    rows = []
    for i in range(2 * pairs):
        sheet = directory / f"{i:04d}.png"
        sheet.write_bytes(draw_sheet(width, height, frames, i))
        rows.append(dict(
            round=0, attempt=0, path=f"{i:04d}.npz", sheet=str(sheet.relative_to(session.path)), frame_width=width,
            frame_height=height, columns=COLUMNS, frames=frames, fps=30.0, steps=frames, seed=i, start=0,
        ))  # fmt: skip
    batch = [dict(round=0, attempt=0, position=i, left=2 * i, right=2 * i + 1, kind="uniform") for i in range(pairs)]
    session.add_batch(rows, batch)
    return session


def draw_sheet(width: int, height: int, frames: int, clip: int) -> bytes:
    sheet = Image.new("RGB", (width * COLUMNS, height * math.ceil(frames / COLUMNS)), "white")
    draw = ImageDraw.Draw(sheet)
    for i in range(frames):
        left, top = i % COLUMNS * width, i // COLUMNS * height
        x = left + (i * (3 + clip % 5) + 17 * clip) % (width - width // 8)
        draw.rectangle([x, top + height // 4, x + width // 8, top + height * 3 // 4], fill=(40 + clip % 200, 90, 160))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


class DiskWatch(threading.Thread):
    """Notes when another connection first sees each pair's label."""

    def __init__(self, database: Path) -> None:
        super().__init__(daemon=True)
        self.database = database
        self.seen: dict[int, float] = {}  # pair -> wall clock in ms
        self.done = threading.Event()

    def run(self) -> None:
        connection = sqlite3.connect(self.database)
        newest = 0
        while not self.done.is_set():
            for row, pair in connection.execute("SELECT id, pair FROM label WHERE id > ?", (newest,)):
                self.seen[pair] = time.time() * 1000
                newest = row
            time.sleep(0.002)
        connection.close()


def press_keys(page: Page, labels: int, pace: float) -> tuple[list[dict[str, Any]], list[float]]:
    page.evaluate(PROBE)
    for i in range(labels):
        page.wait_for_selector("#stage[data-ready=true]")
        page.wait_for_timeout(pace * 500)
        page.keyboard.press("F9")
        page.wait_for_timeout(pace * 500)
        page.keyboard.press(KEYS[i % len(KEYS)])
    page.wait_for_function("(n) => bench.length === n", arg=labels)
    found: list[dict[str, Any]] = page.evaluate("bench")
    return found, page.evaluate("control")


def row(name: str, values: Sequence[float], limit: float) -> str:
    ordered = sorted(values)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    share = sum(v <= limit for v in ordered) / len(ordered)
    return f"| {name} | {statistics.median(ordered):.1f} | {p95:.1f} | {ordered[-1]:.1f} | {share:.1%} ≤ {limit} ms |"


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", type=int, default=200, help="keys pressed and measured")
    parser.add_argument("--pace", type=float, default=1.0, help="seconds from a pair to its key press")
    parser.add_argument("--width", type=int, default=600, help="of a frame, in pixels")
    parser.add_argument("--height", type=int, default=400, help="of a frame, in pixels")
    parser.add_argument("--frames", type=int, default=50, help="of a clip")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    parser.add_argument("--json", action="store_true", help="print every measurement as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if not args.chromium:
        print("There is no Chromium on the PATH: install one, or name it with --chromium PATH.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="rlhf-gym-bench-") as directory:
        data_dir = Path(directory)
        session = make_session(data_dir, args.labels + 1, args.width, args.height, args.frames)
        server = Server(data_dir, port=0, token="bench-" + "x" * 20)
        watch = DiskWatch(session.path / "session.db")
        server.start()
        watch.start()
        try:
            with sync_playwright() as playwright:
                flags = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]
                browser = playwright.chromium.launch(executable_path=args.chromium, args=flags)
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                page.goto(server.page(SESSION))
                measured, control = press_keys(page, args.labels, args.pace)
                deadline = time.monotonic() + 10
                while len(watch.seen) < args.labels and time.monotonic() < deadline:
                    time.sleep(0.01)
                version = browser.version
                browser.close()
        finally:
            watch.done.set()
            watch.join()
            server.stop()
            session.close()
    if len(watch.seen) < args.labels:
        print(f"Only {len(watch.seen)} of {args.labels} labels reached the disk within 10 s.", file=sys.stderr)
        return 1
    disk = [watch.seen[int(m["pair"])] - m["pressed"] for m in measured]
    frame = [m["frame"] for m in measured]
    if args.json:
        print(json.dumps({"chromium": version, "frame_ms": frame, "disk_ms": disk, "control_ms": control}))
        return 0
    busy = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
    clips = f"{args.frames} frames of {args.width}x{args.height}"
    print(f"{args.labels} labels, {args.pace} s each, {clips}, Chromium {version}{busy}\n")
    print("| from the key press to | median ms | p95 ms | max ms | share |\n|---|---:|---:|---:|---:|")
    print(row("the next pair's first frame", frame, FRAME_LIMIT_MS))
    print(row("any frame at all (control)", control, FRAME_LIMIT_MS))
    print(row("the label on disk", disk, DISK_LIMIT_MS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
