"""A vision transformer with four heads; many images lack many labels, and some batches have none of a task."""

import gradsurgery as gs


def train(vit, heads, losses, loader, optimizer):
    surgery = gs.GradientAggregator("pcgrad", tasks=list(heads))
    for images, labels in loader:
        features, values = vit(images), {}
        for task, (target, labelled) in labels.items():
            prediction = heads[task](features)
            values[task] = losses[task](prediction[labelled], target[labelled]) if labelled.any() else None
        optimizer.zero_grad()
        surgery.backward(values)
        optimizer.step()
