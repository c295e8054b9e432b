"""A language encoder with three tasks, each with batches of its own; mixed precision, and several batches a step."""

import torch


def train(encoder, heads, losses, loaders, optimizer, scaler, steps, accumulate, dtype):
    for _ in range(steps):
        for _ in range(accumulate):
            for task, loader in loaders.items():
                tokens, target = next(loader)
                with torch.autocast("cpu", dtype=dtype):
                    loss = losses[task](heads[task](encoder(tokens)), target) / accumulate
                scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
