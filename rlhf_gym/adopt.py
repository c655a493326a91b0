"""A session that begins with labels of another (`rlhf-gym run ENV_ID --labels-from PATH`).

PATH is a directory that `rlhf-gym export SESSION OUT --format jsonl` wrote, or a session. Its labels become round 0 of
the new session, labeled and closed, so the loop goes on with train_reward. docs/formats.md says what is taken over.

A stranger may have made it. It is data: nothing in it is run or unpickled, no path in it leads out of it, every value
is looked at before it is stored, and what runs code (environment, its settings, score function) is the user's choice
alone. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym import bundle, catalog, faults
from rlhf_gym.config import MAX_GOAL_CHARS, Config, UserError, flag, printable, program
from rlhf_gym.drawing import shown_frames
from rlhf_gym.segments import Segment, load_segment, save_segment
from rlhf_gym.store import CHOICES, MAX_LABEL_ID_CHARS, STRENGTHS, Clip, Session, finite
from rlhf_gym.tables import clip_table, event_table, label_table, pair_table
from rlhf_gym.within import MAX_HEADER_BYTES, resolve

MAX_LINES_BYTES = 2**28  # of labels.jsonl or clips.jsonl: half a million labels
MAX_SHEET_BYTES = 2**27
MAX_ID = 2**31 - 1  # of pairs and clips: those to come count on from there, and JavaScript counts to 2**53
LARGEST = 1e12  # of an observation or action: beyond it the reward model's statistics overflow
MAX_SHOWN = 200  # characters of a stranger's value, in a sentence

# Settings without which clips are of another thing than what the agent meets; by the kind of environment they are for.
ALIKE = {
    "pixels": None, "episode_ends": None, "frame_stack": "image", "image_size": "image", "frameskip": "atari",
    "repeat_action_probability": "atari",
}  # fmt: skip
OF_ENVIRONMENT = {  # what EnvInfo says, in words
    "image": "images", "obs_shape": "observations of shape", "num_actions": "a number of actions of",
    "action_shape": "actions of shape", "action_low": "lowest actions", "action_high": "highest actions",
    "fps": "steps a second of",
}  # fmt: skip

Lines = list[dict[str, Any]]
Rule = tuple[Callable[[Any], bool], str]  # whether a value is allowed, and what it has to be


def whole(low: int, high: int) -> Rule:
    return lambda x: type(x) is int and low <= x <= high, f"a whole number from {low} to {high}"


def real(low: float, high: float) -> Rule:
    return lambda x: type(x) in (int, float) and low <= x <= high, f"a number from {low:g} to {high:g}"


def text(least: int, most: int) -> Rule:
    def allowed(x: Any) -> bool:  # half of a character pair is no text that a database takes
        return isinstance(x, str) and least <= len(x) <= most and not any("\ud800" <= c <= "\udfff" for c in x)

    return allowed, f"text of {least} to {most} characters"


def one_of(*values: str) -> Rule:
    return lambda x: isinstance(x, str) and x in values, f"one of {', '.join(values)}"


def or_null(rule: Rule) -> Rule:
    return lambda x: x is None or rule[0](x), f"{rule[1]}, or null"


AN_OBJECT: Rule = (lambda x: isinstance(x, dict), "an object")
A_COUNT = or_null(whole(0, 2**31 - 1))
ABOUT = {
    "session": text(1, 64), "env_id": text(1, 1000), "env_kwargs": AN_OBJECT, "goal": text(0, MAX_GOAL_CHARS),
    "settings": AN_OBJECT, "info": AN_OBJECT, "labels": whole(0, MAX_ID), "clips": whole(0, MAX_ID),
}  # fmt: skip
LABEL = {
    "pair": whole(1, MAX_ID), "left": whole(1, MAX_ID), "right": whole(1, MAX_ID),
    "kind": one_of("uniform", "disagreement", "different", "repeat"), "repeat_of": or_null(whole(1, MAX_ID)),
    "choice": one_of(*CHOICES), "strength": one_of(*STRENGTHS), "source": one_of("human", "synthetic"),
    "goal": or_null(text(0, MAX_GOAL_CHARS)), "labeled": or_null(real(0, 1e11)), "response_ms": A_COUNT,
    "hidden_ms": A_COUNT, "replays": A_COUNT, "pauses": A_COUNT, "uid": text(1, MAX_LABEL_ID_CHARS),
}  # fmt: skip
CLIP = {
    "clip": whole(1, MAX_ID), "file": text(1, 1000), "fps": real(1e-3, 1000), "steps": whole(1, bundle.MAX_STEPS),
    "seed": whole(0, 2**63 - 1), "start": whole(0, 2**53), "sheet": or_null(text(1, 1000)),
    "frame_width": A_COUNT, "frame_height": A_COUNT, "columns": A_COUNT, "frames": A_COUNT,
}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Labels and clips of another session, each value looked at; the clips' files are still to be read."""

    path: Path
    about: dict[str, Any]  # dataset.json
    labels: list[dict[str, Any]]  # lines of labels.jsonl
    clips: dict[int, dict[str, Any]]  # lines of clips.jsonl that a label names, by clip
    damaged: Sequence[str]  # what was wrong with clips of a session that cannot be read; their pairs are left out

    def start(self, data_dir: Path, name: str, config: Config, **header: Any) -> Session:
        """Makes a session whose round 0 is labeled with them, whole or not at all. As catalog.create_session.

        The goal of the labels is the session's, unless its settings say another.

        Raises:
            UserError: a clip cannot be read or is of something else, or the session cannot be written.
        """
        from rich.progress import Progress

        labels, goal = self.labels, self.about["goal"]
        config = dataclasses.replace(config, goal=config.goal or goal)
        taken = {"session": self.about["session"], "labels": len(labels), "clips": len(self.clips)}
        with (
            Progress(transient=True, disable=not sys.stderr.isatty()) as bar,
            catalog.session_aside(data_dir, name) as session,
        ):
            session.write_config(config, created=time.time(), **header, labels_from=taken)
            directory = session.clear_batch_files(0, 0)
            work = bar.track(self.clips.values(), description="taking over clips")
            clips = [take_clip(self, n, line, session, directory) for n, line in enumerate(work)]
            insert(session, clips, pair_rows(self.path, labels), label_rows(labels), goal_rows(labels, config.goal))
            session.measure_batch(0, 0)
        for sentence in told(self, config, sum(clip.sheet is None for clip in clips)):
            print(printable(sentence), file=sys.stderr, flush=True)
        return Session(data_dir / name)


# ---------------------------------------------------------------------------------------------- reading


def read(path: Path, config: Config, info: Mapping[str, Any]) -> Dataset:
    """Reads and checks all but the clips' files.

    Args:
        config: of the session that is to begin with them.
        info: of its environment, as config.json has it.

    Raises:
        UserError: there are none, they are damaged, of another environment, or teach nothing.
    """
    if not path.is_dir():
        what = "is no directory" if path.exists() else "does not exist"
        raise UserError(f"--labels-from {path} {what}: give one that {how_made()}, or a session's.")
    try:
        of_session = (path / "config.json").is_file()
        about, labels, clips, damaged = read_session(path) if of_session else read_export(path)
    except OSError as error:
        raise UserError(f"--labels-from {path} cannot be read ({error.strerror}): copy it again.") from None
    check(about, ABOUT, path / "dataset.json")
    agree(path, about, config, info)
    found = check_lines(path, about, labels, clips)
    counts = Counter(label["choice"] for label in labels)
    if not counts["left"] + counts["right"]:
        has = f"only {counts['equal']} ties and {counts['skip']} skips" if labels else "no labels"
        raise UserError(
            f"{path} holds {has}, from which nothing can be learned: give labels that say which clip is better."
        )
    return Dataset(path, about, labels, found, damaged)


def how_made() -> str:
    return f"`{program()} export SESSION OUT --format jsonl` has written"


def read_export(path: Path) -> tuple[dict[str, Any], Lines, Lines, list[str]]:
    """dataset.json, the lines of labels.jsonl and clips.jsonl, and what is damaged (export has left that out)."""
    if not (path / "dataset.json").exists():
        raise UserError(f"{path} holds no dataset.json, so it is no export of labels: give one that {how_made()}.")
    about = parse(content(path, "dataset.json", MAX_HEADER_BYTES), path / "dataset.json")
    format, version = about.get("format"), about.get("version")
    if format != bundle.FORMAT:
        raise UserError(f"{path} is of format {quote(format)}, not {bundle.FORMAT}: give one that {how_made()}.")
    if version != bundle.VERSION:
        newer = type(version) is int and version > bundle.VERSION
        raise UserError(
            f"{path} is of version {quote(version)} of its format, this rlhf-gym reads {bundle.VERSION}: "
            + ("update rlhf-gym." if newer else "export it again.")
        )
    return about, list(lines(path, "labels.jsonl")), list(lines(path, "clips.jsonl")), []


def read_session(path: Path) -> tuple[dict[str, Any], Lines, Lines, list[str]]:
    """The same of a session, as if it had been exported."""
    place = Path(os.path.abspath(path))
    try:
        with contextlib.closing(catalog.open_session(place.parent, place.name)) as session:
            material, about = bundle.gather(session), bundle.description(session)
    except UserError:
        raise
    except catalog.UNREADABLE as error:
        told = faults.sentence(error, path)
        raise UserError(told or f"Session {path} cannot be read ({type(error).__name__}): copy it again.") from None
    labels, clips = [j.row() for j in material.labels], [bundle.clip_row(c) for c in material.clips.values()]
    return about | {"labels": len(labels), "clips": len(clips)}, labels, clips, material.damaged


def lines(path: Path, name: str) -> Iterator[dict[str, Any]]:
    for n, line in enumerate(content(path, name, MAX_LINES_BYTES).splitlines(), 1):
        yield parse(line, f"{path / name}, line {n}")


def content(path: Path, name: str, most: int) -> bytes:
    """Of a file of the directory; none that a link, or anything else, puts elsewhere."""
    found = resolve(os.path.realpath(path), name)
    if found is None:
        raise UserError(f"{path} holds no file {name}: export it again, or copy it whole.")
    if (size := found.stat().st_size) > most:
        raise UserError(f"{path / name} has {size} bytes, more than the {most} that are read: export fewer labels.")
    return found.read_bytes()


def parse(data: bytes, where: object) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        value = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:MAX_SHOWN]
        raise UserError(f"{where} cannot be read ({said}): export the labels again, or copy them whole.") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} is no JSON object: export the labels again.")
    return value


def check(row: dict[str, Any], rules: Mapping[str, Rule], where: object) -> None:
    """What a row does not have is null."""
    for name, (allowed, wanted) in rules.items():
        if not allowed(value := row.setdefault(name, None)):
            raise UserError(f"{where}: {name} is {quote(value)}, not {wanted}. Export the labels again.")


def quote(value: Any) -> str:
    """As JSON in ASCII, so that no control character reaches the terminal."""
    said = json.dumps(value)
    return said if len(said) <= MAX_SHOWN else f"{said[:MAX_SHOWN]} …"


# ---------------------------------------------------------------------------------------------- whether they fit


def agree(path: Path, about: Mapping[str, Any], config: Config, info: Mapping[str, Any]) -> None:
    """Raises UserError where the labels are of clips of something else than what the new session's agent meets."""
    env_id, kwargs = about["env_id"], about["env_kwargs"]
    if env_id != config.env_id:
        raise UserError(
            f"The labels in {path} are of {quote(env_id)}, not of {quote(config.env_id)}: run that environment, or "
            "give labels of this one."
        )
    if kwargs != config.env_kwargs:
        remedy = f"add --env-kwargs {shlex.quote(quote(kwargs))}" if kwargs else "leave out --env-kwargs"
        raise UserError(
            f"The labels in {path} are of {quote(env_id)} with the settings {quote(kwargs)}, here it has "
            f"{quote(config.env_kwargs)}: {remedy}, or give other labels."
        )
    image, atari = info["image"], info["kind"] == "atari"
    for name, kind in ALIKE.items():
        theirs, ours = about["settings"].get(name, "not told"), getattr(config, name)
        if theirs == ours or (kind == "image" and not image) or (kind == "atari" and not atari):
            continue
        remedy = f"add {given_as(name, theirs)}, or give other labels" if type(theirs) is type(ours) else "export again"
        raise UserError(
            f"The labels in {path} are of clips with {name} {quote(theirs)}, here it is {quote(ours)}: {remedy}."
        )
    if not bundle.whole_info(about["info"]):
        raise UserError(f"{path} does not say what its observations and actions are (info): export it again.")
    for name, words in OF_ENVIRONMENT.items():
        theirs, ours = about["info"].get(name), info[name]
        if theirs != ours:
            raise UserError(
                f"The labels in {path} are of {quote(env_id)} with {words} {quote(theirs)}, here it has "
                f"{quote(ours)}: install the version of it that they were made with, or give other labels."
            )


def given_as(name: str, value: Any) -> str:
    """How a setting of that value is written on the command line."""
    if isinstance(value, bool):
        return flag(name) if value else flag(f"no_{name}")
    return f"{flag(name)} {value if isinstance(value, str) and value.isalnum() else quote(value)}"


def check_lines(
    path: Path, about: Mapping[str, Any], labels: Sequence[dict[str, Any]], clips: Sequence[dict[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Looks at every value, and at what the lines say of each other; returns the clips that a label names."""
    for name, found in (("labels", labels), ("clips", clips)):
        if len(found) != about[name]:
            raise UserError(
                f"{path / name}.jsonl has {len(found)} lines, {about[name]} by dataset.json: copy it again; if you "
                "took lines out yourself, put the number right there."
            )
    known: dict[int, dict[str, Any]] = {}
    for n, clip in enumerate(clips, 1):
        where = f"{path}/clips.jsonl, line {n}"
        check(clip, CLIP, where)
        if known.setdefault(clip["clip"], clip) is not clip:
            raise UserError(f"{where}: clip {clip['clip']} stands there twice. Export the labels again.")
    uids, pairs = set[str](), set[int]()
    for n, label in enumerate(labels, 1):
        where = f"{path}/labels.jsonl, line {n}"
        check(label, LABEL, where)
        pair, uid, repeats = label["pair"], label["uid"], label["repeat_of"]
        wrong = None
        if pair in pairs:
            wrong = f"pair {pair} stands there twice"
        elif uid in uids:
            wrong = f"uid {quote(uid)} stands there twice"
        elif uid.startswith("synthetic-") and not uid.startswith(f"synthetic-{pair}-"):  # the labeler's own, see there
            wrong = f"uid {quote(uid)} is not of pair {pair}"
        elif missing := {label["left"], label["right"]} - set(known):
            wrong = f"there is no clip {min(missing)} in clips.jsonl"
        elif (repeats is None) == (label["kind"] == "repeat") or (repeats is not None and repeats >= pair):
            wrong = f"pair {pair} of kind {label['kind']} cannot repeat pair {quote(repeats)}"
        if wrong:
            raise UserError(f"{where}: {wrong}. Export the labels again.")
        pairs.add(pair)
        uids.add(uid)
    pair_rows(path, labels)  # whether repeats show what they repeat
    used = {clip for label in labels for clip in (label["left"], label["right"])}
    return {i: known[i] for i in sorted(used)}


# ---------------------------------------------------------------------------------------------- the new session


def too_late(name: str) -> UserError:
    return UserError(
        f"Session {name!r} exists already, and labels come in where one begins: leave out --labels-from to go on with "
        "it, or choose another name with --session."
    )


def told(dataset: Dataset, config: Config, unseen: int) -> list[str]:
    """What a person should know of what was taken over."""
    counts, goal = Counter(label["choice"] for label in dataset.labels), dataset.about["goal"]
    notes = [f"{sentence} Its pairs are left out." for sentence in dataset.damaged]
    notes.append(
        f"Round 0 has the labels of session {dataset.about['session']}: better {counts['left'] + counts['right']}, "
        f"equal {counts['equal']}, can't tell {counts['skip']}; clips {len(dataset.clips)}."
    )
    if unseen:
        notes.append(f"Clips without a picture, which the page cannot show: {unseen}.")
    if goal and goal == config.goal:
        notes.append(f"The goal is that of the labels: {' '.join(goal.split())}")
    return notes


def take_clip(dataset: Dataset, n: int, line: Mapping[str, Any], session: Session, directory: Path) -> Clip:
    """Writes the files of a clip into the new session: what the model sees is written anew, its picture copied."""
    info, top = dataset.about["info"], os.path.realpath(dataset.path)
    found = resolve(top, line["file"])
    if found is None:
        raise UserError(f"{dataset.path} holds no file {quote(line['file'])} (clip {line['clip']}): copy it whole.")
    try:
        segment = load_segment(found)
    except UserError as error:
        raise UserError(f"{error} Copy {dataset.path} again.") from None
    if wrong := what_is_wrong(segment, info, line["steps"]):
        raise UserError(f"Clip {found} {wrong}: export the labels again, or leave its pairs out.")
    path = directory / f"{n:04d}.npz"
    save_segment(path, segment)
    stride = max(1, round(info["fps"] / line["fps"]))
    frames, ended = shown_frames(segment, stride), bool(segment.absorbing.any())
    with np.errstate(all="ignore"):  # a true reward may be NaN
        true_return = finite(float(segment.rewards.sum()))
    clip = Clip(
        line["clip"], 0, 0, path.relative_to(session.path).as_posix(), None, line["frame_width"], line["frame_height"],
        line["columns"], line["frames"], line["fps"], line["steps"], frames - 1 if ended else None, line["seed"],
        line["start"], true_return,
    )  # fmt: skip
    sheet = resolve(top, line["sheet"]) if line["sheet"] else None
    if sheet is None or sheet.stat().st_size > MAX_SHEET_BYTES or next(bundle.cut(sheet, clip), None) is None:
        return dataclasses.replace(clip, frame_width=None, frame_height=None, columns=None, frames=None)
    path.with_suffix(".png").write_bytes(sheet.read_bytes())
    return dataclasses.replace(clip, sheet=path.with_suffix(".png").relative_to(session.path).as_posix())


def what_is_wrong(segment: Segment, info: Mapping[str, Any], steps: int) -> str:
    """Why nothing can be learned from a clip of the environment of `info`; "" if all is well."""
    obs, actions = segment.observations, segment.actions
    kinds = ("uint8" if info["image"] else "float32", "float32" if info["num_actions"] is None else "int64", "float32")
    if len(obs) != steps:
        return f"has {len(obs)} steps, {steps} by clips.jsonl"
    if not bundle.fits(segment, info):
        return (
            f"has observations of shape {obs.shape[1:]} and actions of shape {actions.shape[1:]}, not "
            f"{tuple(info['obs_shape'])} and {tuple(info['action_shape'])}"
        )
    if (found := (obs.dtype.name, actions.dtype.name, segment.rewards.dtype.name)) != kinds:
        return f"has observations, actions and rewards of {', '.join(found)}, not {', '.join(kinds)}"
    if info["num_actions"] is not None and not ((actions >= 0) & (actions < info["num_actions"])).all():
        return f"has actions that are none of the {info['num_actions']}"
    if not (np.abs(obs) <= LARGEST).all() or not (np.abs(actions) <= LARGEST).all():  # NaN fails this, too
        return f"has observations or actions that are NaN, or beyond {LARGEST:g}"
    return ""


# ---------------------------------------------------------------------------------------------- rows


def pair_rows(path: Path, labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the pair table, in the order of their ids. What another session's reward model said is left out.

    A repeat may come without the pair that it repeats, if its label does not count any more: then that pair comes
    along without a label, since members hold both out together, or neither.
    """
    rows: dict[int, dict[str, Any]] = {}
    for n, label in enumerate(labels):
        rows[label["pair"]] = {
            "id": label["pair"], "round": 0, "attempt": 0, "position": n, "left_clip": label["left"],
            "right_clip": label["right"], "kind": label["kind"], "repeat_of": label["repeat_of"],
        }  # fmt: skip
    for label in labels:
        if (first := label["repeat_of"]) is None:
            continue
        swapped = {"left_clip": label["right"], "right_clip": label["left"]}
        unlabeled = {"id": first, "round": 0, "attempt": 0, "position": len(rows), "kind": "uniform", "repeat_of": None}
        if not swapped.items() <= rows.setdefault(first, unlabeled | swapped).items():
            raise UserError(f"{path}/labels.jsonl: pair {label['pair']} does not show the clips of pair {first}.")
    return [rows[i] for i in sorted(rows)]


def label_rows(labels: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the label table, oldest first."""
    same = ("uid", "pair", "choice", "strength", "response_ms", "hidden_ms", "replays", "pauses")
    rows = [
        {name: label[name] for name in same} | {"labeler": label["source"], "created": given(label)} for label in labels
    ]
    return sorted(rows, key=lambda row: float(row["created"]))


def given(label: Mapping[str, Any]) -> float:
    """When, in seconds since 1970: not in a time to come, and now where nobody knows."""
    now = time.time()
    return now if label["labeled"] is None else min(float(label["labeled"]), now)


def goal_rows(labels: Sequence[Mapping[str, Any]], goal: str) -> list[dict[str, Any]]:
    """Events that say under which goal each label was given, and at last the session's own; none if it was this one."""
    timed = [label for label in labels if label["goal"] is not None and label["labeled"] is not None]
    if all(label["goal"] == goal for label in timed):
        return []
    changes: list[tuple[str, float]] = []
    for label in sorted(timed, key=given):
        if not changes or changes[-1][0] != label["goal"]:
            changes.append((label["goal"], given(label)))
    changes.append((goal, time.time()))
    return [{"kind": "goal", "round": 0, "payload": {"text": text}, "created": when} for text, when in changes]


def insert(
    session: Session, clips: Sequence[Clip], pairs: Sequence[Mapping[str, Any]], labels: Sequence[Mapping[str, Any]],
    goals: Sequence[Mapping[str, Any]],
) -> None:  # fmt: skip
    """One transaction: a batch that is labeled and closed, so that train_reward comes next. Ids stay as they were, as
    the bootstrap of the reward model draws by them."""
    closed = {"kind": "close", "round": 0, "payload": {"attempt": 0}, "created": time.time()}
    with session.write() as db:
        db.execute(clip_table.insert(), [dataclasses.asdict(clip) for clip in clips])
        for pair in pairs:
            db.execute(pair_table.insert(), dict(pair))
        db.execute(label_table.insert(), [dict(label) for label in labels])
        db.execute(event_table.insert(), [*map(dict, goals), closed])
