"""A trunk and heads, with PCGrad."""

import torch


def project(grads):
    projected = []
    for i in range(len(grads)):
        own = grads[i].clone()
        for j in torch.randperm(len(grads)).tolist():
            inner = own @ grads[j]
            if j != i and inner < 0:
                own -= inner / grads[j].square().sum() * grads[j]
        projected.append(own)
    return sum(projected)


def train(trunk, heads, losses, loader, optimizer):
    shared = list(trunk.parameters())
    for x, targets in loader:
        optimizer.zero_grad()
        z = trunk(x)
        grads = []
        for task, head in heads.items():
            loss = losses[task](head(z), targets[task])
            own = list(head.parameters())
            found = torch.autograd.grad(loss, shared + own, retain_graph=True)
            for p, grad in zip(own, found[len(shared) :], strict=True):
                p.grad = grad
            grads.append(torch.cat([grad.flatten() for grad in found[: len(shared)]]))
        pieces = project(grads).split([p.numel() for p in shared])
        for p, piece in zip(shared, pieces, strict=True):
            p.grad = piece.view_as(p)
        optimizer.step()
