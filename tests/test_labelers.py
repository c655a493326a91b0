"""Who labels: the synthetic labeler judges by score and errs like a person; for a person the loop waits."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_gym import catalog, labelers
from rlhf_gym.config import Config, UserError
from rlhf_gym.labelers import ScoredClip, load_score, synthetic_choice
from rlhf_gym.segments import Segment, save_segment
from rlhf_gym.store import START, Session, Where

BATCH = Where(0, 0, "label", 0, 0)
STEPS = 6


def config(**settings: Any) -> Config:
    return Config(**{"env_id": "CartPole-v1", "labeler": "synthetic", **settings})


def choices(left: float, right: float, count: int = 1, **settings: Any) -> list[str]:
    rng = np.random.default_rng(0)
    return [synthetic_choice(left, right, config(**settings), rng) for _ in range(count)]


# ---------------------------------------------------------------------------------------------- one pair


def test_the_higher_score_is_better() -> None:
    assert choices(2.0, 1.0) == ["left"]
    assert choices(-1.0, 0.5) == ["right"]
    assert choices(np.inf, 3.0) == ["left"]


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("better", ["left", "right"])
def test_labels_are_flipped_at_the_mistake_rate(rate: float, better: str) -> None:
    count = 4000
    scores = (1.0, 0.0) if better == "left" else (0.0, 1.0)
    made = choices(*scores, count, mistake_rate=rate)
    assert set(made) <= {"left", "right"}
    wrong = sum(choice != better for choice in made) / count
    assert abs(wrong - rate) <= 4 * (rate * (1 - rate) / count) ** 0.5  # four standard errors; none at rate 0


def test_ties_and_skips() -> None:
    assert choices(1.0, 1.0) == ["equal"]
    assert choices(1.0, 1.5, tie_threshold=0.5) == ["equal"]  # the threshold itself is a tie
    assert choices(1.0, 1.6, tie_threshold=0.5) == ["right"]
    assert choices(np.inf, np.inf) == choices(-np.inf, -np.inf) == ["equal"]
    assert choices(-2.0, -3.0, skip_threshold=-1.0) == ["skip"]
    assert choices(-2.0, -2.0, skip_threshold=-1.0) == ["skip"]  # before a tie: nothing can be told of either
    assert choices(-1.0, -3.0, skip_threshold=-1.0) == ["left"]  # one of them does not lie below
    assert choices(-2.0, -3.0) == ["left"]  # by default nothing is skipped


def test_a_tie_or_skip_is_no_mistake() -> None:
    assert set(choices(1.0, 1.0, 200, mistake_rate=0.5)) == {"equal"}
    assert set(choices(-9.0, -8.0, 200, mistake_rate=0.5, skip_threshold=0.0)) == {"skip"}


# ---------------------------------------------------------------------------------------------- scores


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """module(source) -> the name of a module with that source, in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made: list[str] = []

    def make(source: str) -> str:
        name = f"scores_{abs(hash((tmp_path, len(made))))}"
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


def scored_clip(rewards: list[float], **more: Any) -> ScoredClip:
    n = len(rewards)
    values = dict(observations=np.zeros((n, 4)), actions=np.zeros(n), rewards=np.array(rewards), infos=[{}] * n)
    return ScoredClip(**{**values, "absorbing": np.zeros(n, bool), **more})


def test_the_default_score_is_the_true_return() -> None:
    assert load_score("")(scored_clip([1.0, 0.5, -3.0])) == -1.5


def test_a_true_return_that_is_nan_asks_for_a_score() -> None:
    with pytest.raises(UserError, match=r"true return .* is NaN.*--score"):
        load_score("")(scored_clip([1.0, np.nan]))


def test_a_score_function_of_the_users(module: Callable[[str], str]) -> None:
    name = module("def low(clip):\n    return -clip.observations[:, 0].sum() + clip.infos[0]['x']\n")
    score = load_score(f"{name}:low")  # found in the current directory
    value = score(scored_clip([np.nan, np.nan], observations=np.ones((2, 4)), infos=[{"x": 0.5}, {"x": 9.0}]))
    assert value == -1.5
    assert type(value) is float


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return clip.nothing", "raised AttributeError: 'ScoredClip' object has no attribute 'nothing'."),
        ("return None", "raised TypeError: "),
        ("return 'much'", "raised ValueError: could not convert string to float: 'much'."),
        ("return clip.rewards", "raised TypeError: "),  # one number is wanted
        ("raise RuntimeError('two\\n\\nlines')", "raised RuntimeError: two lines."),
        ("return float('nan')", "returned NaN: a score must be a number."),
        ("return clip.rewards.mean() * float('nan')", "returned NaN"),
    ],
)
def test_what_goes_wrong_in_a_score_is_one_sentence(module: Callable[[str], str], body: str, says: str) -> None:
    score = load_score(f"{module(f'def score(clip):{chr(10)}    {body}')}:score")
    with pytest.raises(UserError) as caught:
        score(scored_clip([1.0, 2.0]))
    assert says in str(caught.value)
    assert str(caught.value).startswith("--score scores_")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "function", "says"),
    [
        ("x = 3", "x", "'x' is not a function"),
        ("x = 3", "score", "has no function 'score'"),
        ("x = 3", "", "has no function ''"),
        ("import not_there_at_all", "score", "No module named 'not_there_at_all'"),
        ("def score(clip:", "score", "SyntaxError: "),
        ("1 / 0", "score", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_score_that_cannot_be_found_is_one_sentence(
    module: Callable[[str], str], source: str, function: str, says: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_score(f"{module(source)}:{function}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no_such_module_anywhere:score", ":score", ".relative:score", "a b:score", "a/b:c"])
def test_a_module_that_is_none_is_one_sentence(name: str, module: Callable[[str], str]) -> None:
    with pytest.raises(UserError, match=r"--score .*: cannot import .*; is it in "):
        load_score(name)


# ---------------------------------------------------------------------------------------------- a batch


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    """A session with four pairs of clips whose true returns are 0, 1, … 7, so that right is better each time."""
    made = catalog.create_session(tmp_path / "data", "one", config())
    made.checkpoint(START).write_bytes(b"weights")
    add_pairs(made, 0, [float(i) for i in range(8)])
    yield made
    made.close()


def add_pairs(session: Session, attempt: int, returns: list[float]) -> None:
    directory = session.clear_batch_files(0, attempt)
    clips = []
    for i, value in enumerate(returns):
        rewards = np.full(STEPS, value / STEPS, np.float32)
        segment = Segment(np.full((STEPS, 4), value), np.zeros(STEPS), rewards, np.zeros(STEPS, bool), {})
        save_segment(directory / f"{i:04d}.npz", segment)
        path = (directory / f"{i:04d}.npz").relative_to(session.path).as_posix()
        clips.append(dict(round=0, attempt=attempt, path=path, fps=30.0, steps=STEPS, seed=i, start=0))
    batch = dict(round=0, attempt=attempt, kind="uniform")
    session.add_batch(clips, [dict(position=i, left=2 * i, right=2 * i + 1, **batch) for i in range(len(clips) // 2)])


def label(session: Session, attempt: int = 0, **settings: Any) -> list[str | None]:
    """Labels the batch; returns the choices in the order the pairs are shown."""
    reports: list[tuple[int, int]] = []
    where = Where(0, attempt, "label", 4, 0)
    labelers.label_synthetically(session, config(**settings), where, lambda *progress: reports.append(progress))
    pairs = session.pairs(0, attempt)
    assert reports == [(n, len(pairs)) for n in range(1, len(pairs) + 1)]
    return [p.choice for p in pairs]


def test_a_batch_is_labeled_by_true_return(session: Session) -> None:
    assert label(session) == ["right"] * 4
    assert session.where().phase == "train_reward"


def test_labels_depend_on_seed_and_pair_and_on_nothing_else(session: Session, tmp_path: Path) -> None:
    """Neither on what else is labeled nor on when: so a run that was killed labels like one that was not."""
    other = catalog.create_session(tmp_path / "data", "two", config())
    add_pairs(other, 0, [0.0] * 8)
    for each in (session, other):
        add_pairs(each, 1, [float(i) for i in range(40)])
    mistaken = label(session, 1, mistake_rate=0.5)
    assert set(mistaken) == {"left", "right"}
    for p in other.pairs(0, 1)[::2]:
        other.add_label(f"mine-{p.id}", p.id, "equal")
    assert label(other, 1, mistake_rate=0.5)[1::2] == mistaken[1::2]
    other.close()
    add_pairs(session, 2, [float(i) for i in range(40)])
    assert label(session, 2, mistake_rate=0.5) != mistaken  # another batch, other mistakes


def test_a_label_that_someone_took_back_is_made_again(session: Session) -> None:
    """Else the batch would never be done: the loop would come back to this phase for ever."""
    label(session)
    for undo in ("once", "twice"):
        session.take_back(undo)
        assert label(session) == ["right"] * 4
        assert session.where().phase == "train_reward"
    assert session.last_label_id() == 8


def test_a_half_labeled_batch_is_finished_not_begun_anew(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = session.pairs()
    session.add_label("mine", pairs[1].id, "equal")
    read: list[str] = []
    real = labelers.load_clip
    monkeypatch.setattr(labelers, "load_clip", lambda s, clip: (read.append(Path(clip.path).name), real(s, clip))[1])
    assert label(session) == ["right", "equal", "right", "right"]
    assert session.last_label_id() == 4
    assert sorted(read) == ["0000.npz", "0001.npz", "0004.npz", "0005.npz", "0006.npz", "0007.npz"]  # each once
    read.clear()
    assert label(session) == ["right", "equal", "right", "right"]  # all of it again changes nothing
    assert session.last_label_id() == 4
    assert read == []


def test_a_score_that_fails_half_way_loses_no_label(session: Session, module: Callable[[str], str]) -> None:
    name = module("def score(clip):\n    return 1 / float(clip.rewards.sum() < 4.5)\n")
    with pytest.raises(UserError, match=r"raised ZeroDivisionError: "):
        label(session, score=f"{name}:score")
    assert [p.choice for p in session.pairs()] == ["equal", "equal", None, None]
    assert label(session) == ["equal", "equal", "right", "right"]  # mended, it goes on


def test_only_the_batch_at_hand_is_labeled(session: Session) -> None:
    add_pairs(session, 1, [1.0, 0.0])
    assert label(session, 1) == ["left"]
    assert [p.choice for p in session.pairs(0, 0)] == [None] * 4


# ---------------------------------------------------------------------------------------------- a person


class Waiting:
    """wait_for_human in a thread, as it runs in the loop."""

    def __init__(self, session: Session) -> None:
        self.reports: list[tuple[int, int]] = []
        self.error: BaseException | None = None
        self.session = session
        self.thread = threading.Thread(target=self.wait)
        self.thread.start()

    def wait(self) -> None:
        try:
            labelers.wait_for_human(self.session, BATCH, lambda *progress: self.reports.append(progress))
        except BaseException as error:
            self.error = error

    def waits(self, seconds: float) -> bool:
        self.thread.join(seconds)
        assert self.error is None
        return self.thread.is_alive()

    def has_reported(self, progress: tuple[int, int]) -> bool:
        """Waits until this progress has been reported."""
        deadline = time.monotonic() + 5
        while progress not in self.reports and time.monotonic() < deadline:
            time.sleep(0.01)
        return progress in self.reports


@pytest.fixture
def waiting(session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    monkeypatch.setattr(labelers, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(labelers, "GRACE_SECONDS", 0.5)
    found = Waiting(session)
    yield found
    session.add_event("close", 0, attempt=0)
    assert not found.waits(5)


def press(session: Session, count: int, choice: str = "left") -> None:
    for p in [p for p in session.pairs(0, 0) if p.choice is None][:count]:
        session.add_label(f"{p.id}-{session.last_label_id()}", p.id, choice)


def test_the_loop_waits_for_the_last_label_and_a_moment_more(session: Session, waiting: Waiting) -> None:
    assert waiting.has_reported((0, 4))
    press(session, 3)
    assert waiting.has_reported((3, 4))
    assert waiting.waits(0.7)
    press(session, 1)
    pressed = time.monotonic()
    assert not waiting.waits(5)
    assert time.monotonic() - pressed >= 0.4  # the grace
    assert waiting.reports[-1] == (4, 4)


def test_the_last_label_can_be_taken_back_within_the_grace(session: Session, waiting: Waiting) -> None:
    press(session, 4)
    assert waiting.has_reported((4, 4))
    session.take_back("undo")
    assert waiting.waits(0.8)  # longer than the grace: it began anew
    assert waiting.reports[-1] == (3, 4)
    press(session, 1, "right")
    pressed = time.monotonic()
    assert not waiting.waits(5)
    assert time.monotonic() - pressed >= 0.4


def test_a_closed_batch_is_done_at_once(session: Session, waiting: Waiting) -> None:
    press(session, 1)
    assert waiting.has_reported((1, 4))
    session.add_event("close", 0, attempt=0)
    assert not waiting.waits(0.4)  # no grace


def test_a_batch_of_ties_alone_is_done_too(session: Session, waiting: Waiting) -> None:
    """After it the session's next phase is another collect, not train_reward."""
    press(session, 4, "equal")
    assert session.where().phase == "collect"
    assert not waiting.waits(5)
