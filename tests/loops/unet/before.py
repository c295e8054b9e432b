"""A U-Net in float16 with a gradient scaler; the second task has labels in the second half of the data alone."""

import torch


def train(unet, heads, losses, loader, optimizer, scaler):
    for images, labels in loader:
        with torch.autocast("cpu", dtype=torch.float16):
            features = unet(images)
            values = {task: losses[task](heads[task](features), label) for task, label in labels.items()}
        scaler.scale(sum(values.values())).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
