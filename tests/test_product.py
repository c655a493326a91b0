"""The product as a person uses it: the command, real Chromium, three rounds of labels by keyboard, a better agent."""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_gym import catalog, store
from rlhf_gym.store import Session

ROUNDS = 3


@contextlib.contextmanager
def command(*args: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Starts rlhf-gym; yields the process and the growing list of its lines. Never leaves it behind."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf_gym", *args], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    lines: list[str] = []
    assert process.stderr is not None
    stderr = process.stderr
    reader = threading.Thread(target=lambda: lines.extend(stderr), daemon=True)
    reader.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait()
        reader.join(5)
        stderr.close()


def until(condition: Any, seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def key_for(session: Session, pair: store.Pair) -> str:
    """The key of a person who likes the clip that lasted longer."""
    clips = session.clips([pair.left_clip, pair.right_clip])
    left, right = (clips[c].ended_frame or math.inf for c in (pair.left_clip, pair.right_clip))
    return "ArrowUp" if left == right else "ArrowLeft" if left > right else "ArrowRight"


def test_three_rounds_by_keyboard_teach_cartpole(page: Any, console: Any, tmp_path: Path) -> None:
    args = ("CartPole-v1", "--rounds", str(ROUNDS), "--no-browser", "--data-dir", str(tmp_path))
    with command("run", *args, "--goal", "Keep it up") as (process, lines):
        url = until(lambda: re.search(r"http://\S+", "".join(lines)), 30, "the address of the page")[0]
        page.goto(url)
        session = catalog.open_session(tmp_path, "cartpole-1")
        for number in range(ROUNDS):
            batch = until(
                lambda n=number: session.pairs(n, session.where().attempt), 120, f"the pairs of round {number}"
            )
            attempt = batch[0].attempt
            page.wait_for_selector("canvas:visible", timeout=20_000)  # by itself: nobody refreshes
            for count, pair in enumerate(batch, 1):
                stage = f"#stage[data-ready=true][data-pair='{pair.id}']"
                page.wait_for_selector(stage, timeout=20_000)
                # the page ignores the first moments of a new pair
                shown = f'performance.now() - document.querySelector("{stage}")?.dataset.since'
                until(lambda js=shown: (page.evaluate(js) or 0) > 200, 20, f"pair {pair.id} on screen for a moment")
                page.keyboard.press(key_for(session, pair))
                until(
                    lambda n=number, c=count, a=attempt: sum(p.choice is not None for p in session.pairs(n, a)) >= c,
                    10,
                    f"label {count} of round {number} on disk",
                )
            choices = [p.choice for p in session.pairs(number, attempt)]
            expected = [
                {"ArrowUp": "equal", "ArrowLeft": "left", "ArrowRight": "right"}[key_for(session, p)] for p in batch
            ]
            assert choices == expected  # what was pressed is what was shown
            page.wait_for_selector("text=/Learning your taste|Training the/", timeout=20_000)
            page.wait_for_selector("text=Training the", timeout=120_000)  # once the reward model is trained
        until(lambda: session.where().phase == "finished", 120, "the end of the last round")
        page.wait_for_selector("video", timeout=20_000)
        console.allow("ERR_CONNECTION_REFUSED")  # the server goes, the page stays open
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert time.monotonic() - pressed < 5
    arguments = ("evaluate", "cartpole-1", "--episodes", "20", "--json", "--data-dir", str(tmp_path))
    evaluation = subprocess.run([sys.executable, "-m", "rlhf_gym", *arguments], capture_output=True, text=True)
    assert evaluation.returncode == 0, evaluation.stderr
    result = json.loads(evaluation.stdout)
    assert result["round"] == ROUNDS - 1
    assert result["episodes"] == 20
    assert result["mean"] >= 400, result
    session.close()
