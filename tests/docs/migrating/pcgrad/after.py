"""The loop of the repository's README, with two heads."""

import torch

from gradsurgery import PCGrad


def train(trunk, heads, losses, loader):
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimizer = PCGrad(torch.optim.Adam(parameters, lr=1e-2))
    for x, targets in loader:
        z = trunk(x)
        optimizer.zero_grad()
        optimizer.pc_backward([losses[task](head(z), targets[task]) for task, head in heads.items()])
        optimizer.step()
