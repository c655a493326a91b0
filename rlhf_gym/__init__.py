"""rlhf-gym: teach a Gymnasium agent by comparing clips of it in the browser."""

import os

__version__ = "0.1.0"

# Torch's threads wait for each other at full speed, by default for milliseconds, which they take from the browser and
# from each other when anything else runs (docs/benchmarks.md). Read when torch is loaded; what you have set stands.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# These load torch, once one of them is asked for.
_LIBRARY = ("LabelDataset", "RewardWrapper", "Taught", "VectorRewardWrapper", "load")


def __getattr__(name: str) -> object:
    if name in _LIBRARY:
        from rlhf_gym import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
