"""Which methods can do surgery of its own for every sample of a batch."""

from __future__ import annotations

import torch

from gradsurgery.capture.gradients import TaskGradients

from .registry import WEIGHTED, Method


def check_by_sample(method: Method, name: str) -> None:
    """Raises unless a method takes samples one by one: K alone decides its weights, and it remembers nothing of a group.

    One that treats every coordinate by itself does so anyhow.

    Args:
        method: the method.
        name: of the caller's argument that asks for it, for the error.

    Raises:
        ValueError: it needs more than K; or it remembers, and the next batch has other samples.
    """
    spec = method.spec
    if spec.family == "coordinatewise":
        return
    if spec.family not in WEIGHTED:
        found = f"{spec.name!r} of family {spec.family!r}"
    elif method.task_state(TaskGradients([torch.zeros(2, 1, device="cpu")], 2, stacked=True)):
        found = f"{spec.name!r}, which remembers something of every group"
    else:
        return
    raise ValueError(
        f"{name}: expected a method whose weights K alone decides (families {', '.join(WEIGHTED)}), and that keeps no memory of "
        f"groups, as the next batch has other samples; found {found}."
    )
