"""Order among the sessions: titles, the archive, the trash, a thumbnail of each."""

from fastapi import APIRouter

router = APIRouter()
