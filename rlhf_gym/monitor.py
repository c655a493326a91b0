"""What the loop is doing, told at once to the terminal, to the page, to the metric table and to TensorBoard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from rlhf_gym.board import Board
from rlhf_gym.config import printable
from rlhf_gym.control import Control
from rlhf_gym.store import Session, finite

PAGE_SECONDS = 0.2  # between two writes of progress.json
OVER_STEPS = ("train_agent", "record")  # phases whose metrics are shown over the agent's steps, not over rounds
METRIC_SECONDS = 1.0  # between two rows of a metric
LINE_SECONDS = 10.0  # between two lines where the terminal is none

SHORT = {  # names on the line, in this order
    "charts/predicted_reward": "predicted",
    "charts/true_return": "true",
    "reward/loss": "loss",
    "reward/accuracy": "accuracy",
    "reward/held_out_accuracy": "held-out",
    "eval/mean": "true return",
}


def in_words(seconds: float) -> str:
    """50 -> 50 s, 2446 -> 41 min, 6000 -> 1.7 h"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """125 -> 2:05"""
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )


class Monitor:
    """Reports one phase after another, and hears the person meanwhile. Not thread-safe: the loop alone uses it."""

    def __init__(self, session: Session, console: Console) -> None:
        self.session, self.console = session, console
        self.control: Control | None = None  # whom to hear, if anybody
        self.board = Board(session)
        self.round, self.name, self.unit = 0, "", ""
        self.numbers: dict[str, float] = {}
        self.began = self.paged = self.measured = self.lined = 0.0
        self.first: int | None = None  # done at the first report of the phase, which came at
        self.first_at = 0.0
        self.done = self.total = 0
        self.parts: dict[str, float] = {}  # shares of the time, by what took it
        self.progress: Progress | None = None
        self.task: TaskID | None = None

    def close(self) -> None:
        self.board.close()

    @contextlib.contextmanager
    def phase(self, round: int, name: str, unit: str) -> Iterator[Monitor]:
        """Shows a progress bar while the phase runs, and leaves one line behind when it is done."""
        self.round, self.name, self.unit, self.numbers = round, name, unit, {}
        self.began, self.paged, self.measured, self.lined = time.monotonic(), 0.0, 0.0, time.monotonic()
        self.first, self.first_at, self.done, self.total, self.parts = None, 0.0, 0, 0, {}
        self.page()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24))
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            self.progress, self.task = bar, bar.add_task(self.line(), total=None)
            yield self
        self.progress = None
        if name not in OVER_STEPS:
            self.board.numbers(self.numbers, round)  # the last ones: a round has one place there
        self.console.print(self.line(), highlight=False)

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] | None = None, step: int = 0) -> None:
        """Progress within the phase, and what was measured there.

        Args:
            step: where metrics stand on the x axis; 0 stands for `done`.
        """
        if self.first is None:
            self.first, self.first_at = done, self.elapsed()
        self.done, self.total = done, total
        now = time.monotonic()
        if metrics:
            self.numbers |= {k: v for k, v in metrics.items() if finite(v) is not None}
            self.parts = {k.removeprefix("time/"): v for k, v in self.numbers.items() if k.startswith("time/")}
            if done >= total or now - self.measured >= METRIC_SECONDS:
                self.measured = now
                self.put(metrics, step or done)
        if done >= total or now - self.paged >= PAGE_SECONDS:
            self.paged = now
            self.page()
            self.heed()
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, description=self.line(), completed=done, total=total)
        if not self.console.is_terminal and now - self.lined >= LINE_SECONDS and self.name != "label":
            self.lined = now
            self.console.print(self.line(), highlight=False)

    def put(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Stores metrics under the same names in the metric table and shows them in TensorBoard."""
        self.session.put_metrics(self.round, self.name, step, metrics)
        if self.name in OVER_STEPS:
            self.board.numbers(metrics, self.round, step)

    def heed(self) -> None:
        """Hears what the person said on the page meanwhile, and sleeps while they want a pause.

        Raises:
            Stopped, Replanned: they want something else.
        """
        if self.control is None:
            return
        self.control.check()
        if self.control.paused() and self.name not in ("label", "draw"):  # in which somebody labels
            self.page(paused=True)
            waited = self.control.wait()
            self.began, self.lined = self.began + waited, self.lined + waited  # speed is without the waiting
            self.page()

    def elapsed(self) -> float:
        """Seconds since the phase began or went on, without what it was paused for."""
        return time.monotonic() - self.began

    def speed(self) -> float | None:
        """Units per second, of what was done since the first report."""
        passed = self.elapsed() - self.first_at
        return (self.done - self.first) / passed if self.first is not None and passed > 0.3 else None

    def eta(self) -> float | None:
        speed = self.speed()
        return (self.total - self.done) / speed if speed and self.total else None

    def line(self) -> str:
        """round 2 train_agent 40,960/50,000 | predicted 0.83 | true 412.0 | 9,812 steps/s | eta 0:01"""
        parts = [
            f"{'untrained agent' if self.round < 0 else f'round {self.round}'} {self.name} {self.done:,}/{self.total:,}"
        ]
        parts += [f"{short} {self.numbers[n]:.4g}" for n, short in SHORT.items() if n in self.numbers]
        if self.name == "train_agent" and (speed := self.speed()):
            parts.append(f"{speed:,.0f} {self.unit}/s")
        if self.parts and self.done < self.total:
            parts.append(", ".join(f"{name} {share:.0%}" for name, share in self.parts.items()))
        if self.name != "label" and self.done < self.total and (eta := self.eta()) is not None:
            parts.append(f"eta {clock(eta)}")
        return " | ".join(parts)

    def page(self, paused: bool = False, message: str | None = None) -> None:
        """What the page shows."""
        numbers = {short: self.numbers[n] for n, short in SHORT.items() if n in self.numbers}
        self.session.write_progress(
            phase=self.name, round=self.round, done=self.done, total=self.total, unit=self.unit,
            speed=finite(self.speed()), eta=finite(self.eta()), numbers=numbers, paused=paused,
            message=message, parts=self.parts,
        )  # fmt: skip

    def warn(self, text: str) -> None:
        """Says it in the terminal and on the page; from another thread, while the loop hangs."""
        self.say(text)
        self.page(message=text)

    def say(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False)
