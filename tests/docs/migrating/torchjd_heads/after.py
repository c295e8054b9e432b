"""A trunk and heads, with UPGrad."""

import gradsurgery as gs


def train(trunk, heads, losses, loader, optimizer):
    surgery = gs.GradientAggregator("upgrad", tasks=list(heads))
    for x, targets in loader:
        optimizer.zero_grad()
        features = trunk(x)
        values = {task: losses[task](head(features), targets[task]) for task, head in heads.items()}
        surgery.backward(values, shared=trunk)
        optimizer.step()
