"""What the person asked for, read off a session's events: how the page speaks to the loop.

Events are only ever added; the newest word on a matter counts. Nothing here imports torch.

| kind | payload | what it says |
|---|---|---|
| goal | text | the sentence above the clips |
| title | text | what the list of sessions shows instead of the name; empty: the name |
| archived | archived | whether the list keeps the session apart |
| star | round | the best round so far; null: none |
| close | attempt | train on what is labeled of this batch |
| forget | until_label | this label and those before it no longer count |
| clips | attempt, longer, differ | drop this batch and collect another, of longer clips or of pairs that differ more |
| plan | agent, practice, attempt | what the round begins with: see `Plan` |
| longer | | train the agent of this round for as many steps again |
| rounds | rounds | how many rounds to do, instead of what the settings say |
| pause, continue, stop | | to the loop that runs now |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONGER = 1.5  # times the clip's length before
LONGEST = 4.0  # times the length the session began with
NONE = -1  # no batch


@dataclass(frozen=True)
class Plan:
    """A round that does not simply follow the one before.

    Attributes:
        id: row of the event.
        round: the round that is planned.
        agent: the round whose agent it begins with; -1 is the untrained one.
        practice: nothing is collected and labeled: the agent trains on the reward model there is.
        attempt: batches of the round up to this one are dropped; -1: none. Their labels still count.
    """

    id: int
    round: int
    agent: int
    practice: bool
    attempt: int


class Wishes:
    """The events of a session, oldest first, as answers."""

    def __init__(self, events: Sequence[Mapping[str, Any]]) -> None:
        self._events = events
        self._kinds: dict[str, list[Mapping[str, Any]]] = {}
        for event in events:
            self._kinds.setdefault(event["kind"], []).append(event)

    def and_then(self, events: Sequence[Mapping[str, Any]]) -> Wishes:
        """With the events that came since."""
        return Wishes([*self._events, *events])

    def _of(self, kind: str, round: int | None = None) -> list[Mapping[str, Any]]:
        return [e for e in self._kinds.get(kind, ()) if round in (None, e["round"])]

    def _newest(self, kind: str, name: str, default: Any) -> Any:
        found = self._of(kind)
        return found[-1]["payload"][name] if found else default

    @property
    def goal(self) -> str | None:
        text = self._newest("goal", "text", None)
        return None if text is None else str(text)

    @property
    def title(self) -> str:
        return str(self._newest("title", "text", ""))

    @property
    def archived(self) -> bool:
        return bool(self._newest("archived", "archived", False))

    @property
    def star(self) -> int | None:
        return self._newest("star", "round", None)

    @property
    def forgotten(self) -> int:
        """The newest label row that no longer counts; 0 if all do."""
        return max((int(e["payload"]["until_label"]) for e in self._of("forget")), default=0)

    def closed(self, round: int, attempt: int) -> bool:
        """Whether the person said: train on what is labeled so far."""
        return any(e["payload"].get("attempt") == attempt for e in self._of("close", round))

    # ------------------------------------------------------------------ the course of the session

    def plan(self, round: int) -> Plan | None:
        """The newest plan for a round."""
        found = self._of("plan", round)
        if not found:
            return None
        payload = found[-1]["payload"]
        return Plan(
            found[-1]["id"], round, int(payload["agent"]), bool(payload["practice"]), int(payload.get("attempt", NONE))
        )

    def dropped(self, round: int) -> set[int]:
        """The batches of a round that gave way to another because the person said so."""
        asked = [e for kind in ("plan", "clips") for e in self._of(kind, round)]
        return {int(e["payload"].get("attempt", NONE)) for e in asked} - {NONE}

    def longer(self, round: int) -> int:
        """How often the training of this round's agent was prolonged, as it is planned now."""
        plan = self.plan(round)
        return sum(plan is None or e["id"] > plan.id for e in self._of("longer", round))

    @property
    def rounds(self) -> int | None:
        """How many rounds to do, if that was changed since the session began; 0: until stopped."""
        rounds = self._newest("rounds", "rounds", None)
        return None if rounds is None else int(rounds)

    @property
    def clip_factor(self) -> float:
        """How much longer clips are than the session's settings say."""
        return float(min(LONGER ** sum(bool(e["payload"].get("longer")) for e in self._of("clips")), LONGEST))

    @property
    def differ(self) -> bool:
        """Whether the clips of a pair shall differ more."""
        return any(e["payload"].get("differ") for e in self._of("clips"))

    # ------------------------------------------------------------------ to the loop that runs now

    def paused(self, since: int = 0) -> bool:
        """Whether the newest of pause and continue after event `since` is a pause."""
        found = [e for e in self._events if e["kind"] in ("pause", "continue") and e["id"] > since]
        return bool(found) and found[-1]["kind"] == "pause"

    def stopped(self, since: int) -> bool:
        return any(e["id"] > since for e in self._of("stop"))

    def replanned(self, since: int) -> bool:
        """Whether what the loop is doing has been overtaken by a plan after event `since`."""
        return any(e["kind"] in ("plan", "clips") and e["id"] > since for e in self._events)

    @property
    def last(self) -> int:
        """The newest event's row; 0 if there is none."""
        return int(self._events[-1]["id"]) if self._events else 0
