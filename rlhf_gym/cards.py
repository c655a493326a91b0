"""The model card of an exported agent: what it is, what it learned from, how good it is, how to load it.

Only what was measured stands there. The form, Markdown with YAML in front, is that of the Hugging Face Hub.
Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_gym.bundle import label_rows
from rlhf_gym.store import JUDGED, START, Pair, Session

CARD = """---
library_name: {library}
tags:
- reinforcement-learning
- rlhf
- {tag}
---

# Agent of session {name}, round {round}

An agent for the Gymnasium environment `{env_id}`{kwargs}, trained with rlhf-gym for {steps:,} steps by PPO on a reward
that was learned from comparisons of clips.{untrained}

{goal}

## Labels

{labels}

## Figures

{figures}

## Files

{files}

{usage}

## Versions

{versions}

## Not to be used for

{limits}
"""
LIMITS = (
    "It learned {whose} from {count} in one simulated environment and was tested nowhere else, so let it act on "
    "nothing but that environment, and take what its reward model says for no measure of quality or safety."
)


@dataclass(frozen=True)
class Exported:
    """The checkpoint that a card is about."""

    round: int
    last_label_id: int
    global_step: int
    rewards: bool  # whether there is a reward model


def write_card(
    session: Session, of: Exported, library: str, files: Mapping[str, str], usage: str, versions: Mapping[str, str]
) -> str:
    """The card's text.

    Args:
        library: that loads the files.
        files: what each is.
        usage: how they are loaded, in Markdown.
        versions: of the packages that wrote them.
    """
    config, labels = session.config, learned_from(session, of)
    counts, sources = Counter(str(p.choice) for p in labels), sources_of(session, labels)
    return CARD.format(
        library=library, tag=json.dumps(config.env_id), name=session.name, round=told_round(of.round),
        env_id=code(config.env_id), kwargs=f" with {json.dumps(config.env_kwargs)}" if config.env_kwargs else "",
        steps=of.global_step, untrained=" This one is untrained: it acts at random." if of.round == START else "",
        goal=quote(session.goal()), labels=table(told_labels(session, of, counts, sources)),
        figures=table(figure_rows(session, of)), files=table([(f"`{name}`", what) for name, what in files.items()]),
        usage=usage.strip(), versions=table(sorted(versions.items())), limits=limits(len(labels), sources),
    )  # fmt: skip


def told_round(number: int) -> str:
    return "start" if number == START else str(number)


def code(text: str) -> str:
    """In backticks nothing but a backtick, or a new line, means anything."""
    return " ".join(text.replace("`", "'").split())


def quote(goal: str) -> str:
    return f"The goal, in the words of whoever labeled:\n\n> {' '.join(goal.split())}" if goal else "No goal was set."


def table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


# ---------------------------------------------------------------------------------------------- labels


def learned_from(session: Session, of: Exported) -> list[Pair]:
    """The labels behind a checkpoint: those it had seen, less those forgotten by then. Skips teach nothing."""
    if not of.rewards:
        return []
    events = [int(e["payload"]["until_label"]) for e in session.events("forget") if e["round"] <= of.round]
    # what was forgotten once the round was trained tells of all that it had seen
    forgotten = max((until for until in events if until < of.last_label_id), default=0)
    pairs = session.pairs(labels_until=of.last_label_id)
    return [p for p in pairs if p.choice in JUDGED and p.counts(forgotten)]


def sources_of(session: Session, labels: Sequence[Pair]) -> Counter[str]:
    """How many labels are of people, and how many of a score function."""
    rows = label_rows(session)
    return Counter(code(rows[p.label_id]["labeler"]) for p in labels if p.label_id in rows)


def told_labels(
    session: Session, of: Exported, counts: Mapping[str, int], sources: Mapping[str, int]
) -> list[tuple[str, str]]:
    if not of.rewards:
        return [("labels", "none: there is no reward model yet")]
    chosen = counts.get("left", 0) + counts.get("right", 0)
    rows = [("labels", f"{sum(counts.values())}: one clip better in {chosen}, equal in {counts.get('equal', 0)}")]
    rows += [(f"by a {source}" if source == "human" else f"{source}", str(n)) for source, n in sorted(sources.items())]
    found = newest(session, of, "train_reward", "labels/consistency", "labels/repeats")
    if found:
        share, repeats = found["labels/consistency"], found.get("labels/repeats", 0)
        rows.append(("consistency", f"{share:.0%} of {repeats:.0f} hidden repeats got the same answer"))
    return rows


# ---------------------------------------------------------------------------------------------- figures


def newest(session: Session, of: Exported, phase: str, *names: str) -> dict[str, float]:
    """The metrics of the newest round, up to the checkpoint's, that has the first of them."""
    found: dict[int, dict[str, float]] = {}
    for row in session.metrics(phase=phase):
        if row["round"] <= of.round and row["name"] in names:
            found.setdefault(row["round"], {})[row["name"]] = row["value"]
    rounds = [number for number, values in found.items() if names[0] in values]
    return found[max(rounds)] if rounds else {}


def figure_rows(session: Session, of: Exported) -> list[tuple[str, str]]:
    """Only what was measured. A round's own evaluation counts, never that of another."""
    own = {row["name"]: row["value"] for row in session.metrics(phase="record") if row["round"] == of.round}
    rows = []
    if "eval/mean" in own:
        std = f" ± {own['eval/std']:.4g}" if math.isfinite(own.get("eval/std", math.nan)) else ""
        rows.append(("true return", f"{own['eval/mean']:.4g}{std} over {own.get('eval/episodes', 0):.0f} episodes"))
    elif "eval/mean_length" in own:
        rows.append(("true return", "the environment gives none"))
    else:
        rows.append(("true return", "not evaluated yet"))
    if not of.rewards:
        return rows
    held = newest(session, of, "train_reward", "reward/held_out_accuracy")
    if held:
        share = held["reward/held_out_accuracy"]
        rows.append(
            ("held-out accuracy", f"{share:.0%}, of the reward model on pairs that a member did not learn from")
        )
    names = ("reward/prequential_accuracy", "reward/prequential_pairs")
    if before := newest(session, of, "train_reward", *names):
        share, pairs = before[names[0]], before.get(names[1], 0)
        rows.append(("prequential accuracy", f"{share:.0%} of {pairs:.0f} new pairs, *before* learning from them"))
    return rows


def limits(count: int, sources: Mapping[str, int]) -> str:
    if not count:
        return "It has learned nothing yet, so use it for nothing but comparison with an agent that has."
    whose = "a person's taste" if sources.get("human") else "a score function, nobody's taste,"
    return LIMITS.format(whose=whose, count=f"{count:,} label{'' if count == 1 else 's'}")


def tidy(versions: Any) -> dict[str, str]:
    """Versions as a session's header has them, for a table."""
    return {code(str(k)): code(str(v)) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
