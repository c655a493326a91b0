"""`rlhf-gym export SESSION OUT --format …`: labels, clips and models in formats that others read.

    jsonl         labels, clips and videos as plain files            bundle.py
    parquet       a table, a row for each labeled pair               parquet.py
    minari        the clips as episodes of a Minari dataset          trajectories.py
    onnx          policy and reward model as graphs, model card      models.py, cards.py
    safetensors   their weights and architecture, model card         models.py, cards.py

docs/formats.md says what is in each. Nothing that a session brings is run: neither its environment nor its score.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_gym import bundle
from rlhf_gym.config import UserError
from rlhf_gym.files import directory_aside
from rlhf_gym.store import Session

if TYPE_CHECKING:
    from rlhf_gym.spec import EnvInfo

NEEDS = {  # what each format wants installed: module, package
    "jsonl": {},
    "parquet": {"pyarrow": "pyarrow"},
    "minari": {"minari": "minari", "h5py": "h5py"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript"},
    "safetensors": {"safetensors": "safetensors"},
}

Report = Callable[[int, int], None]


def export(session: Session, out: Path, format: str, report: Report, round: int | None = None) -> list[str]:
    """Writes a new directory `out`, whole or not at all. Returns what there is to say of it, a sentence each.

    Args:
        report: called with what is done and how much there is.
        round: of the agent, for formats that hold models; None: the newest.

    Raises:
        UserError: there is something at `out`, it cannot be written, or the session has nothing of that kind.
    """
    if round is not None and format not in MODELS:
        raise UserError(f"--round {round} is for formats that hold models ({', '.join(MODELS)}): leave it out.")
    require(format)
    out = out.resolve()
    refuse_place(session, out)
    try:
        with directory_aside(out) as aside:
            if format in MODELS:
                return write_models(session, aside, format, round)
            return WRITERS[format](session, aside, report)
    except OSError as error:
        raise cannot_write(out, error) from None


def cannot_write(out: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write to {out} ({error.strerror}): nothing was exported, choose another place.")


def require(format: str) -> None:
    """Raises UserError with the command that installs what the format needs and this Python has not."""
    missing = [package for module, package in NEEDS[format].items() if not installed(module)]
    if missing:
        names = " ".join(missing)
        raise UserError(f"--format {format} needs {names}: {sys.executable} -m pip install {names}")


def installed(module: str) -> bool:
    """Not a folder of that name, which Python takes for a package without files."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def refuse_place(session: Session, out: Path) -> None:
    """Raises UserError where something stands already, or where it would be taken for a session, or part of one."""
    resolved = out.resolve()
    for place in (session.path.parent.resolve(), session.path.resolve()):  # a session may be a link
        if place == resolved or place in resolved.parents:
            raise UserError(f"{out} lies in {place}, among the sessions: export to a place outside of it.")
    if out.is_mount() or out == Path.cwd():
        raise UserError(f"{out} cannot be put in place as a whole: name a directory in it that does not exist yet.")
    if out.is_dir():
        if any(out.iterdir()):
            raise UserError(
                f"{out} is not empty, and nothing is overwritten: name a directory that does not exist yet."
            )
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out} exists already and is no directory: name one that does not exist yet.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from None


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def told(material: bundle.Material) -> list[str]:
    """What a person should know of the labels and clips that were written."""
    notes = [f"{counted(len(material.labels), 'label')}, {counted(len(material.clips), 'clip')}."]
    return notes + [f"{said} Its pairs are left out." for said in material.damaged]


# ---------------------------------------------------------------------------------------------- labels and clips


def write_jsonl(session: Session, out: Path, report: Report) -> list[str]:
    material, videos = bundle.write_bundle(session, out, report)
    missing = len(material.clips) - videos
    return told(material) + ([f"{counted(missing, 'clip')} of them have no picture, so no video."] if missing else [])


def write_parquet(session: Session, out: Path, report: Report) -> list[str]:
    from rlhf_gym import parquet

    return told(parquet.write_parquet(session, out, report))


def write_minari(session: Session, out: Path, report: Report) -> list[str]:
    from rlhf_gym import trajectories

    return told(trajectories.write_minari(session, out, report))


WRITERS: dict[str, Callable[[Session, Path, Report], list[str]]] = {
    "jsonl": write_jsonl,
    "parquet": write_parquet,
    "minari": write_minari,
}


# ---------------------------------------------------------------------------------------------- models


MODELS = ("onnx", "safetensors")
FILES = {
    "policy.onnx": "observations -> actions, and logits or means",
    "reward_model.onnx": "observations, actions, ended (with a potential beside, too) -> predicted reward",
    "policy.safetensors": "weights of policy and value, and the moments of observations",
    "reward_model.safetensors": "weights of the reward model's members, and their scales",
    "config.json": "the architecture, layer by layer, and all settings",
}
ONNX_USAGE = """```python
import numpy as np, onnxruntime

policy = onnxruntime.InferenceSession("policy.onnx")
observations = np.zeros({shape}, np.{dtype})  # as the environment gives them{stack}, any number at once
actions, {means} = policy.run(None, {{"observations": observations}})
```

Actions are the likeliest ones, {actions}.

{reward}"""
ONNX_REWARD = """`reward_model.onnx` takes `observations`, such `actions`, and `ended` (bool: whether the episode was
over in that observation, whatever the action), and gives `reward`: the mean of the members, each brought to one scale.
With `--reward-potential` it also takes `beside`: the observation that a step led to (the same, where the episode ended
by it), or, after an end, the one before it.
"""
SAFETENSORS_USAGE = """```python
import json
from pathlib import Path
from safetensors.torch import load_file
from rlhf_gym.config import from_json
from rlhf_gym.spec import EnvInfo
from rlhf_gym.train import Agent

about = json.loads(Path("config.json").read_text())
agent = Agent(EnvInfo.from_json(about["info"]), from_json(json.dumps(about["settings"])))
agent.load_state_dict(load_file("policy.safetensors"))
actions = agent.act(observations)  # as the environment gives them{stack}, any number at once
```

Without rlhf-gym: `config.json` names every layer and its tensors."""


def write_models(session: Session, out: Path, format: str, round: int | None) -> list[str]:
    from rlhf_gym import cards, models, provenance  # torch
    from rlhf_gym.checkpoints import Snapshot

    snapshot = Snapshot.load(session.checkpoint(session.resolve_round(round)), of=session.config)
    files = models.write_onnx(snapshot, out) if format == "onnx" else models.write_safetensors(snapshot, out)
    rewards = snapshot.reward is not None
    of = cards.Exported(snapshot.round, snapshot.last_label_id, snapshot.global_step, rewards)
    usage = usage_of(format, snapshot.info, rewards)
    versions = cards.tidy(bundle.versions(session)) | provenance.installed(NEEDS[format].values())
    library = "onnx" if format == "onnx" else "rlhf-gym"
    card = cards.write_card(session, of, library, {name: FILES[name] for name in files}, usage, versions)
    (out / "README.md").write_text(card, "utf-8")
    notes = [f"Round {cards.told_round(snapshot.round)}: {', '.join([*files, 'README.md'])}."]
    return notes if rewards else [*notes, "There is no reward model yet, for want of labels: the policy is untrained."]


def usage_of(format: str, info: EnvInfo, rewards: bool) -> str:
    """How to load what was written."""
    stack = f", the last {info.obs_shape[0]} images stacked" if info.image else ""
    if format == "safetensors":
        return SAFETENSORS_USAGE.format(stack=stack)
    actions = "counted from 0" if info.num_actions else "within the environment's bounds"
    return ONNX_USAGE.format(
        shape=(1, *info.obs_shape), dtype="uint8" if info.image else "float32", stack=stack,
        means="logits" if info.num_actions else "means", actions=actions, reward=ONNX_REWARD if rewards else "",
    )  # fmt: skip
