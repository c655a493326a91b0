"""What the pages show of a session: the shapes of the API's answers, and how they are made from the store."""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from rlhf_gym import catalog, store
from rlhf_gym.config import program
from rlhf_gym.store import Session
from rlhf_gym.wishes import Plan

View = Literal["label", "train", "paused", "finished"]

RUNNING_SECONDS = 1.0  # how long the answer to "does a loop run?" is kept: asking takes the lock for a moment
STORED_SECONDS = 2.0  # at the latest the stored part of a state is read again, whatever the files' times say


class Clip(BaseModel):
    """A sprite sheet: frame i, counted from 0, begins at pixel x = (i % columns) * width, y = (i // columns) * height.

    A clip whose episode ends may have fewer frames than the other of its pair: hold its last frame until both are over.
    """

    id: int
    url: str | None = Field(
        description="PNG sprite sheet, answered by 204 while it is still to come; null where nothing was rendered"
    )
    width: int = Field(description="of one frame, in pixels")
    height: int = Field(description="of one frame, in pixels")
    columns: int = Field(description="frames in a row of the sheet; its last row may be part empty")
    frames: int = Field(description="how many there are")
    fps: float = Field(description="frames a second that show it as fast as it was")
    ended_frame: int | None = Field(
        description="first frame that shows an ended episode: say so from there on; null if the episode goes on"
    )


class Pair(BaseModel):
    """Two clips to compare; both are shown at the same time, from their first frame on."""

    id: int = Field(description="what a label names")
    position: int = Field(description="in its batch, from 0")
    left: Clip
    right: Clip


class Labeled(Pair):
    """A pair with its label."""

    round: int = Field(description="of the pair's batch")
    attempt: int = Field(description="of the pair's batch")
    choice: Literal["left", "right", "equal", "skip"]
    strength: Literal["normal", "strong"]


class Batch(BaseModel):
    """The unlabeled pairs of the batch that is being labeled, in the order to show them."""

    round: int = Field(description="with attempt it names the batch: other pairs are due when either changes")
    attempt: int = Field(description="how many batches of this round were dropped before")
    total: int = Field(description="pairs of the batch")
    labeled: int = Field(description="pairs of the batch that have a label")
    last_label: int = Field(description="newest label row that this answer knows of")
    pairs: list[Pair]


class Progress(BaseModel):
    """What the loop is doing this moment."""

    phase: str = ""
    round: int | None = None
    done: float | None = None
    total: float | None = None
    unit: str | None = None
    speed: float | None = Field(default=None, description="units a second, waiting not counted")
    eta: float | None = Field(default=None, description="seconds left of the phase")
    message: str | None = None
    paused: bool = Field(default=False, description="by the person, until they continue")
    numbers: dict[str, float | None] = {}
    parts: dict[str, float] = Field(default={}, description="shares of the time, by what takes it")


class Video(BaseModel):
    round: int = Field(description="-1: the untrained agent")
    url: str


class Live(BaseModel):
    """An episode of the agent that is being trained, as it was a moment ago, and one of the round before."""

    now: Video
    before: Video | None


class Return(BaseModel):
    round: int = Field(description="-1: the untrained agent")
    mean: float


class Summary(BaseModel):
    """A session as the list shows it."""

    name: str = Field(description="of its directory; stands in the addresses")
    title: str = Field(description="what to call it; empty: the name")
    archived: bool = Field(description="whether the list keeps it apart")
    env_id: str
    goal: str
    labeler: str = Field(description="human, or synthetic: then nobody is asked")
    round: int
    phase: str = Field(description=f"{', '.join(store.PHASES)}: label waits for the person")
    running: bool = Field(description="whether a loop runs this session now")
    labels: int = Field(description="pairs that have a label, of all rounds")
    pairs: int = Field(description="of all rounds")
    last_activity: float = Field(description="seconds since 1970")
    true_returns: list[Return]
    disk_bytes: int
    thumbnail: str | None = Field(description="address of a picture, to be kept for ever; null: nothing was rendered")


class Unreadable(BaseModel):
    """A session that cannot be read, and why."""

    name: str
    error: str


class Listing(BaseModel):
    sessions: list[Summary | Unreadable] = Field(description="newest first")


class Consistency(BaseModel):
    """How often the person agreed with themselves in the hidden repeats of the newest batch."""

    round: int
    agreed: int
    repeats: int


class Goal(BaseModel):
    text: str
    round: int = Field(description="the round in which it was set")
    created: float


class Stored(BaseModel):
    """The part of a state that changes only when the database or a file of the session does."""

    name: str
    created: float = Field(description="tells sessions of one name apart")
    title: str = Field(description="what to call it; the name, unless it was given another")
    env_id: str
    labeler: str = Field(description="human, or synthetic: then nobody is asked")
    goal: str
    rounds: int = Field(description="stops after this many; 0: goes on until stopped")
    resume: str = Field(description="the command that makes it go on")
    round: int = Field(description="from 0; with attempt it names the batch")
    attempt: int = Field(description="how many batches of this round were dropped before")
    phase: str = Field(description=f"{', '.join(store.PHASES)}: what is to be done next; label waits for the person")
    pairs: int = Field(description="of the batch")
    labeled: int = Field(description="pairs of the batch that have a label")
    last_label: int = Field(description="newest label row")
    video: Video | None = Field(description="the newest video of the agent")
    live: Live | None = Field(description="while the agent is being trained")
    trained: list[int] = Field(description="rounds that have an agent, oldest first; -1: the untrained one")
    base: int = Field(description="the round whose agent is the one to go on from")
    practice: bool = Field(description="whether it goes on without new labels first")
    star: int | None = Field(description="the round that the person likes best")
    clip_factor: float = Field(description="clips are that much longer than they were at first")
    differ: bool = Field(description="whether clips are paired that differ more")
    true_returns: list[Return]
    consistency: Consistency | None = Field(description="null while a batch is being labeled, or without repeats")


class State(Stored):
    """A session as its page shows it; sent over the event stream whenever it changes."""

    view: View = Field(description="label: pairs wait for the person, whether or not a loop runs")
    running: bool = Field(description="whether a loop runs this session now")
    progress: Progress | None = Field(description="null while no loop runs")


class Open:
    """An open session with what is remembered of it between requests."""

    def __init__(self, session: Session, resume: str) -> None:
        self.session = session
        self.resume = resume
        self._lock = threading.Lock()
        self._running = (0.0, False)
        self._stored: tuple[float, tuple[Any, ...], Stored] | None = None

    def running(self) -> bool:
        with self._lock:  # two askers at once would each take the other for a loop
            asked, answer = self._running
            if time.monotonic() - asked > RUNNING_SECONDS:
                answer = self.session.running()
                self._running = (time.monotonic(), answer)
            return answer

    def summary(self, disk: bool) -> dict[str, Any]:
        with self._lock:
            summary = self.session.summary(disk)
            self._running = (time.monotonic(), summary["running"])
        picture = self.session.newest_picture()
        version = picture and picture_version(self.session, picture)
        return {**summary, "thumbnail": version and f"/api/s/{self.session.name}/thumbnail.png?v={version}"}

    def trash(self, data_dir: Path) -> Path:
        with self._lock:  # whoever asks meanwhile whether a loop runs has the lock file open
            return catalog.trash_session(data_dir, self.session)

    def state(self, fresh: bool = True) -> State:
        """The state now; `fresh=False` reads the database only when its files have changed (for event streams)."""
        stamp = _stamp(self.session)
        old = self._stored
        if fresh or old is None or old[1] != stamp or time.monotonic() - old[0] > STORED_SECONDS:
            stored = read_stored(self.session, self.resume)
            self._stored = (time.monotonic(), stamp, stored)
        else:
            stored = old[2]
        running = self.running()
        progress = read_progress(self.session) if running else None
        view: View = "train" if running else "paused"
        if stored.phase == "finished":
            view = "finished"
        elif stored.labeler == "human":
            # the loop waits a moment after the last label, so that this one can be taken back too
            waits = stored.phase == "train_reward" and stored.labeled == stored.pairs
            if stored.phase == "label" or (waits and progress is not None and progress.phase == "label"):
                view = "label"
        known = dict(stored)
        if view == "label":
            known["consistency"] = None
        return State(**known, view=view, running=running, progress=progress)


class Sessions:
    """The sessions of a data directory, opened once and kept open."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._lock = threading.Lock()  # for the dictionaries alone: one session that is slow holds up no other
        self._locks: dict[str, threading.Lock] = {}
        self._open: dict[str, tuple[int, Open]] = {}

    def _lock_of(self, name: str) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(name, threading.Lock())

    def open(self, name: str) -> Open:
        """Raises UserError where there is no such session, or one that this version cannot read."""
        with self._lock_of(catalog.check_name(name)):
            try:
                inode = os.stat(self.data_dir / name / "session.db").st_ino
            except OSError:
                inode = -1
            known = self._open.get(name)
            if known is not None and known[0] == inode:
                return known[1]
            if known is not None:  # deleted, or another one of that name
                self._open.pop(name)[1].session.close()
            opened = Open(catalog.open_session(self.data_dir, name), self.command(f"resume {name}"))
            self._open[name] = (inode, opened)
            return opened

    def command(self, words: str) -> str:
        """A command line of ours over this data directory, to be pasted into a terminal."""
        where = "" if self.data_dir == Path("data") else f" --data-dir {shlex.quote(str(self.data_dir))}"
        return f"{program()} {words}{where}"

    def summaries(self, disk: bool = True) -> list[dict[str, Any]]:
        """`Session.summary` of each, newest first; of one that cannot be read, its name and the reason."""
        rows: list[dict[str, Any]] = []
        for name in catalog.session_names(self.data_dir):
            try:
                rows.append(self.open(name).summary(disk))
            except catalog.UNREADABLE as error:
                if (self.data_dir / name).is_dir():  # else it was deleted this moment
                    rows.append({"name": name, "error": str(error).partition("\n")[0]})
        return rows

    def trash(self, name: str) -> Path:
        """Moves a session to the trash, also one that cannot be read. Raises UserError (see catalog.trash_session)."""
        with self._lock_of(name):
            known = self._open.get(name)
            opened = known[1] if known else Open(Session(self.data_dir / name), "")
            moved_to = opened.trash(self.data_dir)
            self._open.pop(name, None)
            return moved_to

    def close(self) -> None:
        with self._lock:
            for _, opened in self._open.values():
                opened.session.close()
            self._open.clear()


def read_stored(session: Session, resume: str) -> Stored:
    last_label = session.last_label_id()  # first, so that what follows knows at least of that one
    header, config, where = session.header(), session.config, session.where()
    wishes, trained = session.wishes(), session.trained_rounds()
    number = max(trained, default=store.START) + 1
    plan = wishes.plan(number)
    return Stored(
        name=session.name,
        title=wishes.title or session.name,
        created=float(header.get("created") or 0.0),
        env_id=config.env_id,
        labeler=config.labeler,
        goal=config.goal if wishes.goal is None else wishes.goal,
        rounds=config.rounds if wishes.rounds is None else wishes.rounds,
        resume=resume,
        round=where.round,
        attempt=where.attempt,
        phase=where.phase,
        pairs=where.pairs,
        labeled=where.labeled,
        last_label=last_label,
        video=newest_video(session),
        live=read_live(session, where, plan),
        trained=trained,
        base=plan.agent if plan is not None else number - 1,
        practice=plan is not None and plan.practice,
        star=wishes.star,
        clip_factor=wishes.clip_factor,
        differ=wishes.differ,
        true_returns=[Return(round=r, mean=v) for r, v in sorted(session.true_returns().items())],
        consistency=read_consistency(session, where),
    )


def read_consistency(session: Session, where: store.Where) -> Consistency | None:
    """Of the newest batch whose labeling is over."""
    number, attempt = where.round, where.attempt
    if where.phase == "label":
        return None
    if where.phase == "collect":  # this batch is still to come
        number, attempt = (number, attempt - 1) if attempt else (number - 1, 0)
    elif where.phase in ("record", "finished"):
        attempt = 0
    if not attempt:
        attempt = max(session.newest_attempt(number), 0)
    agreed, repeats = session.consistency(number, attempt)
    return Consistency(round=number, agreed=agreed, repeats=repeats) if repeats else None


def read_recent(session: Session, limit: int) -> list[Labeled]:
    """The pairs that were labeled last, oldest first, each with its label."""
    newest = list(reversed(session.recently_labeled(limit)))
    shown = zip(newest, show_pairs(session, newest), strict=True)
    return [
        Labeled.model_validate(
            {**dict(pair), "round": p.round, "attempt": p.attempt, "choice": p.choice, "strength": p.strength}
        )
        for p, pair in shown
    ]


def read_goals(session: Session) -> list[Goal]:
    """All goals, oldest first: the one the session began with, then each change."""
    first = Goal(text=session.config.goal, round=0, created=float(session.header().get("created") or 0.0))
    events = session.events("goal")
    later = [Goal(text=e["payload"]["text"], round=e["round"], created=e["created"]) for e in events]
    return sorted([first, *later], key=lambda goal: goal.created)  # labels from another session bring older ones


def counts_from(session: Session) -> int:
    """The round whose training is the first to see a label that is given now."""
    number, progress = session.next_round(), session.progress()
    begun = progress.get("round") == number and progress.get("phase") in store.TRAINING
    return number + (begun or any(session.partial(number, phase).exists() for phase in store.TRAINING))


def read_progress(session: Session) -> Progress | None:
    raw = session.progress()
    if not raw:
        return None
    try:
        return Progress.model_validate(raw)
    except ValidationError as error:  # written by another version: say so rather than show nothing
        return Progress(message=f"progress.json is not understood ({error.errors()[0]['msg']})")


def read_batch(session: Session, after: int | None, limit: int) -> Batch:
    """The next unlabeled pairs of the batch that is being labeled; none in any other phase."""
    last_label = session.last_label_id()  # first, so that what follows knows at least of that one
    where = session.where()
    todo = session.unlabeled(where.round, where.attempt, after, limit) if where.phase == "label" else []
    return Batch(
        round=where.round,
        attempt=where.attempt,
        total=where.pairs,
        labeled=where.labeled,
        last_label=last_label,
        pairs=show_pairs(session, todo),
    )


def show_pairs(session: Session, pairs: Sequence[store.Pair]) -> list[Pair]:
    """Pairs as the page gets them: neither their kind nor what the model thinks, lest the person be swayed."""
    clips = session.clips([i for p in pairs for i in (p.left_clip, p.right_clip)])
    shown = {i: show_clip(session, clip) for i, clip in clips.items()}
    return [Pair(id=p.id, position=p.position, left=shown[p.left_clip], right=shown[p.right_clip]) for p in pairs]


def show_clip(session: Session, clip: store.Clip) -> Clip:
    coming = is_coming(session, clip)
    version = sheet_version(session, clip) or ("soon" if coming else None)
    return Clip(
        id=clip.id,
        url=version and f"/api/s/{session.name}/clips/{clip.id}.png?v={version}",
        width=clip.frame_width or 1,
        height=clip.frame_height or 1,
        columns=clip.columns or 1,
        frames=clip.frames or 1,
        fps=clip.fps,
        ended_frame=clip.ended_frame,
    )


def sheet_path(session: Session, clip: store.Clip) -> Path | None:
    """Where the sheet lies; None where there is none, or where the row points out of the session."""
    sheet = clip.sheet
    if sheet is None or not sheet.startswith("clips/") or not sheet.endswith(".png"):
        return None
    return session.file(sheet)


def is_coming(session: Session, clip: store.Clip) -> bool:
    """Whether a clip's sheet is still to come, if it is not there. To be asked first: it may come in between."""
    return clip.sheet is not None and session.undrawn(clip.round, clip.attempt).exists()


def sheet_version(session: Session, clip: store.Clip) -> str | None:
    """Part of the sheet's address: a browser keeps sheets for ever, and a later session may have the same name."""
    path = sheet_path(session, clip)
    return f"{path.stat().st_mtime_ns:x}" if path else None


def picture_version(session: Session, clip: store.Clip) -> str | None:
    """Part of the thumbnail's address: changes with the clip and with its sheet; None where there is no sheet."""
    version = sheet_version(session, clip)
    return f"{clip.id}-{version}" if version else None


def show_video(session: Session, number: int, path: Path) -> Video | None:
    """None where there is no such file."""
    try:
        version = path.stat().st_mtime_ns
    except OSError:
        return None
    return Video(round=number, url=f"/api/s/{session.name}/videos/{path.name}?v={version:x}")


def newest_video(session: Session) -> Video | None:
    shown = (show_video(session, n, session.video(n)) for n in reversed(session.trained_rounds()))
    return next((video for video in shown if video is not None), None)


def read_live(session: Session, where: store.Where, plan: Plan | None) -> Live | None:
    """Only while the agent is being trained: an older one is of a round that is over."""
    now = show_video(session, where.round, session.live_video()) if where.phase == "train_agent" else None
    if now is None:
        return None
    before = plan.agent if plan is not None else where.round - 1
    return Live(now=now, before=show_video(session, before, session.video(before)))


def _stamp(session: Session) -> tuple[Any, ...]:
    """Changes whenever something is stored: times and sizes of the files that are written to."""
    stamp: list[Any] = []
    for name in ("session.db", "session.db-wal", "config.json", "checkpoints", "videos"):
        try:
            stat = os.stat(session.path / name)
            stamp.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError:
            stamp.append(None)
    return tuple(stamp)
