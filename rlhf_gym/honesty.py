"""How far the reward model and the labels can be trusted: the numbers that say so, for the metric table.

Nothing here is learned from. Where a pair was labeled equal, neither answer is right, so ties count in the losses of
`label_loss` alone; skips count nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from rlhf_gym.episodes import correlation
from rlhf_gym.store import DECIDED, Pair, repeats

BINS = 10  # of equal width, of the predicted probability
NEAREST = 1e-6  # to 0 and 1 that a stored probability is taken to be: rounding has made some exactly 0 or 1
LEAST_REPEATS = 30  # before the mistake rate is estimated
PRIOR_REPEATS = 20.0  # how many repeats the assumed mistake rate is worth beside them
MOST_MISTAKES = 0.45  # at one half nothing could be learned from any label


def reward_metrics(
    logits: Tensor, loss: Tensor, target: Tensor, weight: Tensor, mistake_rate: float
) -> dict[str, float]:
    """What can be said of a reward model on the pairs each member learned from (weight > 0), and on those held out
    from it (weight 0), each member judged alone.

    Args:
        logits: (K, P) log-odds that left is better.
        loss: (K, P) what it was trained on: with ties, strengths and the mistake rate.
        target: (P,) what the labels say of P(left is better); 1/2 for equal.
        weight: (K, P) how often member k saw a pair.

    Returns:
        reward/loss and reward/held_out_loss: means of `loss`; reward/floor: that of a model that is always right.
        reward/accuracy and reward/held_out_accuracy: how often the likelier clip is the one chosen. Ties are left out.
        reward/held_out_log_loss: cross-entropy of P(left is better) and the clip chosen, whatever its strength; no
        mistakes are allowed for, so a model that is wrong and certain pays for it. Ties are left out.
        reward/held_out_calibration_error: see `calibration_error`. Ties are left out.
    """
    right = ((logits > 0) == (target > 0.5)).float()
    chosen = (target > 0.5).float().expand_as(logits)
    log_loss = F.binary_cross_entropy_with_logits(logits, chosen, reduction="none")
    decided = (target != 0.5).expand_as(logits)
    reachable = target.clamp(mistake_rate, 1 - mistake_rate)
    result = {"reward/floor": float(F.binary_cross_entropy(reachable, target))}
    for name, seen in (("reward/", weight > 0), ("reward/held_out_", weight == 0)):
        if seen.any():
            result[f"{name}loss"] = float(loss[seen].mean())
        if (seen & decided).any():
            result[f"{name}accuracy"] = float(right[seen & decided].mean())
    if (unseen := (weight == 0) & decided).any():
        p, left = logits[unseen].sigmoid().cpu().numpy(), chosen[unseen].cpu().numpy()
        result["reward/held_out_log_loss"] = float(log_loss[unseen].mean())
        result["reward/held_out_calibration_error"] = calibration_error(p, left)
    return result


def calibration_error(p: np.ndarray, left: np.ndarray) -> float:
    """The expected calibration error (ECE; Naeini et al. 2015) of probabilities in ten bins of equal width.

    In each bin the mean probability should be the share of pairs of which left was chosen; the error is how far they
    are apart, averaged over the pairs. With few pairs it is mostly noise: a perfect model has about 0.4 / sqrt(n) in
    each bin of n pairs.

    Args:
        p: (n,) P(left is better); n at least 1.
        left: (n,) 1 where left was chosen, 0 where right was. Ties have no place here.
    """
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=p, minlength=BINS) - np.bincount(bins, weights=left, minlength=BINS)
    return float(np.abs(gaps).sum() / len(p))  # each bin's gap of means, times the pairs in it


def foresight(batch: Sequence[Pair]) -> dict[str, float]:
    """Prequential accuracy and log-loss: how right the reward model was about a batch before it learned from it.

    On uniformly drawn pairs alone: those chosen by disagreement are hard on purpose, and repeats it has seen. Ties and
    skips say nothing of which clip is better and are left out.
    """
    decided = [p for p in batch if p.kind == "uniform" and p.choice in DECIDED and p.p_left is not None]
    if not decided:
        return {}
    p = np.array([pair.p_left for pair in decided], float)
    left = np.array([pair.choice == "left" for pair in decided])
    chosen = np.where(left, p, 1 - p).clip(NEAREST, 1 - NEAREST)
    return {
        "reward/prequential_accuracy": float(np.mean((p > 0.5) == left)),
        "reward/prequential_log_loss": float(-np.log(chosen).mean()),
        "reward/prequential_pairs": float(len(decided)),
    }


def foresight_of_clips(predicted: Sequence[float], true: Sequence[float]) -> dict[str, float]:
    """Correlation of what the reward model gave each new clip, before it learned from any of them, with its true
    return. Nothing where either has no spread, or with few clips."""
    found = correlation(np.asarray(predicted, float), np.asarray(true, float))
    return {} if found is None else {"reward/prequential_correlation": found}


def consistency(pairs: Sequence[Pair], assumed: float) -> dict[str, float]:
    """How often hidden repeats agreed with the first, and, from 30 of them on, what mistake rate that speaks for.

    Args:
        pairs: with the labels that count.
        assumed: the mistake rate taken for granted so far.
    """
    agreed = repeats(pairs)
    if not agreed:
        return {}
    found = {"labels/consistency": float(np.mean(agreed)), "labels/repeats": float(len(agreed))}
    return found | ({"labels/mistake_rate": mistake_rate(pairs, assumed)} if len(agreed) >= LEAST_REPEATS else {})


def mistake_rate(pairs: Sequence[Pair], assumed: float) -> float:
    """The share of labels that are slips, estimated from hidden repeats; with fewer than 30 the assumed one.

    Two labels of one pair disagree where one of them is a slip and the other is not: with probability
    d = 2m(1 - m). The estimate is the m whose d is the posterior mean under a beta prior on d of mean 2 a (1 - a),
    a = `assumed`, that weighs as much as 20 repeats. A person also wavers where two clips are about equally good, which
    counts as slips here.
    """
    agreed = repeats(pairs)
    if len(agreed) < LEAST_REPEATS:
        return assumed
    disagreed = len(agreed) - sum(agreed)
    d = (PRIOR_REPEATS * 2 * assumed * (1 - assumed) + disagreed) / (PRIOR_REPEATS + len(agreed))
    return min(MOST_MISTAKES, (1 - math.sqrt(max(0.0, 1 - 2 * d))) / 2)
