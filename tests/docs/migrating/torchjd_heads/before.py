"""A trunk and heads, with UPGrad."""

from torchjd.aggregation import UPGrad
from torchjd.autojac import jac_to_grad, mtl_backward


def train(trunk, heads, losses, loader, optimizer):
    aggregator = UPGrad()
    for x, targets in loader:
        optimizer.zero_grad()
        features = trunk(x)
        values = {task: losses[task](head(features), targets[task]) for task, head in heads.items()}
        mtl_backward(list(values.values()), features=features)
        jac_to_grad(trunk.parameters(), aggregator)
        optimizer.step()
