"""Labels and what the model sees of their clips as one table, a row for each labeled pair (`--format parquet`).

docs/formats.md has the columns. Nothing here imports torch, and pyarrow is loaded when it is needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_gym.bundle import Material, Report, description, gather, header_info
from rlhf_gym.segments import Segment, load_clip, unstack
from rlhf_gym.store import Clip, Session, finite

GROUP_BYTES = 2**26  # of the pairs that are held in memory, and written as one row group
FILE = "train-00000-of-00001.parquet"  # a name that the Hub takes for the training split

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- reinforcement-learning
- rlhf
---

# {title}

Pairs of clips of an agent in {env_id}, and which of the two was said to be better: {labels} labels. A row is a pair;
`choice` is `left`, `right`, `equal` or `skip`, and `left_…` and `right_…` say what was seen of the two clips.

```python
from datasets import load_dataset

pairs = load_dataset("parquet", data_files="data/*.parquet", split="train")
```
{pixels}
Everything else that is known of them stands in the file's own metadata, as JSON under `rlhf-gym`.
"""
PIXELS = """
Observations are bytes. Of stacked frames each is kept once, so T steps take T + S - 1 frames, and step t saw
`frames[t : t + {stack}]`; after an episode's end nothing new was seen.

```python
import numpy as np

frames = np.frombuffer(pairs[0]["left_observations"], np.uint8).reshape(pairs[0]["left_shape"])
```
"""


def write_parquet(session: Session, out: Path, report: Report) -> Material:
    """Fills an empty directory with data/*.parquet and a README.md, which datasets.load_dataset opens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    material, info = gather(session), header_info(session)
    about = description(session) | {"labels": len(material.labels), "clips": len(material.clips)}
    schema = columns(info).with_metadata({"rlhf-gym": json.dumps(about, allow_nan=False)})
    (out / "data").mkdir()
    rows: list[dict[str, Any]] = []
    held = 0
    with pq.ParquetWriter(out / "data" / FILE, schema, compression="zstd") as writer:
        for n, label in enumerate(material.labels):
            report(n, len(material.labels))
            row = label.row()
            for side in ("left", "right"):
                clip = material.clips[row.pop(side)]
                segment = load_clip(session, clip)
                row |= {f"{side}_{name}": value for name, value in seen(clip, segment, info["image"]).items()}
                held += segment.observations.nbytes
            rows.append(row)
            if held > GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, held = [], 0
        writer.write_table(pa.Table.from_pylist(rows, schema))
    report(len(material.labels), len(material.labels))
    card = CARD.format(
        title=f"Labels of session {session.name}", env_id=about["env_id"], labels=len(material.labels),
        pixels=PIXELS.format(stack=info["obs_shape"][0]) if info["image"] else "",
    )  # fmt: skip
    (out / "README.md").write_text(card, "utf-8")
    return material


def columns(info: dict[str, Any]) -> Any:
    """The table's schema, for what the environment's observations and actions are."""
    import pyarrow as pa

    whole, real, text = pa.int64(), pa.float64(), pa.string()
    vector = pa.list_(pa.float32())
    of_clip = {
        "clip": whole, "steps": whole, "seed": whole, "start": whole, "true_return": real,
        "observations": pa.binary() if info["image"] else pa.list_(vector), "shape": pa.list_(whole),
        "actions": pa.list_(vector if info["num_actions"] is None else whole), "rewards": vector,
        "absorbing": pa.list_(pa.bool_()),
    }  # fmt: skip
    of_label = {
        "pair": whole, "round": whole, "attempt": whole, "position": whole, "kind": text, "repeat_of": whole,
        "choice": text, "strength": text, "source": text, "goal": text, "labeled": real, "response_ms": whole,
        "hidden_ms": whole, "replays": whole, "pauses": whole, "p_left": real, "disagreement": real, "uid": text,
    }  # fmt: skip
    sides = {f"{side}_{name}": kind for side in ("left", "right") for name, kind in of_clip.items()}
    return pa.schema(list((of_label | sides).items()))


def seen(clip: Clip, segment: Segment, image: bool) -> dict[str, Any]:
    """The columns of one clip. Of images that slide by one frame a step each frame is kept once."""
    obs = segment.observations
    if image:
        live = len(obs) - max(int(segment.absorbing.sum()) - 1, 0)  # the live ones and the terminal one
        frames = unstack(obs[:live]) if obs.ndim == 4 else None
        obs = obs if frames is None else frames
    return {
        "clip": clip.id, "steps": len(segment.rewards), "seed": clip.seed, "start": clip.start,
        "true_return": finite(clip.true_return), "observations": obs.tobytes() if image else flat(obs),
        "shape": list(obs.shape), "actions": segment.actions.tolist(), "rewards": segment.rewards.tolist(),
        "absorbing": segment.absorbing.tolist(),
    }  # fmt: skip


def flat(obs: np.ndarray) -> list[list[float]]:
    """(T, *obs_shape) -> T lists."""
    return obs.reshape(len(obs), -1).astype(np.float32).tolist()
