"""The labels of a session as tensors, ready for the reward model.

`Labels` holds every labeled pair: the clips' steps in one long row, and where each clip lies in it, so that clips of
any length share a batch. `load_labels` reads them from a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rlhf_gym.config import UserError
from rlhf_gym.normalizer import PixelNormalizer
from rlhf_gym.segments import Segment, load_clip, unstack
from rlhf_gym.store import JUDGED, Pair, Session

TARGET = {"normal": 0.95, "strong": 1.0}  # what a label says of P(the chosen clip is better)


def target(pair: Pair) -> float:
    """P(left is better) according to the pair's label; 1/2 for equal."""
    return {"left": TARGET[pair.strength], "right": 1 - TARGET[pair.strength], "equal": 0.5}[pair.choice or "equal"]


class Labels:
    """Labeled pairs as tensors on the CPU.

    Attributes:
        pairs: P pairs labeled left, right or equal.
        damaged: what was wrong with clips that cannot be read; their pairs are left out.
        left, right: (P,) position of each pair's clips among the C clips.
        target: (P,) what the label says of P(left is better).
        weight: (K, P) how often member k sees a pair; never means held out for k.
        length: (C,) steps of each clip, absorbing ones too.
        begin, end: (C,) where the rows of each clip lie, see `Segment.rows`.
        count: (R,) how many steps each row stands for: one, or all absorbing steps of a clip.
        ended: (R,) bool: whether it stands for absorbing steps.
        logits: (K, P) the log-odds that left is better, of the reward model trained on them last.
        obs, actions: the R rows of all clips, one after the other: a clip's live steps and, where it ended, what was
            seen last. Of stacked frames each is kept once (14 times less memory than float stacks) and `steps` stacks
            them again.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        segments: Mapping[int, Segment],
        from_env: Callable[[Tensor], Tensor],
        seed: int,
        members: int,
    ) -> None:
        """segments: by clip id, all that the pairs name; from_env: an agent's, to bring actions into [-1, 1]."""
        self.pairs = list(pairs)
        self.damaged: list[str] = []
        self.logits: Tensor | None = None
        obs: list[Tensor] = []
        first: list[Tensor] = []
        frames_so_far, self.stack = 0, 0
        rows: list[tuple[np.ndarray, ...]] = []
        for x, *others in (segment.rows() for segment in segments.values()):
            rows.append(tuple(others))
            if x.dtype == np.uint8 and x.ndim == 4:  # (n, S, H, W)
                self.stack = x.shape[1]
                frames = unstack(x)
                stride = self.stack if frames is None else 1
                first.append(frames_so_far + stride * torch.arange(len(x)))
                x = x.reshape(-1, *x.shape[2:]) if frames is None else frames
                frames_so_far += len(x)
            obs.append(torch.as_tensor(x))
        self.obs, self.first = torch.cat(obs), torch.cat(first) if first else None
        self.actions = from_env(torch.as_tensor(np.concatenate([actions for actions, _, _ in rows])))
        self.ended = torch.as_tensor(np.concatenate([ended for _, ended, _ in rows]))
        self.count = torch.as_tensor(np.concatenate([count for _, _, count in rows])).float()
        self.end = torch.cumsum(torch.tensor([len(count) for _, _, count in rows]), 0)
        self.begin = torch.cat([torch.zeros(1, dtype=torch.int64), self.end[:-1]])
        self.length = torch.tensor([int(count.sum()) for _, _, count in rows])
        position = {clip: i for i, clip in enumerate(segments)}
        self.left = torch.tensor([position[p.left_clip] for p in self.pairs])
        self.right = torch.tensor([position[p.right_clip] for p in self.pairs])
        self.target = torch.tensor([target(p) for p in self.pairs])
        # A bootstrap without memory: member k sees a pair Poisson(1) times. A repeat follows its original, so that
        # nothing leaks into what is held out.
        draws = [
            [np.random.default_rng((seed, k, p.repeat_of or p.id)).poisson(1) for p in self.pairs]
            for k in range(members)
        ]
        self.weight = torch.tensor(draws, dtype=torch.float32)

    def steps(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Observations (B, *obs_shape), actions, and whether it had ended (B,), of rows (B,)."""
        obs = self.obs[rows] if self.first is None else self.obs[self.first[rows, None] + torch.arange(self.stack)]
        return obs.to(device), self.actions[rows].to(device), self.ended[rows].to(device)

    def beside(self, rows: Tensor, device: torch.device | str = "cpu") -> Tensor | None:
        """What stands beside the observations of rows (B,), as `Potential.forward` has it; None of stacked frames."""
        if self.first is not None:
            return None
        clip = torch.searchsorted(self.end, rows, right=True)
        last = self.end[clip] - 1 - self.ended[self.end[clip] - 1].long()  # that the clip was live at
        return self.obs[torch.minimum(rows + 1, last).maximum(self.begin[clip])].to(device)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each number (D,), or of each pixel in [0, 1] over all frames (H, W).

        What hardly ever changes has at least a small deviation, so that noise is not blown up.
        """
        if self.first is None:
            obs = self.obs.flatten(1)
            return obs.mean(0), obs.std(0, unbiased=False).clamp_min(1e-3)
        frames = PixelNormalizer((1, *self.obs.shape[1:]))
        for part in self.obs.split(512):
            frames.update(part[:, None])
        return frames.mean.float(), frames.std()

    def rows_of(
        self, clips: Tensor, at_most: int = 0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The rows (B,) of clips (C,), which of the clips each belongs to (B,), and for how many steps it counts (B,).

        Args:
            at_most: of each clip only so many live steps, evenly spaced from a random first one, each of which counts
                for as many as were left out with it; 0 takes all.
        """
        n = (self.end - self.begin)[clips]
        owner = torch.repeat_interleave(torch.arange(len(clips)), n)
        position = torch.arange(int(n.sum())) - (torch.cumsum(n, 0) - n)[owner]
        rows = position + self.begin[clips][owner]
        count = self.count[rows]
        if at_most == 0:
            return rows, owner, count
        live = n - self.ended[self.end[clips] - 1].long()
        share = (live.clamp(max=at_most) / live.clamp(min=1)).double()[owner]
        first = torch.rand(len(clips), generator=generator, dtype=torch.float64)[owner]
        drawn = ((position + 1) * share + first).floor() > (position * share + first).floor()
        kept = drawn | self.ended[rows]
        return rows[kept], owner[kept], torch.where(self.ended[rows], count, count / share.float())[kept]


def load_labels(
    session: Session,
    from_env: Callable[[Tensor], Tensor],
    seed: int,
    members: int,
    after: int = 0,
    until: int | None = None,
) -> Labels | None:
    """The labels of a session in label rows after `after` up to `until`, or None where there is nothing to learn.

    Pairs with a clip that cannot be read are left out (see `Labels.damaged`).
    """
    pairs = [p for p in session.pairs(labels_until=until) if p.choice in JUDGED and p.counts(after)]
    clips = session.clips()
    segments: dict[int, Segment] = {}
    damaged: list[str] = []
    for i in sorted({c for p in pairs for c in (p.left_clip, p.right_clip)}):
        try:
            segments[i] = load_clip(session, clips[i])
        except UserError as error:
            damaged.append(str(error))
    pairs = [p for p in pairs if p.left_clip in segments and p.right_clip in segments]
    if all(p.choice == "equal" for p in pairs):
        return None
    used = {c for p in pairs for c in (p.left_clip, p.right_clip)}
    labels = Labels(pairs, {i: s for i, s in segments.items() if i in used}, from_env, seed, members)
    labels.damaged = damaged
    return labels
