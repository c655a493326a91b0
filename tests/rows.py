"""A session on disk and the rows of a batch in it, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_gym import catalog
from rlhf_gym.config import Config
from rlhf_gym.store import Session

CONFIG = Config(env_id="CartPole-v1", labeler="synthetic")


def clip(number: int, round: int = 0, attempt: int = 0, **more: Any) -> dict[str, Any]:
    path = f"clips/r{round:03d}-{attempt}/{number:04d}.npz"
    return dict(round=round, attempt=attempt, path=path, fps=30.0, steps=50, seed=number, start=0) | more


def pair(position: int, round: int = 0, attempt: int = 0, **more: Any) -> dict[str, Any]:
    row = dict(round=round, attempt=attempt, position=position, kind="uniform") | more
    return row if "repeat_of" in more else dict(left=2 * position, right=2 * position + 1) | row


def collect(session: Session, count: int = 3, round: int = 0, attempt: int = 0) -> list[int]:
    """A batch of pairs; returns their ids in the order they are shown."""
    session.add_batch(
        [clip(i, round, attempt) for i in range(2 * count)], [pair(i, round, attempt) for i in range(count)]
    )
    return [p.id for p in session.pairs(round, attempt)]


def train(session: Session, number: int) -> None:
    session.checkpoint(number).write_bytes(b"weights")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = catalog.create_session(tmp_path / "data", "one", CONFIG)
    yield made
    made.close()
