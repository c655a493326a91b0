"""A reward model of your own, in plain PyTorch, from the labels of a session of vectors and discrete actions.

    python scripts/examples/reward_from_labels.py data/cartpole-1

Bradley and Terry's model: P(left is better) is the sigmoid of the difference of the clips' summed rewards.
"""

import argparse

import torch
import torch.nn.functional as F

import rlhf_gym


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("session", help="directory of a session, e.g. data/cartpole-1")
    torch.manual_seed(0)
    labels = rlhf_gym.LabelDataset(parser.parse_args().session)
    kept, held_out = torch.utils.data.random_split(labels, (0.8, 0.2))
    size = labels[0]["left"]["observations"].shape[1]
    reward = torch.nn.Sequential(torch.nn.Linear(size, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
    over = torch.nn.Parameter(torch.zeros(()))  # what each step after an episode's end is worth
    optimizer = torch.optim.Adam([*reward.parameters(), over], lr=3e-3)

    def total(clip: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.where(clip["absorbing"], over, reward(clip["observations"]).squeeze(-1)).mean() * 25

    for _ in range(30):
        for item in torch.utils.data.DataLoader(kept, batch_size=None, shuffle=True):
            logit = total(item["left"]) - total(item["right"])
            loss = F.binary_cross_entropy_with_logits(logit, torch.tensor(float(item["target"])))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = [float((total(i["left"]) > total(i["right"])) == (i["target"] > 0.5)) for i in held_out]
    print(f"{len(kept)} labels learned from; right about {sum(right):.0f} of {len(held_out)} held out")


if __name__ == "__main__":
    main()
