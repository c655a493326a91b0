"""A small Bradley-Terry reward model in plain PyTorch, from the labels of a session.

python scripts/examples/reward_from_labels.py data/cartpole-1
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import rlhf_gym


def main(session: Path, epochs: int, seed: int) -> float:
    """Trains on four fifths of the pairs; returns how often it is right about the others, ties apart."""
    labels = rlhf_gym.LabelDataset(session)
    torch.manual_seed(seed)
    tested = torch.utils.data.Subset(labels, [i for i, p in enumerate(labels.pairs) if (p.repeat_of or p.id) % 5 == 0])
    trained = torch.utils.data.Subset(labels, [i for i, p in enumerate(labels.pairs) if (p.repeat_of or p.id) % 5])
    if not len(tested) or not len(trained):
        raise rlhf_gym.UserError(f"{session} has {len(labels)} labels that say better or equal: label some more.")
    first = labels[0]["left_obs"]
    model = nn.Sequential(nn.Linear(first[0].numel(), 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)

    def log_odds(batch: dict) -> torch.Tensor:
        """That left is better, (B,): the difference of the clips' summed rewards."""
        left, right = (model(batch[f"{side}_obs"].flatten(2).float()).squeeze(-1).sum(1) for side in ("left", "right"))
        return left - right

    for _ in range(epochs):
        for batch in torch.utils.data.DataLoader(trained, batch_size=32, shuffle=True):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(log_odds(batch), batch["target"]).backward()
            optimizer.step()
    batch = next(iter(torch.utils.data.DataLoader(tested, batch_size=len(tested))))
    decided = batch["target"] != 0.5
    with torch.no_grad():
        right = ((log_odds(batch) > 0) == (batch["target"] > 0.5))[decided].float().mean().item()
    print(f"trained on {len(trained)} pairs; right about {right:.0%} of {int(decided.sum())} others")
    return right


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("session", type=Path, help="a session's directory, e.g. data/cartpole-1")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        main(args.session, args.epochs, args.seed)
    except rlhf_gym.UserError as error:
        raise SystemExit(f"{Path(__file__).name}: {error}") from None
