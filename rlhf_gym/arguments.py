"""What can be said on the command line: one dataclass for each command, and how they are read."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes

from rlhf_gym.config import Settings


@dataclass(frozen=True)
class DataDir:
    data_dir: Path = Path("data")
    """Directory that holds the sessions."""


@dataclass(frozen=True)
class Access:
    host: str = "127.0.0.1"
    """Address the pages are served on; anything but 127.0.0.1 lets other machines in (they need the token)."""
    port: int = 0
    """Port of the pages; 0 means 8000 or the next that is free."""
    browser: bool = True
    """Open the browser, where there is a display."""


@dataclass(frozen=True)
class Run:
    """Start a new session: watch pairs of clips in the browser, say which is better, get an agent you like."""

    env_id: tyro.conf.Positional[str]
    """Gymnasium id, e.g. CartPole-v1, ALE/Pong-v5, or package.module:MyEnv-v0 for your own."""
    session: str | None = None
    """Name of the session (default: cartpole-1, cartpole-2, ...); one that exists goes on."""
    labels_from: Path | None = None
    """Begin with the labels of another session: a directory that `export --format jsonl` wrote, or a session's."""
    trust: bool = False
    """Run what the session brings, an environment or score function of its own, without asking now or later."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)
    access: OmitArgPrefixes[Access] = field(default_factory=Access)
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Resume:
    """Go on with a session where it stopped, whatever stopped it. Settings given here change from now on."""

    session: tyro.conf.Positional[str]
    """Name of the session."""
    trust: bool = False
    """Run what the session brings, an environment or score function of its own, without asking now or later."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)
    access: OmitArgPrefixes[Access] = field(default_factory=Access)
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Branch:
    """Make a new session that stands where another stood after a round, to go on from there in another way."""

    session: tyro.conf.Positional[str]
    """Name of the session."""
    new: tyro.conf.Positional[str]
    """Name of the new one."""
    round: int | None = None
    """The last round that both have in common (default: the newest; -1: none, only the untrained agent)."""
    trust: bool = False
    """Run what the session brings, an environment or score function of its own, without asking now or later."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Replay:
    """Train all rounds of a session anew from their labels, with other settings or without some labels, and compare."""

    session: tyro.conf.Positional[str]
    """Name of the session."""
    without: str = ""
    """Numbers of the pairs whose labels are left out, e.g. 13-18,24."""
    name: str | None = None
    """Name of the session that comes out of it (default: SESSION-replay); a replay that was interrupted goes on."""
    json: bool = False
    """Print the comparison as one JSON object."""
    trust: bool = False
    """Run what the session brings, an environment or score function of its own, without asking now or later."""
    settings: OmitArgPrefixes[Settings] = field(default_factory=Settings)
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class List:
    """List the sessions: environment, round, phase, labels, true return, disk use."""

    all: bool = False
    """Those in the archive, too."""
    json: bool = False
    """Print one JSON object, with all of them."""
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Serve:
    """Serve the pages alone, over all sessions in the data directory."""

    access: OmitArgPrefixes[Access] = field(default_factory=Access)
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Watch:
    """Render the agent playing, or the agents of all rounds; write a film, say where, and open it."""

    session: tyro.conf.Positional[str]
    """Name of the session."""
    round: int | None = None
    """Round of the agent (default: the newest; -1: the untrained one)."""
    episodes: int = 1
    """Episodes, side by side."""
    all_rounds: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """The progress film: the agents of all rounds side by side, in the same episode."""
    overlay: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Show the action and the predicted reward below each picture."""
    seconds: float = 30.0
    """Seconds of play, at most."""
    out: Path | None = None
    """File to write, .mp4 or .gif (default: an mp4 in the session)."""
    open: bool = True
    """Open the video, where there is a display."""
    trust: bool = False
    """Run what the session brings, an environment or score function of its own, without asking now or later."""
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Evaluate:
    """Play whole episodes and report the true return, beside the untrained agent's and a random agent's."""

    session: tyro.conf.Positional[str]
    """Name of the session."""
    round: int | None = None
    """Round of the agent (default: the newest; -1: the untrained one)."""
    episodes: int = 100
    """Episodes to play."""
    score: str = ""
    """MODULE:FUNCTION with score(episode) -> float: reported as well."""
    greedy: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Take the likeliest actions (the default everywhere but on Atari)."""
    sampled: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Draw actions as in training (the default on Atari, where a greedy agent gets stuck)."""
    baselines: bool = True
    """Play the untrained agent and a random agent, too, and say whether the difference is more than chance."""
    ceiling: Path | None = None
    """File of trainings on the true reward (default: ceilings.jsonl in the data directory, if it is there)."""
    json: bool = False
    """Print one JSON object."""
    trust: bool = False
    """Run what the session brings, an environment or score function of its own, without asking now or later."""
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has: GPU, rendering, codecs, disk, extras, speed."""

    json: bool = False
    """Print one JSON object."""
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Clean:
    """Delete what a session does not need: in-phase checkpoints of trained rounds, damaged and half-written files."""

    session: tyro.conf.Positional[str]
    """Name of the session."""
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


@dataclass(frozen=True)
class Export:
    """Write a session's labels, clips or models to a new directory, in a format that others read (docs/formats.md)."""

    session: tyro.conf.Positional[str]
    """Name of the session."""
    out: tyro.conf.Positional[Path]
    """Directory to write; nothing may be there yet."""
    format: Literal["jsonl", "parquet", "minari", "onnx", "safetensors"]
    """jsonl: labels, clips and videos as plain files; parquet: a table, a row for each labeled pair; minari: the clips
    as episodes of a Minari dataset; onnx, safetensors: policy and reward model, with a model card."""
    round: int | None = None
    """Of models: the round they are of (default: the newest; -1: the untrained agent)."""
    where: OmitArgPrefixes[DataDir] = field(default_factory=DataDir)


Command = Run | Resume | Branch | Replay | List | Serve | Watch | Evaluate | Export | Clean | Doctor


def parse(args: list[str], into: Any, prog: str, description: str) -> Any:
    """Parses arguments with tyro; a dict setting is written as JSON."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def json_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type_origin is not dict:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON",
            instance_from_str=lambda values: json_or_text(values[0]),
            is_instance=lambda value: isinstance(value, dict | str),
            str_from_instance=lambda value: [json.dumps(value)],
        )

    return tyro.cli(into, args=args, prog=prog, description=description, registry=registry)


def json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # `config.validate` says what is wrong with it


def explicit(settings: Settings, args: list[str]) -> dict[str, Any]:
    """The settings that were given on the command line: only they win over presets and saved values."""
    options = {a.split("=")[0].removeprefix("--").replace("-", "_") for a in args if a[:2] == "--"}
    given = {name.removeprefix("no_") for name in options}
    names = {f.name for f in dataclasses.fields(Settings)}
    return {name: getattr(settings, name) for name in sorted(given & names)}
