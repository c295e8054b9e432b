"""The pipeline as functions: ``gram``, ``weights``, ``combine``, and the three in one, ``aggregate``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsurgery import ops
from gradsurgery.capture.gradients import DTYPES, GradientLike, TaskGradients, check_against, check_matrix
from gradsurgery.capture.grouping import check_samples, group_indices
from gradsurgery.capture.losses import LossesLike, losses_tensor
from gradsurgery.methods import Method, Step, build
from gradsurgery.methods.by_sample import check_by_sample
from gradsurgery.methods.preference import presence
from gradsurgery.methods.registry import NO_STEP, check_gram, check_takes_against

Gradients = Tensor | Sequence[GradientLike]
Gradient = Tensor | list[Tensor] | list[Tensor | None]


def gram(
    grads: Gradients, *, groups: Sequence[Hashable] | None = None, against: Gradients | None = None, samples: bool = False
) -> Tensor:
    """K_ij = <g_i, g_j>, or <g_i, h_j> with h = ``against``; summed over all coordinates, or over those of each group or sample.

    Args:
        grads: a tensor [T, ...], or one entry a task: a tensor, a list of P tensors or Nones, or None for an absent task, whose row
            of K is zero. float64, float32, bfloat16 or float16, any strides. Nothing is copied or concatenated.
        groups: a label for each of the P tensors of a task's gradient: one K for all tensors of equal label, in the order in which
            labels appear first, from one read of all. The sum of these K is the K of all tensors.
        against: a second set of gradients, of S tasks with the same tensors. Each set is read once.
        samples: the gradients are those of a batch of B samples, [B, ...]: one K for each sample, from one read of all.

    Returns:
        K [T, T], float64, on the gradients' device; symmetric by construction, and differentiable. [T, S] with ``against``. With
        ``groups`` [G, T, T] or [G, T, S], with ``samples`` [B, T, T].

    Raises:
        TypeError, ValueError: an entry of the wrong type, dtype, shape or device, or no gradient at all; ``groups`` that are not
            one hashable label a tensor; ``against`` that does not fit ``grads``; ``samples`` beside these, or with gradients that
            do not all have the same first dimension.
    """
    given = TaskGradients.of(grads)
    ops.warn_if_reference(given.device)
    if samples:
        _check_samples(given, groups, against)
        return ops.gram_samples(given.entries, given.tasks, given.stacked)
    of_piece = None if groups is None else group_indices(groups, given.pieces)
    if against is None:
        return ops.gram(given.entries, given.tasks, given.stacked, of_piece)
    others = TaskGradients.of(against, "against")
    check_against(others, given)
    T = given.tasks
    K = ops.gram([*given.task_major(), *others.task_major()], T + others.tasks, False, of_piece)
    return K[..., :T, T:].contiguous()


def weights(gram: Tensor, method: str | Method = "pcgrad", *, losses: LossesLike | None = None, **options: Any) -> Tensor:
    """The weights w [T] of a method from K [T, T], both float64 on one device; without memory of earlier calls.

    Args:
        gram: K, as ``gram`` returns it; [G, T, T] for G groups, or samples, gives w [G, T].
        method: a name of ``gradsurgery.methods()``, or a built method; options follow as keywords.
        losses: the tasks' losses, for methods that ask for them: a tensor [T] or a sequence, None for an absent task, whose row and
            column of K do not count then.

    Raises:
        TypeError, ValueError: a K that is no such matrix; an unknown method or option; missing losses; or a method that has no
            weights, as it treats every coordinate by itself.
    """
    chosen = build(method, **options)
    step = NO_STEP
    if losses is None:
        w = chosen.small_weights(gram)
        if w is not None:
            return w
    else:
        check_gram(gram)
        told = losses_tensor(losses, gram.shape[-1], gram.device)
        step = Step(present=None if isinstance(losses, Tensor) else tuple(loss is not None for loss in losses), losses=told)
    if isinstance(gram, Tensor) and gram.requires_grad:
        gram = gram.detach()
    here = presence(step, gram)
    if here is not None:  # K of a step has zeros where a task is absent
        gram = torch.where((here > 0) & (here > 0)[:, None], gram, 0.0)
    w = chosen.solve(gram, step).weights
    assert w is not None
    return w


def combine(
    grads: Gradients,
    weights: Tensor,
    *,
    out: Any = None,
    groups: Sequence[Hashable] | None = None,
    samples: bool = False,
) -> Gradient:
    """sum_t w_t g_t, summed in float64 on the CPU and in float32 or better on CUDA, then rounded (by way of float32 to 16 bits).

    Args:
        grads: as for ``gram``.
        weights: w [T], or [G, T] with ``groups``, [B, T] with ``samples``; another floating dtype is converted to float64.
        out: where to write, of one task's form; may be one of the gradients. Without it the result is new, and differentiable in
            grads and weights.
        groups: as for ``gram``: each tensor is combined with the weights of its group.
        samples: as for ``gram``: each sample is combined with weights of its own.

    Returns:
        A gradient of one task's form: a tensor, or a list of P (None where no task has a gradient).

    Raises:
        TypeError, ValueError: as for ``gram``; or ``weights`` or ``out`` that do not fit.
    """
    given = TaskGradients.of(grads)
    ops.warn_if_reference(given.device)
    of_piece = None if groups is None else group_indices(groups, given.pieces)
    batch = [_check_samples(given, groups, None)] if samples else [] if of_piece is None else [max(of_piece) + 1]
    shape = (*batch, given.tasks)
    if not isinstance(weights, Tensor) or weights.shape != shape:
        found = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weights: expected a tensor of shape {list(shape)}, found {found}.")
    if not weights.is_floating_point():
        raise TypeError(f"weights: expected a floating dtype, found {weights.dtype}.")
    if weights.device != given.device:
        raise ValueError(f"weights: expected device {given.device} like the gradients, found {weights.device}.")
    w = weights.to(torch.float64).contiguous()
    if out is None:
        groups_reached = None if of_piece is None else [of_piece[p] for p in given.reached()]

        def run(present: TaskGradients) -> list[Tensor]:
            if samples:
                return ops.combine_samples(present.entries, w, present.stacked)
            return ops.combine(present.entries, w, present.stacked, groups_reached)

        return _filled(given, run, given.reached())
    targets = checked_targets(given, out)
    with torch.no_grad():
        if samples:
            targets, given = _reached(targets, given)
            ops.combine_samples_(targets, given.entries, w, given.stacked)
        else:
            ops.combine_(targets, given.entries, w, given.stacked, groups=of_piece)
    return out  # type: ignore[no-any-return]


def aggregate(
    grads: Gradients,
    method: str | Method = "pcgrad",
    *,
    out: Any = None,
    losses: LossesLike | None = None,
    against: Gradients | None = None,
    groups: Sequence[Hashable] | None = None,
    samples: bool = False,
    **options: Any,
) -> Gradient:
    """combine(grads, weights(gram(grads), method)): surgery on T gradients in two reads (coordinate-wise methods: one) and no copy.

    Means are over the tasks present, which K alone does not tell: ``weights`` takes a task without gradient for one of zero length.
    A method with memory takes its first step; ``GradientAggregator.aggregate`` goes on from there.

    Args:
        grads: as for ``gram``.
        method: a name of ``gradsurgery.methods()``, or a built method; options follow as keywords (``order="ascending"``).
        out: where to write, of one task's form; may be one of the gradients.
        losses: the tasks' losses, for methods that ask for them: a tensor [T] or a sequence, None for an absent task.
        against: the gradients of a second batch, of the form of ``grads``, for methods that multiply two batches' gradients.
        groups: as for ``gram``: surgery of its own on the tensors of each label.
        samples: as for ``gram``: surgery of its own on each sample.

    Returns:
        The gradient, of one task's form; ``out`` where given. Not differentiable.

    Raises:
        TypeError, ValueError: as for ``gram`` and ``combine``; an unknown method or option; no loss of a task with a gradient, for
            a method that asks for it; ``against`` for a method that works on one batch; ``samples`` for one that needs more than K,
            or remembers something of a group.
    """
    chosen = build(method, **options)
    if against is not None:
        check_takes_against(chosen)
    if samples:
        check_by_sample(chosen, "samples")
    if isinstance(grads, Tensor) and groups is None and not samples:
        if out is None:
            check_matrix(grads)
            out = torch.empty_like(grads[0], requires_grad=False)
        if chosen.small_matrix_(out, grads):
            return out  # type: ignore[no-any-return]
    given = TaskGradients.of(grads)
    ops.warn_if_reference(given.device)
    second = None if against is None else second_batch(given, against)
    told = losses_tensor(losses, given.tasks, given.device)
    if "losses" in chosen.needs and losses is not None and not isinstance(losses, Tensor):
        missing = [t for t, (loss, here) in enumerate(zip(losses, given.present, strict=True)) if here and loss is None]
        if missing:
            raise ValueError(f"losses: expected one of every task with a gradient, found none of tasks {missing}.")
    if samples:
        _check_samples(given, groups, against)
    step = Step(present=given.present, losses=told, against=second)
    # With groups all positions stay, so that a group's number, by which it draws at random, does not depend on what is reached.
    of_piece = [] if groups is None else group_indices(groups, given.pieces)
    reached = list(range(given.pieces)) if of_piece else given.reached()
    by_sample = samples and chosen.spec.family != "coordinatewise"

    def surgery_(targets: list[Tensor], present: TaskGradients) -> None:
        if by_sample:
            chosen.samples_surgery_(targets, present, step)
        else:
            chosen.surgery_(targets, present, step, of_piece)

    with torch.no_grad():
        if out is not None:
            targets = checked_targets(given, out)
            if not of_piece:
                targets, given = _reached(targets, given)
            surgery_(targets, given)
            return out  # type: ignore[no-any-return]

        def surgery(present: TaskGradients) -> list[Tensor]:
            targets = present.empty()
            surgery_(targets, present)
            return targets

        return _filled(given, surgery, reached)


def second_batch(given: TaskGradients, against: Gradients) -> TaskGradients:
    """The gradients of a second batch, at the positions that the first one's reach.

    Raises:
        TypeError, ValueError: as for ``gram``; or gradients that are not of the first batch's form.
    """
    second = TaskGradients.of(against, "against")
    check_against(second, given)
    if second.tasks != given.tasks:
        raise ValueError(f"against: expected {given.tasks} tasks like grads, found {second.tasks}.")
    return second if given.stacked and second.stacked else second.at(given.reached(), range(given.tasks))


def _check_samples(given: TaskGradients, groups: Sequence[Hashable] | None, against: Gradients | None) -> int:
    """B of gradients [B, ...].

    Raises:
        ValueError: there is something else that has a K of its own; or the gradients have no batch, or different ones.
    """
    for name, other in (("groups", groups), ("against", against)):
        if other is not None:
            raise ValueError(f"{name}: expected None with samples=True, as each sample has one K; found {type(other).__name__}.")
    names = ["grads"] if given.single else [f"grads[...][{p}]" for p in range(given.pieces)]
    return check_samples([given.shape(p) for p in range(given.pieces)], lambda: names)


def _reached(targets: list[Tensor], given: TaskGradients) -> tuple[list[Tensor], TaskGradients]:
    """Those where some task has a gradient; the other targets are zeroed."""
    reached = given.reached()
    if len(reached) == given.pieces:
        return targets, given
    for p in set(range(given.pieces)) - set(reached):
        targets[p].zero_()
    return [targets[p] for p in reached], given.at(reached, range(given.tasks))


def _filled(given: TaskGradients, run: Callable[[TaskGradients], list[Tensor]], positions: Sequence[int]) -> Gradient:
    """Runs on the gradients at some positions; where no task has a gradient the result is None."""
    if given.stacked:
        return run(given)[0]
    present = given if len(positions) == given.pieces else given.at(positions, range(given.tasks))
    result: list[Tensor | None] = [None] * given.pieces
    for p, tensor in zip(positions, run(present), strict=True):
        if given.shape(p) is not None:
            result[p] = tensor
    return result[0] if given.single else result  # type: ignore[return-value]  # a single piece is never empty


def checked_targets(given: TaskGradients, out: Any) -> list[Tensor]:
    """``out`` as a list, checked against one task's gradient. [P]"""
    if given.single:
        targets = [out]
    elif isinstance(out, Sequence):
        targets = list(out)
    else:
        raise TypeError(f"out: expected a list of tensors like one task's gradient, found {type(out).__name__}.")
    P = given.pieces
    if len(targets) != P:
        raise ValueError(f"out: expected {P} tensors like one task's gradient, found {len(targets)}.")
    for p, target in enumerate(targets):
        like = given.entries[0] if given.stacked else next((g for g in given.entries[p::P] if g is not None), None)
        shape = None if like is None else like.shape[1:] if given.stacked else like.shape
        check_out(target, "out" if given.single else f"out[{p}]", shape, given.device)
    _check_overlaps(targets, given)
    return targets


def check_out(out: Any, name: str, shape: torch.Size | None, device: torch.device) -> None:
    """Raises unless ``out`` can be written; ``shape`` None: no task has a gradient there, any shape is zeroed."""
    if not isinstance(out, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(out).__name__}.")
    if shape is not None and out.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, found {list(out.shape)}.")
    if out.dtype not in DTYPES:
        raise TypeError(f"{name}: expected dtype float64, float32, bfloat16 or float16, found {out.dtype}.")
    if out.layout is not torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, found layout {out.layout}.")
    if out.device != device:
        raise ValueError(f"{name}: expected device {device} like the gradients, found {out.device}.")
    reach = 0  # of the dimensions with smaller strides, in elements
    for stride, size in sorted((s, n) for n, s in zip(out.shape, out.stride(), strict=True) if n > 1):
        if stride <= reach:
            raise ValueError(
                f"{name}: expected elements with memory of their own, found strides {out.stride()}, by which they share it."
            )
        reach += stride * (size - 1)


def _storage(tensor: Tensor) -> int:
    """Where a tensor's storage begins; 0 for one without memory (zeros that autograd never made)."""
    return 0 if torch._is_zerotensor(tensor) else tensor.untyped_storage().data_ptr()


def _check_overlaps(targets: list[Tensor], given: TaskGradients) -> None:
    """Raises where an output shares memory with a gradient or another output, unless it is exactly a gradient at its position.

    As in torch, tensors with gaps are trusted: whether they meet is hard to tell.
    """
    if torch.compiler.is_compiling():  # addresses mean nothing there
        return
    storages = {_storage(target) for target in targets}
    if len(storages) == len(targets) and not any(g is not None and _storage(g) in storages for g in given.entries):
        return  # the usual case, and much the cheaper to see
    P = given.pieces
    spans = []
    for k, tensor in enumerate([*targets, *given.task_major()]):
        if tensor is not None and tensor.numel() and torch.ops.aten.is_non_overlapping_and_dense(tensor):
            start, piece = tensor.data_ptr(), k if k < P else (k - P) % P
            spans.append((start, start + tensor.numel() * tensor.element_size(), k < P, piece, tensor))
    spans.sort(key=lambda span: span[:2])
    reaching: list[tuple[int, int, bool, int, Tensor]] = []  # those that may reach into the next
    for span in spans:
        reaching = [other for other in reaching if other[1] > span[0]]
        for other in reaching:
            one, two = span[4], other[4]
            outputs = span[2] + other[2]
            exact = span[0] == other[0] and span[3] == other[3] and one.shape == two.shape and one.stride() == two.stride()
            if outputs == 2 or (outputs == 1 and not exact):
                piece = (span if span[2] else other)[3]
                raise ValueError(
                    f"{'out' if given.single else f'out[{piece}]'}: expected memory of its own, or exactly one of the gradients at "
                    f"its position; found memory shared with {'another output' if outputs == 2 else 'a gradient, in part'}."
                )
        reaching.append(span)
