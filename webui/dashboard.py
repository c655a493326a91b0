"""What the dashboard shows of a session: the wall, the curves, every label."""

from fastapi import APIRouter

router = APIRouter()
