"""Every operator of the library, on one screen.

``grads`` is a list of tensors that are never concatenated. With ``stacked=False`` it has T*P entries, task by task (task 0's P
tensors, then task 1's); an entry may be None: that task has no gradient there, which counts as zeros. With ``stacked=True`` it has
P tensors of shape [T, ...]. All entries of one position have one shape; strides are free.

``groups`` puts position p into group ``groups[p]`` of 0..G-1, in any order: then K is [G, T, T], one for each group, and
``weights`` are [G, T]. For ``gram`` every group up to the largest has a position. None or empty: one group, [T, T]
and [T].

Operators of ``samples`` take every sample of a batch by itself: gradients (and ``out``) are [B, ...], stacked [T, B, ...], of one B
at all positions; then K is [B, T, T], and ``weights`` are [B, T]. Samples draw, and share ``order``, as groups do.

Operators ending in ``_`` write into ``out`` (P tensors, each of the shape of one task's gradient; an ``out`` may be one of them)
and add to what is there when ``accumulate`` is set. ``key`` is int64 [2] = (seed, step): it selects PCGrad's random order
and its step is advanced by one, unless K is not finite. Groups draw orders of their own from one key, whose step is advanced
unless the K of some group is not finite; ``order`` is shared by them.

``coordinatewise_`` treats every coordinate by itself, over the tasks that have a gradient at its position, none of which gives
zeros. A value that is not finite gives NaN. ``rule`` and its ``options``:

- "graddrop": [] or one leak a task. Random numbers come from ``uniform``, float64 [N] in [0, 1), or by ``key`` from a counter that
  holds (seed, step, coordinate): coordinates are numbered through all positions in the order of the dimensions, so that numbers do
  not depend on layouts or devices. The step is advanced whatever the values are, for nothing is reduced that could tell.
- "sign_agreement": [threshold, 1 for the mean or 0 for the sum].
- "trimmed_mean": [trim], with 2 * trim less than the tasks at every position.
- "median": [].
``buffers`` are P tensors [T, ...], float32 or float64, a slice a task, updated in place. Those of a task without any gradient stay
as they are. Where a bool tensor ``valid`` is false nothing is written and the result is NaN; beyond that, a coordinate whose new
value is not finite keeps its old one and makes its task's part of the result NaN.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("gradsurgery", "DEF")

_PCGRAD = "Tensor? order=None, Tensor({alias}!)? key=None, bool include_self=False, float scale=1.0"

SCHEMAS = (
    # K [T, T] or [G, T, T] float64: K_ij = <g_i, g_j>, accumulated in float64
    "gram(Tensor?[] grads, int tasks, bool stacked=False, int[]? groups=None) -> Tensor",
    # w [T] or [G, T] float64 from K
    f"pcgrad_weights(Tensor gram, {_PCGRAD.format(alias='a')}) -> Tensor",
    # (w [T], report [4]) float64 from K by a solver's name, with a leading [G] for K [G, T, T]; see csrc/weights/solver.h
    "solve(Tensor gram, str solver, float[] options, Tensor? given=None, Tensor(a!)? state=None, Tensor? order=None, "
    "Tensor(b!)? key=None) -> (Tensor, Tensor)",
    # sum_t w_t g_t, one tensor a position
    "combine(Tensor?[] grads, Tensor weights, bool stacked=False, int[]? groups=None) -> Tensor[]",
    "combine_(Tensor(a!)[] out, Tensor?[] grads, Tensor weights, bool stacked=False, bool accumulate=False, int[]? groups=None) "
    "-> ()",
    "coordinatewise_(Tensor(a!)[] out, Tensor?[] grads, int tasks, bool stacked, str rule, float[] options, "
    "Tensor? uniform=None, Tensor(b!)? key=None, bool accumulate=False) -> ()",
    # the three in one call -> (K, w)
    "pcgrad_(Tensor(a!)[] out, Tensor?[] grads, int tasks, bool stacked=False, "
    f"{_PCGRAD.format(alias='b')}, bool accumulate=False) -> (Tensor, Tensor)",
    # the four of every sample by itself
    "gram_samples(Tensor?[] grads, int tasks, bool stacked=False) -> Tensor",
    "combine_samples(Tensor?[] grads, Tensor weights, bool stacked=False) -> Tensor[]",
    "combine_samples_(Tensor(a!)[] out, Tensor?[] grads, Tensor weights, bool stacked=False, bool accumulate=False) -> ()",
    "pcgrad_samples_(Tensor(a!)[] out, Tensor?[] grads, int tasks, bool stacked=False, "
    f"{_PCGRAD.format(alias='b')}, bool accumulate=False) -> (Tensor, Tensor)",
    # y_t += rate (scales_t g_t - y_t) on the buffers, and K [T, T] of the new y, in one pass
    "ema_gram_(Tensor(a!)[] buffers, Tensor?[] grads, int tasks, bool stacked, Tensor scales, Tensor rate, Tensor? valid=None) "
    "-> Tensor",
    # r_t = sqrt(r_t^2 + g_t^2) on the buffers, and e [T] with e_t = sum g_t^2 / r_t, in one pass
    "excess_risk_(Tensor(a!)[] buffers, Tensor?[] grads, int tasks, bool stacked, Tensor? valid=None) -> Tensor",
    # split within a graph, run by capture/traced.py: P views for each of the tasks, and surgery on what comes back, one gradient
    # for every position that some task reaches. Compilers' caches on disk know them by name: another meaning takes another name.
    "boundary(Tensor(a)[] features, int number, str[] tasks, str[] paths) -> Tensor(a)[]",
    "boundary_backward(Tensor?[] grads, int number, str[] tasks, str[] paths) -> Tensor[]",
)

# No CUDA graph may hold what runs in Python each time.
_TAGS = {"boundary_backward": (torch.Tag.cudagraph_unsafe,)}

for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, *_TAGS.get(_schema.split("(")[0], ())))
