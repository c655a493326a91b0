"""The person at the wheel: pause, stop, train longer, go back, start anew, star, other clips."""

from fastapi import APIRouter

router = APIRouter()
