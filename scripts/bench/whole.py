"""How long a person waits: from the command to the first pair, from round to round, and for an agent that can do it.

Run it from the checkout, with Chromium installed:

    python scripts/bench/whole.py start --runs 5
    python scripts/bench/whole.py between --rounds 3
    python scripts/bench/whole.py between --env-id ALE/Pong-v5 --rounds 1 --pace 0.5
    python scripts/bench/whole.py person --seeds 1 2 3

`rlhf-gym run` is started as a process of its own, in a temporary directory, and a headless Chromium that already runs
opens the printed address. A scripted person sees a pair, thinks for `--pace` seconds and presses a key: that of the
clip with the higher true return (looked up in the session by the pair that the page shows), the other one with
probability `--mistake-rate`. What comes after `--` goes to `rlhf-gym run`, e.g. `-- --pairs-per-round 10`.

* start: seconds from the start of the process until its address was printed, the page was loaded (its `load` event),
  the loop announced its first phase (all imported, the machine measured), the first pairs were stored (from then on the
  session is at `label`), and both clips of the first pair were drawn.
* between: from the last key press of a batch to the first pair of the next one, by the phase that the loop announced in
  progress.json: `record` if evaluation and video were not done yet, `label` (the moment in which the last label can be
  taken back, and until the next phase is announced), `train_reward`, `train_agent`, `collect` until the pairs are
  stored, and `screen` from there to the first frames.
* person: from the command until an evaluation of the session gives `--until`. `person` is the time from each pair's
  first frames to its key press, `start` all until the first pair, the phases are those of `between`, summed, and `rest`
  is what the page took between two pairs. `record in all` mostly runs while the person labels: no part of the sum.

"Drawn" is measured in the page: the frame whose callbacks see both canvases drawn has been handed on for painting. All
clocks are this machine's wall clock (in the page performance.timeOrigin). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlhf_gym import labelers, store  # noqa: E402
from rlhf_gym.config import Config  # noqa: E402
from rlhf_gym.segments import load_clip  # noqa: E402

SESSION = "whole-1"
POLL_SECONDS = 0.02  # of the session's files
LOOK_SECONDS = 0.05  # of the page: what is measured there is not rounded to it
STOP_SECONDS = 8.0
SETTLED = 0.2  # seconds: the page ignores a key that comes sooner
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "equal": "ArrowUp", "skip": "ArrowDown"}
PARTS = ("start", "record", "label", "train_reward", "train_agent", "collect", "screen")

EYES = """(() => {
  const wall = (time) => performance.timeOrigin + time;
  const eyes = (window.eyes = { shown: [], pressed: [], said: [], loaded: null });
  const channel = new MessageChannel();
  const waiting = [];
  channel.port1.onmessage = () => eyes.shown.push({ pair: waiting.shift(), at: wall(performance.now()) });
  addEventListener("load", () => setTimeout(() => (eyes.loaded = wall(performance.now()))));
  addEventListener("keydown", (event) => eyes.pressed.push(wall(event.timeStamp)), { capture: true });
  addEventListener("DOMContentLoaded", () => {
    const stage = document.getElementById("stage");
    if (!stage) return;
    const canvases = [...stage.querySelectorAll("canvas")];
    const look = (pair) => {
      if (stage.dataset.pair !== pair) return;
      const drawn = canvases.every((canvas) => Number(canvas.dataset.frame) >= 0 && canvas.checkVisibility());
      if (!drawn) return requestAnimationFrame(() => look(pair));
      waiting.push(Number(pair));
      channel.port2.postMessage(null); // runs once this frame has been handed on
    };
    const changed = () => {
      const pair = stage.dataset.pair;
      if (pair && stage.dataset.ready === "true") requestAnimationFrame(() => look(pair));
    };
    new MutationObserver(changed).observe(stage, { attributeFilter: ["data-pair"] });
    changed();
    for (const id of ["now-title", "stage-note", "trouble", "toast"]) {
      const place = document.getElementById(id);
      let last = "";
      const read = () => {
        const text = place.checkVisibility() ? place.textContent : "";
        if (text && text !== last) eyes.said.push({ at: wall(performance.now()), text });
        last = text;
      };
      new MutationObserver(read).observe(place, { childList: true, characterData: true, subtree: true });
      setTimeout(read);
    }
  });
})()"""


class Program:
    """`rlhf-gym run` as a process of its own, with its pages."""

    def __init__(self, data_dir: Path, words: Sequence[str]) -> None:
        command = [sys.executable, "-m", "rlhf_gym", "run", *words]
        command += ["--session", SESSION, "--data-dir", str(data_dir), "--no-browser"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.lines: list[tuple[float, str]] = []  # when it was printed, the line
        self.began = time.time()
        self.process = subprocess.Popen(
            command, cwd=data_dir.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.time(), line))

    def check(self) -> None:
        """Raises RuntimeError with its last lines if it has ended."""
        if (status := self.process.poll()) is not None:
            self._reader.join(5)
            said = "".join(line for _, line in self.lines[-20:])
            raise RuntimeError(f"rlhf-gym run ended with status {status}:\n{said}")

    def address(self) -> tuple[float, str]:
        """When it printed the page's address, and that; waits until it has."""
        while True:
            for when, line in list(self.lines):
                if line.startswith("Open http"):
                    return when, line.split()[1]
            self.check()
            time.sleep(0.002)

    def stop(self) -> None:
        """Ends it as `kill` does, and says so where once is not enough."""
        for _ in range(3):
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
                break
            except subprocess.TimeoutExpired:
                tell(f"rlhf-gym run did not stop within {STOP_SECONDS:.0f} s of SIGTERM.")
        else:
            self.process.kill()
            self.process.wait()
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Watch(threading.Thread):
    """Reads what the loop says and stores: when it announced a phase, stored pairs, and evaluated an agent."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self.path = path
        self.phases: list[tuple[float, str, int]] = []  # when, phase, round
        self.stored: list[float] = []  # when a batch's pairs came
        self.returns: dict[int, tuple[float, float]] = {}  # round -> when it was recorded, mean true return
        self.over = threading.Event()

    def run(self) -> None:
        uri = f"{(self.path / 'session.db').absolute().as_uri()}?mode=ro"
        connection: sqlite3.Connection | None = None
        pairs = 0
        while not self.over.wait(POLL_SECONDS):
            self.look_at_progress()
            with contextlib.suppress(sqlite3.OperationalError):  # it is being made
                connection = connection or sqlite3.connect(uri, uri=True)
                (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM pair").fetchone()
                if newest > pairs:
                    pairs = newest
                    self.stored.append(time.time())
                query = "SELECT round, value FROM metric WHERE name = 'eval/mean' AND phase = 'record'"
                for number, value in connection.execute(query):
                    self.returns.setdefault(number, (time.time(), value))
        if connection is not None:
            connection.close()

    def look_at_progress(self) -> None:
        try:
            said = json.loads((self.path / "progress.json").read_text())
        except (OSError, ValueError):
            return
        phase, number = str(said["phase"]), int(said["round"])
        if not self.phases or self.phases[-1][1:] != (phase, number):
            self.phases.append((max(float(said["time"]), self.phases[-1][0] if self.phases else 0.0), phase, number))

    def best(self) -> float:
        """Of the agents that were taught; -inf before the first."""
        return max((value for number, (_, value) in list(self.returns.items()) if number >= 0), default=-np.inf)


def split(
    phases: Sequence[tuple[float, str, int]], stored: Sequence[float], begin: float, end: float
) -> dict[str, float]:
    """Seconds from begin to end by the phase that was announced; from the last pairs stored in between: screen."""
    came = max((when for when in stored if begin <= when <= end), default=end)
    before = [name for when, name, _ in phases if when <= begin]
    marks = [(begin, before[-1] if before else "start")]
    marks += [(when, name) for when, name, _ in phases if begin < when < came]
    parts = dict.fromkeys(PARTS, 0.0)
    for (since, name), until in zip(marks, [*(when for when, _ in marks[1:]), came], strict=True):
        parts[name] = parts.get(name, 0.0) + until - since
    parts["screen"] += end - came
    return parts


@dataclass
class Shown:
    """A pair on screen."""

    id: int
    at: float
    round: int
    attempt: int
    pressed: float | None = None


@dataclass
class Wait:
    """From the last key press of a batch to the first pair of the next."""

    round: int  # that was labeled
    begin: float
    end: float
    parts: dict[str, float]


@dataclass
class Visit:
    """One command, one page, one person."""

    program: Program
    watch: Watch
    page: Page
    args: argparse.Namespace
    seed: int
    printed: float = 0.0
    shown: list[Shown] = field(default_factory=list)
    session: store.Session | None = None

    def next_pair(self, enough: Callable[[], bool] = lambda: False) -> Shown | None:
        """Waits for the next pair on screen; None if there is enough before."""
        deadline = time.monotonic() + self.args.limit
        while not enough():
            if found := self.page.evaluate("(n) => eyes.shown[n] ?? null", len(self.shown)):
                self.shown.append(self.look_up(int(found["pair"]), float(found["at"]) / 1000))
                return self.shown[-1]
            self.program.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"No new pair came on screen within {self.args.limit:.0f} s.")
            time.sleep(LOOK_SECONDS)
        return None

    def look_up(self, number: int, at: float) -> Shown:
        if self.session is None:
            self.session = store.Session(self.watch.path)
        (pair,) = self.session.pairs(ids=[number])
        return Shown(pair.id, at, pair.round, pair.attempt)

    def judge(self, shown: Shown, enough: Callable[[], bool] = lambda: False) -> None:
        """Looks at the pair for a while and presses a key, unless there is enough before."""
        choice = self.choice(shown.id)
        due = shown.at + max(self.args.pace, SETTLED)
        while (left := due - time.time()) > 0:
            if enough():
                return
            time.sleep(min(left, LOOK_SECONDS))
        count = len(self.page.evaluate("eyes.pressed"))
        self.page.keyboard.press(KEYS[choice])
        shown.pressed = float(self.page.evaluate("(n) => eyes.pressed[n]", count)) / 1000

    def choice(self, number: int) -> str:
        """What a person says who wants the true return, and slips now and then."""
        assert self.session is not None
        (pair,) = self.session.pairs(ids=[number])
        clips = self.session.clips([pair.left_clip, pair.right_clip])
        left, right = (
            labelers.true_return(labelers.scored(load_clip(self.session, clips[clip])))
            for clip in (pair.left_clip, pair.right_clip)
        )
        rng = np.random.default_rng((self.seed, number))
        return labelers.synthetic_choice(left, right, Config(mistake_rate=self.args.mistake_rate), rng)

    def waits(self) -> list[Wait]:
        found = []
        for last, first in itertools.pairwise(self.shown):
            if (last.round, last.attempt) != (first.round, first.attempt) and last.pressed is not None:
                parts = split(self.watch.phases, self.watch.stored, last.pressed, first.at)
                found.append(Wait(last.round, last.pressed, first.at, parts))
        return found

    def said(self, begin: float, end: float) -> list[str]:
        """What the page said in words meanwhile, and when."""
        words = self.page.evaluate("eyes.said")
        at = [(float(w["at"]) / 1000, str(w["text"])) for w in words]
        return [f"{when - begin:.1f} s: {text}" for when, text in at if begin <= when <= end]


@contextlib.contextmanager
def visit(browser: Browser, args: argparse.Namespace, seed: int) -> Iterator[Visit]:
    """Starts the command and opens the page as soon as its address is printed; nothing stays behind."""
    words = [args.env_id, "--seed", str(seed), *args.more]
    if args.agent_steps_per_round is not None:
        words += ["--agent-steps-per-round", str(args.agent_steps_per_round)]
    with tempfile.TemporaryDirectory(prefix="rlhf-gym-whole-", ignore_cleanup_errors=True) as directory:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        context.add_init_script(EYES)
        page = context.new_page()
        data_dir = Path(directory) / "data"
        data_dir.mkdir()
        program, watch = Program(data_dir, words), Watch(data_dir / SESSION)
        watch.start()
        found = Visit(program, watch, page, args, seed)
        try:
            found.printed, url = program.address()
            page.goto(url, wait_until="commit")
            yield found
        finally:
            context.close()
            watch.over.set()
            watch.join()
            if found.session is not None:
                found.session.close()
            program.stop()


# ---------------------------------------------------------------------------------------------- what is measured


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def measure_start(browser: Browser, args: argparse.Namespace) -> None:
    rows: list[list[float]] = []
    said: list[str] = []
    for run in range(args.runs):
        with visit(browser, args, args.seeds[run % len(args.seeds)]) as seen:
            first = seen.next_pair()
            assert first is not None
            seen.page.wait_for_load_state("load")
            loaded = float(seen.page.evaluate("new Promise((tell) => setTimeout(() => tell(eyes.loaded), 20))")) / 1000
            times = [seen.printed, loaded, seen.watch.phases[0][0], seen.watch.stored[0], first.at]
            rows.append([t - seen.program.began for t in times])
            said = seen.said(seen.program.began, first.at)
        tell(f"run {run + 1}: {rows[-1][-1]:.2f} s")
    print("| seconds from the command to | address | page loaded | first phase | pairs stored | **first pair drawn** |")
    print("|---|---:|---:|---:|---:|---:|")
    for n, row in enumerate(rows, 1):
        print(f"| run {n} | {' | '.join(f'{x:.2f}' for x in row)} |")
    print(f"| median (from, to) | {' | '.join(spread(column) for column in zip(*rows, strict=True))} |")
    print_said(said)


def measure_between(browser: Browser, args: argparse.Namespace) -> None:
    rows: list[tuple[int, Wait]] = []
    shares: dict[str, list[float]] = {}
    said: list[str] = []
    for seed in args.seeds:
        with visit(browser, args, seed) as seen:
            while (pair := seen.next_pair()) is not None and len(seen.waits()) < args.rounds:
                seen.judge(pair)
            waits = seen.waits()
            rows += [(seed, wait) for wait in waits]
            said = seen.said(waits[-1].begin, waits[-1].end)
            assert seen.session is not None
            for metric in seen.session.metrics(phase="train_agent"):
                if metric["name"].startswith("time/") or metric["name"] in ("charts/live_share", "charts/SPS"):
                    shares.setdefault(metric["name"], []).append(metric["value"])
        tell(f"seed {seed}: {', '.join(f'{wait.end - wait.begin:.1f} s' for wait in waits)}")
    names = PARTS[1:]
    print(f"| seed | after round | {' | '.join(names)} | **seconds to the next pair** |")
    print(f"|---:|---:|{'---:|' * (len(names) + 1)}")
    for seed, wait in rows:
        parts = " | ".join(f"{wait.parts[name]:.2f}" for name in names)
        print(f"| {seed} | {wait.round} | {parts} | {wait.end - wait.begin:.2f} |")
    parts = " | ".join(f"{statistics.median(wait.parts[name] for _, wait in rows):.2f}" for name in names)
    print(f"| median | (from, to) | {parts} | {spread([wait.end - wait.begin for _, wait in rows])} |")
    means = {name.partition("/")[2]: statistics.mean(values) for name, values in sorted(shares.items())}
    speed = means.pop("SPS", 0.0)
    listed = ", ".join(f"{name} {share:.0%}" for name, share in means.items())
    print(f"\nThe agent's training: {speed:,.0f} steps/s; {listed}.")
    print_said(said)


def measure_person(browser: Browser, args: argparse.Namespace) -> None:
    names = (*PARTS, "rest")
    print(f"| seed | wall s | person s | labels | true return by round | {' | '.join(names)} | record in all |")
    print(f"|---:|---:|---:|---:|---|{'---:|' * (len(names) + 1)}")
    walls, labors, missed = [], [], 0
    for seed in args.seeds:
        with visit(browser, args, seed) as seen:
            watch = seen.watch

            def enough(watch: Watch = watch) -> bool:
                return watch.best() >= args.until or args.rounds - 1 in watch.returns

            while (pair := seen.next_pair(enough)) is not None:
                seen.judge(pair, enough)
            began, waits = seen.program.began, seen.waits()
            end = max(when for when, _ in watch.returns.values())
            missed += watch.best() < args.until
        worked = sum((pair.pressed or max(end, pair.at)) - pair.at for pair in seen.shown)
        parts = {name: sum(wait.parts.get(name, 0.0) for wait in waits) for name in PARTS}
        parts["start"] = seen.shown[0].at - began
        parts["rest"] = end - began - worked - sum(parts.values())
        marks = [*watch.phases, (end, "", 0)]
        record = sum(max(b[0] - a[0], 0.0) for a, b in itertools.pairwise(marks) if a[1] == "record")
        learned = sum(pair.pressed is not None and pair.round <= max(watch.returns) for pair in seen.shown)
        labels = sum(pair.pressed is not None for pair in seen.shown)
        more = f" + {labels - learned}" if labels > learned else ""
        returns = ", ".join(f"{watch.returns[n][1]:.4g}" for n in sorted(watch.returns))
        listed = " | ".join(f"{parts[name]:.1f}" for name in names)
        walls.append(end - began)
        labors.append(worked)
        print(
            f"| {seed} | {walls[-1]:.1f} | {worked:.1f} | {learned}{more} | {returns} | {listed} | {record:.1f} |",
            flush=True,
        )
    print(f"\nMedian {statistics.median(walls):.0f} s ({min(walls):.0f} to {max(walls):.0f}), of which the person "
          f"worked {statistics.median(labors):.0f} s. Labels after + are of the next batch, given while the agent was "
          "evaluated; the first return is that of the untrained agent.")  # fmt: skip
    if missed:
        print(f"{missed} of {len(args.seeds)} did not get to {args.until:g} within {args.rounds} rounds.")


def print_said(said: Sequence[str]) -> None:
    """What stood on the page during the last wait."""
    if said:
        print("\nOn the page meanwhile (the last time):\n")
        print("\n".join(f"* {line}" for line in said))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


MEASURES = {"start": measure_start, "between": measure_between, "person": measure_person}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=MEASURES, help="what is waited for")
    parser.add_argument("--env-id", default="CartPole-v1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the sessions; start takes them in turn")
    parser.add_argument("--runs", type=int, default=5, help="start: how often")
    parser.add_argument("--rounds", type=int, help="between: waits, 3 if not given; person: at most, 8 if not given")
    parser.add_argument("--pace", type=float, default=2.5, help="seconds from a pair to its key press")
    parser.add_argument("--mistake-rate", type=float, default=0.1, help="share of keys pressed by mistake")
    parser.add_argument("--until", type=float, default=475.0, help="person: mean true return to get to")
    parser.add_argument("--agent-steps-per-round", type=int, help="as of rlhf-gym run")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds that a pair is waited for at most")
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="path of the browser")
    args = parser.parse_args(words[:cut])
    args.more = words[cut + 1 :]
    args.rounds = args.rounds or {"between": 3, "person": 8}.get(args.what, 1)
    return args


def busy() -> str:
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if not args.chromium:
        print("There is no Chromium on the PATH: install one, or name it with --chromium PATH.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing that was started stays behind
    before = busy()
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--headless", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=args.chromium, args=flags)
        given = " ".join(args.more)
        print(f"{args.what} {args.env_id}{f' {given}' if given else ''}, a key {args.pace:g} s after each pair, "
              f"Chromium {browser.version}, {os.cpu_count()} cores\n")  # fmt: skip
        try:
            MEASURES[args.what](browser, args)
        except RuntimeError as error:
            print(f"whole.py: {error}", file=sys.stderr)
            return 1
        finally:
            browser.close()
    print(f"\nLoad {before} before and {busy()} after.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
