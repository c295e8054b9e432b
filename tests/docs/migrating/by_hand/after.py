"""A trunk and heads, with PCGrad."""

import gradsurgery as gs


def train(trunk, heads, losses, loader, optimizer):
    surgery = gs.GradientAggregator("pcgrad", tasks=list(heads))
    for x, targets in loader:
        optimizer.zero_grad()
        z = trunk(x)
        surgery.backward({task: losses[task](head(z), targets[task]) for task, head in heads.items()})
        optimizer.step()
