"""What requests may hold."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MAX_ID = 2**53  # what JavaScript counts exactly
MAX_COUNT = 1_000_000
MAX_ROUND = 1_000_000


class Body(BaseModel):
    """Strict: true is no number, and what we do not know is refused."""

    model_config = ConfigDict(strict=True, extra="forbid")
