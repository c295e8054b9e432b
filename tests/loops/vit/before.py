"""A vision transformer with four heads; many images lack many labels, and some batches have none of a task."""


def train(vit, heads, losses, loader, optimizer):
    for images, labels in loader:
        features, values = vit(images), {}
        for task, (target, labelled) in labels.items():
            prediction = heads[task](features)
            values[task] = losses[task](prediction[labelled], target[labelled]) if labelled.any() else None
        optimizer.zero_grad()
        sum(value for value in values.values() if value is not None).backward()
        optimizer.step()
