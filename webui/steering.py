"""The person at the wheel: pause, stop, train longer, go back, start anew, star, other clips."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from rlhf_gym import steer
from webui.bodies import MAX_ROUND, Body
from webui.found import Found
from webui.state import State

router = APIRouter()


class SteerBody(Body):
    do: Literal["pause", "continue", "stop", "longer", "anew", "back", "more"]
    round: int | None = Field(None, ge=-1, le=MAX_ROUND, description="of back: whose agent; -1: the untrained one")


class StarBody(Body):
    round: int | None = Field(ge=-1, le=MAX_ROUND, description="null: none is starred")


class ClipsBody(Body):
    longer: bool = Field(False, description="half as long again")
    differ: bool = Field(False, description="pairs of clips that look different")


@router.post("/api/s/{session}/steer")
def steer_session(found: Found, body: SteerBody) -> State:
    """Tells the loop what to do; where none runs, the next one does it (but pause, continue and stop need one).

    longer: the agent trains for as many steps again. anew: an untrained agent trains on the reward model there is.
    back: the agent of an earlier round is the one to go on from; labels keep counting. more: two more rounds.
    """
    steer.steer(found.session, body.do, body.round)
    return found.state()


@router.post("/api/s/{session}/star")
def star_round(found: Found, body: StarBody) -> State:
    """Marks the round whose agent is the best so far."""
    steer.star(found.session, body.round)
    return found.state()


@router.post("/api/s/{session}/clips")
def other_clips(found: Found, body: ClipsBody) -> State:
    """Drops the batch for one of longer clips, or of pairs that differ more; so are all later ones. Labels count."""
    steer.other_clips(found.session, body.longer, body.differ)
    return found.state()
