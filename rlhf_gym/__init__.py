"""rlhf-gym: teach a Gymnasium agent by comparing clips of it in the browser."""

__version__ = "0.1.0"
