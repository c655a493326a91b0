"""What a labeling client speaks: pairs and their pictures, labels, undo, the goal, the end of a batch."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from rlhf_gym import store
from rlhf_gym.config import MAX_GOAL_CHARS
from webui.bodies import MAX_COUNT, MAX_ID, Body
from webui.found import Found
from webui.state import (
    Batch,
    Goal,
    Labeled,
    Open,
    Pair,
    State,
    counts_from,
    is_coming,
    read_batch,
    read_goals,
    read_recent,
    sheet_path,
    sheet_version,
    show_pairs,
)

LABEL_ID = rf"^[A-Za-z0-9._-]{{1,{store.MAX_LABEL_ID_CHARS}}}$"
ID_RULE = (
    f"made by the client, so that a retry counts once: up to {store.MAX_LABEL_ID_CHARS} letters, digits, dots, dashes "
    "and underscores, never used before in this session, neither by a label nor by an undo"
)

router = APIRouter()


class Said(Body):
    """What the person said of a pair."""

    id: str = Field(pattern=LABEL_ID, description=ID_RULE)
    created: float | None = Field(None, description="State.created: refused (409) if another session has the name now")


class LabelBody(Said):
    pair: int = Field(ge=1, le=MAX_ID, description="its id")
    choice: Literal["left", "right", "equal", "skip"] = Field(description="the better one; skip: cannot tell")
    strength: Literal["normal", "strong"] = Field("normal", description="strong: much better")
    response_ms: int | None = Field(None, ge=0, lt=2**31, description="from the pair's first frame to the key press")
    replays: int | None = Field(None, ge=0, le=MAX_COUNT, description="how often the clips began anew")
    pauses: int | None = Field(None, ge=0, le=MAX_COUNT, description="how often they were stopped")
    hidden_ms: int | None = Field(None, ge=0, lt=2**31, description="of response_ms: the page was not to be seen")


class UndoBody(Said):
    pass


class GoalBody(Body):
    text: str = Field(max_length=MAX_GOAL_CHARS)


class LabelAnswer(BaseModel):
    label: int = Field(description="row of the label, committed to disk")
    counts_from: int = Field(description="the first round whose training sees it; after the pair's own, it came late")


class UndoAnswer(BaseModel):
    label: int = Field(description="newest label row")
    pair: Pair = Field(description="the pair whose label was taken back")


class ForgetAnswer(BaseModel):
    until_label: int = Field(description="this label and those before it no longer count")


# ---------------------------------------------------------------------------------------------- reading


@router.get("/api/s/{session}/pairs")
def next_pairs(
    found: Found,
    after: Annotated[int | None, Query(ge=1, le=MAX_ID, description="only pairs shown after this one")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Batch:
    """The next unlabeled pairs of the batch, in the order to show them; none while nothing is to be labeled.

    To fetch ahead, ask for those after the last one you have.
    """
    return read_batch(found.session, after, limit)


@router.get("/api/s/{session}/labels")
def recent_labels(found: Found, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> list[Labeled]:
    """The pairs that were labeled last, oldest first, each with its label; post another label to change one."""
    return read_recent(found.session, limit)


@router.get("/api/s/{session}/goals")
def goal_history(found: Found) -> list[Goal]:
    """Every goal this session has had, oldest first."""
    return read_goals(found.session)


@router.get(
    "/api/s/{session}/clips/{clip}.png",
    response_class=FileResponse,
    responses={204: {"description": "still to be drawn"}},
)
def clip_sheet(found: Found, clip: Annotated[int, PathParameter(ge=1, le=MAX_ID)], v: str = "") -> Response:
    """The sprite sheet of a clip (see Clip); where the answer says so, it may be kept for ever.

    204 while it is still to be drawn, which begins with the first pairs of a batch: ask again.
    """
    row = found.session.clips([clip]).get(clip)
    coming = row is not None and is_coming(found.session, row)
    path = sheet_path(found.session, row) if row else None
    if path is None and coming:
        return Response(status_code=204, headers={"Retry-After": "1", "Cache-Control": "no-store"})
    if row is None or path is None:
        raise HTTPException(404, f"Session {found.session.name!r} has no picture of a clip {clip}.")
    current = v == sheet_version(found.session, row)
    caching = "private, max-age=31536000, immutable" if current else "private, no-cache"
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": caching})


@router.get(
    "/api/s/{session}/videos/{name}.mp4",
    response_class=FileResponse,
    responses={204: {"description": "none at this moment"}},
)
def video(found: Found, name: Annotated[str, PathParameter(pattern=r"^(live|start|r\d{3,9})$")]) -> Response:
    """A video of the agent after a round: start, r000, r001 …, or live; answers byte ranges.

    204 where a live one that the state still told of has made room: the next comes soon.
    """
    number = int(name[1:]) if name[0] == "r" else store.START
    asked = found.session.live_video() if name == "live" else found.session.video(number)
    path = found.session.file(f"videos/{name}.mp4")
    if name == "live" and not os.path.lexists(asked):
        return Response(status_code=204, headers={"Cache-Control": "no-store"})
    if path is None or asked.name != path.name:
        raise HTTPException(404, f"Session {found.session.name!r} has no video {name}.mp4.")
    return FileResponse(path, media_type="video/mp4", headers={"Cache-Control": "private, no-cache"})


# ---------------------------------------------------------------------------------------------- writing


@router.post("/api/s/{session}/labels", status_code=201, responses={200: {"model": LabelAnswer}})
def add_label(found: Found, body: LabelBody, response: Response) -> LabelAnswer:
    """Stores a label; answered once it is safe on disk. The same id again changes nothing (200).

    So after a lost answer or one of 5xx, post the same again until it is answered; 4xx is a refusal for good. A
    further label of a pair, of any round, under a new id, replaces its earlier one.
    """
    refuse_another(found, body)
    known = found.session.last_label_id()
    try:
        row = found.session.add_label(
            body.id, body.pair, body.choice, strength=body.strength, response_ms=body.response_ms,
            replays=body.replays, pauses=body.pauses, hidden_ms=body.hidden_ms,
        )  # fmt: skip
    except KeyError:
        detail = f"Session {found.session.name!r} has no pair {body.pair}: ask for the next ones."
        raise HTTPException(404, detail) from None
    except ValueError as error:
        raise HTTPException(409, str(error)) from None
    response.status_code = 200 if row <= known else 201
    return LabelAnswer(label=row, counts_from=counts_from(found.session))


@router.post("/api/s/{session}/undo")
def undo(found: Found, body: UndoBody) -> UndoAnswer:
    """Takes back the newest label of the batch that is being labeled. The same id again changes nothing.

    409 where there is none, or where the batch has gone into training: then post another label instead.
    """
    refuse_another(found, body)
    try:
        pair = found.session.take_back(body.id)
    except ValueError as error:
        raise HTTPException(409, str(error)) from None
    return UndoAnswer(label=found.session.last_label_id(), pair=show_pairs(found.session, [pair])[0])


@router.post("/api/s/{session}/goal")
def set_goal(found: Found, body: GoalBody) -> State:
    """Sets the sentence above the clips; earlier ones are kept as events."""
    found.session.add_event("goal", found.session.where().round, text=" ".join(body.text.split()))
    return found.state()


@router.post("/api/s/{session}/forget")
def forget(found: Found) -> ForgetAnswer:
    """No label given so far counts any more, as when the goal has changed; they stay on disk."""
    return ForgetAnswer(until_label=found.session.forget(found.session.where().round))


@router.post("/api/s/{session}/close")
def close_batch(found: Found) -> State:
    """Ends the batch early: the loop trains on what is labeled so far."""
    where = found.session.where()
    if where.phase != "label":
        detail = f"There is no batch to close: session {found.session.name!r} is in phase {where.phase}."
        raise HTTPException(409, detail)
    found.session.add_event("close", where.round, attempt=where.attempt)
    return found.state()


def refuse_another(found: Open, body: Said) -> None:
    """Pairs count from 1 in every session: what was said of one session's is nothing to another of the same name."""
    created = float(found.session.header().get("created") or 0.0)
    if body.created is not None and body.created != created:
        name = found.session.name
        raise HTTPException(409, f"Session {name!r} is another one than when this was said: load its page anew.")
