"""What the dashboard shows of a session: the wall, the curves, every label."""

import gzip
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response
from starlette.requests import Request

from webui import metrics, wall
from webui.found import Found

router = APIRouter()


@router.get("/api/s/{session}/wall")
def get_wall(found: Found) -> wall.WallAnswer:
    """The agent after every round: its video, its true return, and what one reward model predicts along it."""
    return wall.read_wall(found.session)


@router.get("/api/s/{session}/metrics")
def get_metrics(
    found: Found,
    names: Annotated[
        list[str] | None, Query(max_length=100, description="of the metrics, one names= each; none: all")
    ] = None,
) -> metrics.Metrics:
    """What was measured, as series of at most 500 points, and how the labels came in."""
    return metrics.read_metrics(found.session, names or [])


@router.get("/plotly/{version}.js", include_in_schema=False)
def plotly(request: Request, version: str) -> Response:
    """Plotly's JavaScript, which draws the curves."""
    current = metrics.plotly_url()
    if request.url.path != current:
        raise HTTPException(404, f"There is no Plotly {version[:60]!r} here: it is at {current}.")
    script, headers = metrics.plotly_script(), {"Cache-Control": "public, max-age=31536000, immutable"}
    headers["Vary"] = "Accept-Encoding"
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
    else:
        script = gzip.decompress(script)
    return Response(script, headers=headers, media_type="text/javascript")
