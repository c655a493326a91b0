"""Running moments, with which observations and rewards are brought to one scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST_CONTRAST = 0.02  # of white


class Normalizer(nn.Module):
    """Running mean and variance of observations; `update` moves it, nothing else does."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, x: Tensor) -> None:
        """Merges the moments of x (B, *shape) into the running ones (Chan et al. 1979)."""
        x = x.double()
        self.merge(x.shape[0], x.mean(0), x.var(0, unbiased=False))

    def newest(self, x: Tensor) -> Tensor:
        """The part of observations (B, *shape) that `update` reads: here all of it."""
        return x

    def merge(self, n: int, mean: Tensor, var: Tensor) -> None:
        """Takes n more rows of this mean and variance in."""
        total, delta = self.count + n, mean - self.mean
        self.var = (self.var * self.count + var * n + delta**2 * self.count * n / total) / total
        self.mean = self.mean + delta * n / total
        self.count = total

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean.float()) / (self.var.float() + 1e-8).sqrt()).clamp(-10, 10)


class PixelNormalizer(Normalizer):
    """The same of images: of each pixel in [0, 1], one for all stacked frames.

    What never moves is gone, and a ball of two pixels stands out. A pixel that hardly ever changes is taken to change
    by LEAST_CONTRAST, so that noise is not blown up.
    """

    def __init__(self, obs_shape: tuple[int, ...]) -> None:
        """obs_shape: (S, H, W)."""
        super().__init__(obs_shape[1:])
        self.float()  # Apple's GPUs have no float64

    def update(self, x: Tensor) -> None:
        """Merges the moments of the newest frames of x (B, S, H, W) uint8 into the running ones."""
        device = self.mean.device
        self.cpu().double()
        for part in x[:, -1].split(256):  # of so many bytes float32 holds the sums, and those of squares, exactly
            frames = part.cpu().float()
            mean, square = frames.sum(0).double() / len(part), frames.square_().sum(0).double() / len(part)
            self.merge(len(part), mean / 255, (square - mean**2) / 255**2)
        self.float().to(device)

    def newest(self, x: Tensor) -> Tensor:
        """Of stacks (B, S, H, W) the newest frame, (B, 1, H, W)."""
        return x[:, -1:]

    def std(self) -> Tensor:
        """(H, W)."""
        return self.var.float().sqrt().clamp_min(LEAST_CONTRAST)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, S, H, W) in [0, 1], which is changed."""
        return standardise(x, self.mean, self.std())


def standardise(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """x (B, S, H, W), which is changed, less the mean (H, W) of each pixel, over its std (H, W), within ±10."""
    if x.is_contiguous(memory_format=torch.channels_last):  # laid out as x is, they are met twice as quickly
        shape = (1, *x.shape[1:])
        mean, std = (m.expand(shape).contiguous(memory_format=torch.channels_last) for m in (mean, std))
    return x.sub_(mean).div_(std).clamp_(-10, 10)


def normalizer_of(obs_shape: tuple[int, ...], image: bool) -> Normalizer:
    return PixelNormalizer(obs_shape) if image else Normalizer(obs_shape)
