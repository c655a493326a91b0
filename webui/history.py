"""Every pair that was shown, each with its label and what the reward model says of it: the browser of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from rlhf_gym import store
from webui.found import Found
from webui.state import Pair, show_pairs

SLIP_BELOW = 0.2  # a label that the model thinks less likely than this is likely a slip
MAX_NUMBER = 2**53  # what JavaScript counts exactly

Kind = Literal["uniform", "disagreement", "different", "repeat"]
Order = Literal["slips", "newest", "oldest"]

router = APIRouter()


class Remembered(Pair):
    """A pair that was shown, with its label, if it has one, and what the newest reward model says of it."""

    round: int
    attempt: int
    choice: Literal["left", "right", "equal", "skip"] | None = Field(description="null: not labeled, or taken back")
    strength: Literal["normal", "strong"]
    kind: str | None = Field(description="how it was chosen; null in the batch that is being labeled")
    repeat_of: int | None = Field(description="the pair that it repeats, its sides swapped; null likewise")
    response_ms: int | None
    labeled: float | None = Field(description="when, in seconds since 1970")
    counts: bool = Field(description="false: the label was set aside, as when the goal has changed")
    p_left: float | None = Field(description="the probability that left is better; null: the model was not asked")
    members: int | None = Field(description="of the ensemble, that did not learn from the pair; 0: all of them did")
    p_said: float | None = Field(description="the probability of what the person said; null unless left or right")
    slip: bool = Field(description="whether the label counts and p_said is below slip_below")


class History(BaseModel):
    total: int = Field(description="pairs that were asked for, on all pages")
    slips: int = Field(description="how many of them are likely slips")
    slip_below: float = Field(description="a label that the model thinks less likely is likely a slip")
    rounds: list[int] = Field(description="that have pairs to show, whatever was asked for")
    judge: int | None = Field(description="round of the reward model; null if it has not been asked yet")
    pairs: list[Remembered]


@dataclass(frozen=True)
class Judged:
    """A pair, and what the model says of its label."""

    pair: store.Pair
    open: bool  # its batch is being labeled right now
    counts: bool
    opinion: store.Opinion | None

    @property
    def p_said(self) -> float | None:
        if self.opinion is None or self.pair.choice not in store.DECIDED:
            return None
        return self.opinion.p_left if self.pair.choice == "left" else 1 - self.opinion.p_left

    @property
    def slip(self) -> bool:
        return self.counts and self.p_said is not None and self.p_said < SLIP_BELOW


@router.get("/api/s/{session}/history")
def label_history(
    found: Found,
    round: Annotated[int | None, Query(ge=0, le=MAX_NUMBER)] = None,
    choice: Annotated[
        Literal["left", "right", "equal", "skip", "none"] | None, Query(description="none: without a label")
    ] = None,
    kind: Annotated[Kind | None, Query(description="leaves out the batch that is being labeled")] = None,
    order: Annotated[Order, Query(description="slips: what the model thinks least likely, first")] = "newest",
    offset: Annotated[int, Query(ge=0, le=MAX_NUMBER)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 24,
) -> History:
    """The pairs shown so far, a page at a time, each with its label and what the newest reward model says of it.

    Of the batch that is being labeled only labeled pairs, and none is marked as a repeat.
    """
    session = found.session
    last_pair = session.last_pair_id()  # before the state, lest a batch that begins now slips in
    forgotten, judge, state = session.wishes().forgotten, session.judge(), found.state()
    labeling = (state.round, state.attempt) if "label" in (state.phase, state.view) else None
    total, slips, pairs = session.look_back(
        last_pair, labeling, SLIP_BELOW, round=round, choice=choice, kind=kind, order=order, offset=offset, limit=limit
    )
    opinions = session.opinions([p.id for p in pairs])
    page = [
        Judged(
            p,
            open=(p.round, p.attempt) == labeling,
            counts=p.choice is None or p.counts(forgotten),
            opinion=opinions.get(p.id),
        )
        for p in pairs
    ]
    return History(
        total=total,
        slips=slips,
        slip_below=SLIP_BELOW,
        rounds=session.rounds_shown(last_pair, labeling),
        judge=judge,
        pairs=show_judged(session, page),
    )


def show_judged(session: store.Session, page: Sequence[Judged]) -> list[Remembered]:
    shown = show_pairs(session, [j.pair for j in page])
    return [
        Remembered.model_validate(
            {
                **dict(pair),
                "round": j.pair.round, "attempt": j.pair.attempt,
                "choice": j.pair.choice, "strength": j.pair.strength,
                "kind": None if j.open else j.pair.kind,
                "repeat_of": None if j.open else j.pair.repeat_of,
                "response_ms": j.pair.response_ms if j.pair.choice else None,
                "labeled": j.pair.labeled if j.pair.choice else None,
                "counts": j.counts,
                "p_left": j.opinion and j.opinion.p_left,
                "members": j.opinion and j.opinion.members,
                "p_said": j.p_said, "slip": j.slip,
            }
        )
        for j, pair in zip(page, shown, strict=True)
    ]  # fmt: skip
