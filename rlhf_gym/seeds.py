"""Seeds: every use of randomness has a path of numbers (the session's seed, round, phase), and nothing else counts."""

from __future__ import annotations

import numpy as np

PHASE_SEED = {"start": 0, "train_reward": 1, "train_agent": 2, "collect": 3, "record": 4}
RANK_SEED = 2**32  # plus its rank: what another process's paths go on with; no part or iteration is so large


def seed_from(*path: int) -> int:
    """One number from a path of numbers, so that every round and phase has randomness of its own."""
    return int(np.random.SeedSequence([p + 1 for p in path]).generate_state(1)[0])
