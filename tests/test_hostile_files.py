"""Files and operations that nobody would make: settings, clips and sequences of what the store does (hypothesis)."""

from __future__ import annotations

import io
import json
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rlhf_gym import catalog, segments, store
from rlhf_gym import config as cfg
from rlhf_gym.config import Config, UserError
from rlhf_gym.segments import Segment, load_segment, save_segment
from rlhf_gym.store import CHOICES, PHASES, START, Where

SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# ---------------------------------------------------------------------------------------------- settings

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)  # fmt: skip
WHOLE = json.loads(cfg.to_json(Config(env_id="CartPole-v1")))
NUMBERS = st.sampled_from([0, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, float("nan"), float("inf")])


def survives(text: str) -> None:
    """Either one sentence, or settings that come back the same."""
    try:
        config = cfg.from_json(text)
    except UserError as error:
        said = str(error)
    else:
        said = ""
        assert cfg.from_json(cfg.to_json(config)) == config
    assert "\n" not in said


@SETTINGS
@given(JSON)
def test_any_json_is_settings_or_one_sentence(value: Any) -> None:
    survives(json.dumps(value))


@SETTINGS
@given(st.text() | st.text(alphabet='{}[]",:0123456789.eE-+nulltrefasNI \\/').map(lambda t: '{"env_id": ' + t))
def test_any_text_is_settings_or_one_sentence(text: str) -> None:
    survives(text)


@settings(SETTINGS, max_examples=300)
@given(
    st.dictionaries(st.sampled_from([*WHOLE, "format", ""]), JSON | NUMBERS, max_size=3),
    st.sets(st.sampled_from([*WHOLE])),
)
def test_valid_settings_with_something_changed_or_missing(changes: dict[str, Any], missing: set[str]) -> None:
    survives(json.dumps({k: v for k, v in WHOLE.items() if k not in missing} | changes))


@SETTINGS
@given(st.data())
def test_a_torn_or_changed_config_file_is_settings_or_one_sentence(data: st.DataObject) -> None:
    text = json.dumps(WHOLE)
    at = data.draw(st.integers(0, len(text)))
    survives(text[:at])
    survives(text[:at] + data.draw(st.characters()) + text[at + 1 :])


# ---------------------------------------------------------------------------------------------- clips


def whole_clip() -> bytes:
    frames = np.random.default_rng(0).integers(0, 256, (8, 6, 6), np.uint8)
    stacks = np.stack([frames[t : t + 4] for t in range(5)])
    ones = np.ones(5, np.float32)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "a.npz"
        save_segment(path, Segment(stacks, np.arange(5), ones, np.arange(5) > 3, {"x": ones}))
        return path.read_bytes()


CLIP = whole_clip()


def is_clip_or_sentence(path: Path, data: bytes) -> bool:
    """Whether it is read: then what came of it fits together; else it is one sentence."""
    path.write_bytes(data)
    found, said = None, ""
    try:
        found = load_segment(path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1000
    if found is None:
        return False
    steps = len(found.rewards)
    for array in (found.observations, found.actions, found.rewards, found.absorbing, *found.infos.values()):
        assert len(array) == steps >= 1
        assert array.dtype.kind in "biuf"
    return True


@settings(SETTINGS, max_examples=300)
@given(st.data())
def test_a_clip_that_was_changed_anywhere_is_whole_or_one_sentence(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    at = data.draw(st.integers(0, len(CLIP) - 1))
    changed = CLIP[:at] + data.draw(st.binary(max_size=6)) + CLIP[at + data.draw(st.integers(0, 6)) :]
    is_clip_or_sentence(path, changed)
    assert not is_clip_or_sentence(path, data.draw(st.binary(max_size=200)))
    assert not is_clip_or_sentence(path, CLIP[:at])


def npz(**arrays: bytes | np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            if isinstance(array, bytes):
                content.write(array)
            else:
                np.lib.format.write_array(content, array, allow_pickle=False)
            file.writestr(f"{name}.npy", content.getvalue())
    return buffer.getvalue()


def header(text: str) -> bytes:
    """The beginning of an .npy file that says what it likes."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


PLAIN = {"actions": np.zeros(3), "rewards": np.zeros(3), "absorbing": np.zeros(3, bool)}
KINDS = [
    np.bool_,
    np.uint8,
    np.int64,
    np.float32,
    np.float64,
    np.complex64,
    np.dtype("U3"),
    np.dtype("S0"),
    np.dtype("M8[s]"),
]


@settings(SETTINGS, max_examples=300)
@given(st.data())
def test_arrays_that_do_not_fit_together_are_one_sentence(tmp_path_factory: Any, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "shapes.npz"
    names = ("actions", "rewards", "absorbing", data.draw(st.sampled_from(["frames", "observations"])), "info_x")
    shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple) | st.just((3,)) | st.just((3, 2))
    arrays = {name: np.ones(data.draw(shapes), data.draw(st.sampled_from(KINDS))) for name in names}
    fits = PLAIN | {"observations": np.zeros((3, 2))} if data.draw(st.booleans()) else {}
    is_clip_or_sentence(path, npz(**{**fits, **{k: v for k, v in arrays.items() if data.draw(st.booleans())}}))


LIES = {
    "a shape of 10^18 numbers": header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000000,)}"),
    "nothing, 10^18 times": header("{'descr': '|S0', 'fortran_order': False, 'shape': (1000000000000000000,)}"),
    "a negative shape": header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 5)}"),
    "objects": header("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}") + b"\x80\x04.",
    "a program": header("__import__('os').system('exit 1')"),
    "brackets": header("(" * 9000),
    "no header": header("{'descr'"),
    "an unknown version": b"\x93NUMPY\x09\x00" + bytes(100),
    "nothing": b"",
}


@pytest.mark.parametrize("what", LIES)
def test_an_array_that_lies_about_itself_is_one_sentence(tmp_path: Path, what: str) -> None:
    tracemalloc.start()
    try:
        assert not is_clip_or_sentence(tmp_path / "a.npz", npz(**PLAIN, observations=LIES[what]))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


BOMBS: dict[str, Callable[[], bytes]] = {
    "zeros": lambda: npz(**PLAIN, observations=np.zeros((3, 2**22))),
    "many arrays": lambda: npz(**PLAIN, observations=np.zeros((3, 2)), **{f"info_{i}": np.zeros((3, 2**16)) for i in range(50)}),
    "a stack of all frames": lambda: npz(**{**PLAIN, "frames": np.zeros((3 + 4000, 64), np.uint8)}),
    "a held frame": lambda: npz(
        actions=np.zeros(2**19), rewards=np.zeros(0), absorbing=np.ones(2**19, bool), frames=np.zeros((16, 64), np.uint8)
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
def test_a_file_that_would_fill_the_memory_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(segments, "MAX_BYTES", 2**24)
    data = BOMBS[what]()
    tracemalloc.start()
    try:
        assert not is_clip_or_sentence(tmp_path / "a.npz", data)
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**24
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------------------------------------- the store

ROUNDS = st.integers(0, 3)
UIDS = st.integers(0, 30).map(lambda n: f"id-{n}")
PAYLOADS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "goal": st.fixed_dictionaries({"text": st.text(max_size=10)}),
    "close": st.fixed_dictionaries({"attempt": st.integers(0, 3)}),
    "clips": st.fixed_dictionaries({"attempt": st.integers(-1, 3), "longer": st.booleans(), "differ": st.booleans()}),
    "plan": st.fixed_dictionaries({"agent": st.integers(-1, 3), "practice": st.booleans()}),
    "rounds": st.fixed_dictionaries({"rounds": st.integers(0, 4)}),
    "forget": st.fixed_dictionaries({"until_label": st.integers(0, 40)}),
    "pause": st.just({}), "longer": st.just({}),
}  # fmt: skip


class Sequences(RuleBasedStateMachine):
    """What the loop, the pages and a kill do to a session, in any order, beside a model of what must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.rows: list[tuple[str, int, str | None]] = []  # uid, pair, choice: only ever added
        self.pairs: list[int] = []
        self.events: list[tuple[str, int, dict[str, Any]]] = []

    @initialize(rounds=st.integers(0, 3))
    def create(self, rounds: int) -> None:
        config = Config(env_id="CartPole-v1", rounds=rounds)
        self.session = catalog.create_session(Path(self.directory.name), "one", config)

    def teardown(self) -> None:
        self.session.close()
        self.directory.cleanup()

    @rule()
    def reopen(self) -> None:
        self.session.close()
        self.session = catalog.open_session(Path(self.directory.name), "one")

    @rule(count=st.integers(1, 3), repeat=st.booleans())
    def collect(self, count: int, repeat: bool) -> None:
        where = self.session.where()
        if where.phase != "collect":
            return
        known = len(self.session.clips())
        batch = dict(round=where.round, attempt=where.attempt)
        clips = [
            dict(batch, path=f"clips/{known + i}.npz", fps=30.0, steps=5, seed=i, start=0) for i in range(2 * count)
        ]
        rows: list[dict[str, Any]] = [
            dict(batch, position=i, kind="uniform", left=2 * i, right=2 * i + 1) for i in range(count)
        ]
        if repeat and self.pairs:
            rows.append(dict(batch, position=count, kind="repeat", repeat_of=self.pairs[0]))
        self.session.add_batch(clips, rows)
        self.pairs += [p.id for p in self.session.pairs(where.round, where.attempt)]

    @rule(count=st.integers(1, 2))
    def collect_half(self, count: int) -> None:
        """One that fails in the middle leaves nothing."""
        clips = [
            dict(round=0, attempt=9, path=f"half/{i}.npz", fps=30.0, steps=5, seed=i, start=0) for i in range(2 * count)
        ]
        row = dict(round=0, attempt=9, position=0, kind="uniform", left=0, right=1)
        with pytest.raises(store.sa.exc.IntegrityError):
            self.session.add_batch(clips, [row, row])

    @precondition(lambda self: self.pairs)
    @rule(uid=UIDS, which=st.integers(0, 50), choice=st.sampled_from([*CHOICES, None]))
    def label(self, uid: str, which: int, choice: str | None) -> None:
        pair = self.pairs[which % len(self.pairs)]
        known = next((i for i, row in enumerate(self.rows) if row[0] == uid), None)
        if known is None:
            assert self.session.add_label(uid, pair, choice) == len(self.rows) + 1
            self.rows.append((uid, pair, choice))
        elif self.rows[known] == (uid, pair, choice):
            assert self.session.add_label(uid, pair, choice) == known + 1
        else:
            with pytest.raises(ValueError, match="used for another label"):
                self.session.add_label(uid, pair, choice)

    @rule(uid=UIDS)
    def take_back(self, uid: str) -> None:
        known = next((row for row in self.rows if row[0] == uid), None)
        try:
            pair = self.session.take_back(uid)
        except ValueError:
            return
        if known is None:
            self.rows.append((uid, pair.id, None))
        else:
            assert known == (uid, pair.id, None)

    @rule(uid=st.sampled_from(["", "x" * 65]), pair=st.sampled_from([0, 10**9]))
    def label_nonsense(self, uid: str, pair: int) -> None:
        with pytest.raises(ValueError, match="characters"):
            self.session.add_label(uid, pair, "left")
        with pytest.raises(KeyError):
            self.session.add_label("never-used", 10**9, "left")

    @rule(kind=st.sampled_from(sorted(PAYLOADS)), round=ROUNDS, data=st.data())
    def event(self, kind: str, round: int, data: Any) -> None:
        payload = data.draw(PAYLOADS[kind])
        self.session.add_event(kind, round, **payload)
        self.events.append((kind, round, payload))

    @rule(phase=st.sampled_from(["train_reward", "train_agent"]))
    def begin_training(self, phase: str) -> None:
        where = self.session.where()
        if where.phase in ("train_reward", "train_agent"):
            self.session.partial(where.round, phase).write_bytes(b"half")

    @rule()
    def finish_training(self) -> None:
        number = max(self.session.trained_rounds(), default=START) + (1 if self.session.trained_rounds() else 0)
        if number < 4:
            self.session.checkpoint(number).write_bytes(b"whole")
            self.session.put_metrics(number, "record", 0, {"eval/mean_length": 1.0, "eval/mean": float("nan")})

    @rule()
    def clear(self) -> None:
        self.session.clear_leftovers()

    @invariant()
    def what_comes_next_is_known(self) -> None:
        where = self.session.where()
        assert isinstance(where, Where)
        assert where.phase in PHASES
        assert 0 <= where.labeled <= where.pairs
        assert self.session.summary(disk=False)["phase"] == where.phase

    @invariant()
    def nothing_is_lost_and_the_newest_row_is_the_label(self) -> None:
        with self.session.read() as db:
            rows = db.execute(store.label_table.select().order_by(store.label_table.c.id)).all()
        assert [(row.uid, row.pair, row.choice) for row in rows] == self.rows
        newest = {pair: choice for _, pair, choice in self.rows}
        assert {p.id: p.choice for p in self.session.pairs()} == {p: newest.get(p) for p in self.pairs}
        found = [(e["kind"], e["round"], e["payload"]) for e in self.session.events()]
        assert found == self.events
        assert self.session.count_pairs() == (len(self.pairs), sum(newest.get(p) is not None for p in self.pairs))


def run_sequences(examples: int, steps: int) -> None:
    case = Sequences.TestCase
    case.settings = settings(SETTINGS, max_examples=examples, stateful_step_count=steps)
    case().runTest()


def test_the_store_keeps_its_word_in_any_order() -> None:
    run_sequences(examples=15, steps=25)


@pytest.mark.full
def test_the_store_keeps_its_word_in_any_order_for_long() -> None:
    run_sequences(examples=60, steps=40)
