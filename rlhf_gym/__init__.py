"""rlhf-gym: teach a Gymnasium agent by comparing clips of it in the browser.

From Python, with what somebody taught (docs/api.md):

    taught = rlhf_gym.load("data/cartpole-1")
    env = rlhf_gym.RewardWrapper(gymnasium.make("CartPole-v1"), taught)
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_gym.config import UserError
    from rlhf_gym.library import LabelDataset, RewardWrapper, Taught, VectorRewardWrapper, load

__version__ = "0.1.0"
__all__ = ["LabelDataset", "RewardWrapper", "Taught", "UserError", "VectorRewardWrapper", "load"]

# Torch's threads wait for each other at full speed, by default for milliseconds, which they take from the browser and
# from each other when anything else runs (docs/benchmarks.md). Read when torch is loaded; what you have set stands.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first asked for."""
    if name in __all__:
        return getattr(importlib.import_module("rlhf_gym.library"), name)
    raise AttributeError(f"module 'rlhf_gym' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
