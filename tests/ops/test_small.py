"""The short way for small matrices gives the bits of the operator, and steps aside where it does not apply."""

from __future__ import annotations

import pytest
import torch
from ops.samples import maker
from tolerances import DTYPES
from torch import Tensor

from gradsurgery import ops
from gradsurgery.ops import small

LARGEST = small._LARGEST

pytestmark = pytest.mark.skipif(ops.native.pcgrad_small is None, reason="gradsurgery is installed without compiled code")
SHAPES = [(1, 1), (1, 40), (2, 7), (3, 1024), (4, 1025), (5, 60), (33, 8), (2, LARGEST // 2)]


def by_operator(G: Tensor, order: Tensor | None, key: Tensor | None, include_self: bool, scale: float) -> Tensor:
    out = torch.empty_like(G[0])
    ops.pcgrad_([out], [G], len(G), True, order, key, include_self, scale, False)
    return out


def run_small(
    out: Tensor, G: Tensor, order: Tensor | None, key: Tensor | None, include_self: bool = False, scale: float = 1.0
) -> bool:
    problem = ops.small_matrix(out, G)
    if problem is None:
        return False
    ops.pcgrad_small_(problem, out, order, key, include_self, scale)
    return True


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    T = shape[0]
    G = maker(dtype)(*shape)
    order = torch.stack([torch.randperm(T) for _ in range(T)])
    for kind in ("ascending", "given", "random"):
        for include_self, scale in ((False, 1.0), (True, 1 / T)):
            keys = [torch.tensor([11, 3]) if kind == "random" else None for _ in range(3)]
            chosen = order if kind == "given" else None
            expected = by_operator(G, chosen, keys[0], include_self, scale)
            out, target = torch.empty_like(G[0]), G.clone()
            assert run_small(out, G, chosen, keys[1], include_self, scale)
            assert torch.equal(out, expected)
            assert all(key is None or key.tolist() == [11, 4] for key in keys[:2])
            assert run_small(target[T - 1], target, chosen, keys[2], include_self, scale)
            assert torch.equal(target[T - 1], expected), "out may be one of the rows"
            assert torch.equal(target[: T - 1], G[: T - 1])


def test_a_bad_number_reaches_out_and_leaves_the_key() -> None:
    G, key, out = torch.tensor([[1.0, torch.inf], [1.0, 2.0]]), torch.tensor([1, 2]), torch.zeros(2)
    assert run_small(out, G, None, key)
    assert out.isnan().all()
    assert key.tolist() == [1, 2]


class Subclass(torch.Tensor):
    """Any subclass may mean something else by its memory."""


BUFFER = torch.zeros(12)
REFUSED = {
    "too large": lambda: (torch.empty(LARGEST // 2 + 1), torch.zeros(2, LARGEST // 2 + 1)),
    "another dtype": lambda: (torch.empty(4, dtype=torch.float64), torch.zeros(2, 4)),
    "strided gradients": lambda: (torch.empty(4), torch.zeros(4, 2).T),
    "strided out": lambda: (torch.empty(4, 2)[:, 0], torch.zeros(2, 4)),
    "subclass": lambda: (torch.empty(4), torch.zeros(2, 4).as_subclass(Subclass)),
    "subclass out": lambda: (torch.empty(4).as_subclass(Subclass), torch.zeros(2, 4)),
    "meta": lambda: (torch.empty(4, device="meta"), torch.zeros(2, 4, device="meta")),
    "no element": lambda: (torch.empty(0), torch.zeros(2, 0)),
    "no tensor": lambda: ([0.0] * 4, torch.zeros(2, 4)),
    "another length": lambda: (torch.empty(8), torch.zeros(2, 4)),
    "more dimensions": lambda: (torch.empty(2, 2), torch.zeros(2, 2, 2)),
    "integers": lambda: (torch.empty(4, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)),
    "sparse": lambda: (torch.empty(4), torch.zeros(2, 4).to_sparse()),
    "over a border between rows": lambda: (BUFFER[2:6], BUFFER.view(3, 4)),
    "very many tasks": lambda: (torch.empty(1), torch.zeros(65, 1)),
    "negated by a bit": lambda: (torch.empty(4), torch._neg_view(torch.zeros(2, 4))),
    "zeros without memory": lambda: (torch.empty(4), torch._efficientzerotensor(2, 4)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_it_steps_aside(why: str) -> None:
    out, G = REFUSED[why]()
    before = out._version if isinstance(out, Tensor) else None
    assert not run_small(out, G, None, None)
    assert before is None or out._version == before


# --- K -> w -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 2, 3, 8, 33, 64])
def test_the_same_bits_from_a_gram_matrix(T: int) -> None:
    G = maker(torch.float64)(T, T + 1)
    K = G @ G.T
    order = torch.stack([torch.randperm(T) for _ in range(T)])
    for chosen, key in ((None, None), (order, None), (None, torch.tensor([11, 3]))):
        for include_self, scale in ((False, 1.0), (True, 1 / T)):
            keys = [None if key is None else key.clone() for _ in range(2)]
            problem = ops.small_gram(K)
            assert problem is not None
            w = ops.weights_of_small_gram(problem, chosen, keys[0], include_self, scale)
            assert torch.equal(w, ops.pcgrad_weights(K, chosen, keys[1], include_self, scale))
            assert key is None or keys[0].tolist() == [11, 4]  # type: ignore[union-attr]


EYE = torch.eye(4, dtype=torch.float64)
GRAMS_REFUSED = {
    "another dtype": EYE.float(),
    "subclass": EYE.as_subclass(Subclass),
    "strided": torch.eye(8, dtype=torch.float64)[::2, ::2],
    "groups": EYE.expand(2, 4, 4).contiguous(),
    "not square": EYE[:2].clone(),
    "a vector": torch.ones(4, dtype=torch.float64),
    "no task": torch.zeros(0, 0, dtype=torch.float64),
    "sparse": EYE.to_sparse(),
    "meta": EYE.to("meta"),
    "very many tasks": torch.eye(65, dtype=torch.float64),
    "negated by a bit": torch._neg_view(EYE),
    "zeros without memory": torch._efficientzerotensor(4, 4, dtype=torch.float64),
    "no tensor": [[1.0]],
}


@pytest.mark.parametrize("why", GRAMS_REFUSED)
def test_it_steps_aside_for_a_gram_matrix(why: str) -> None:
    assert ops.small_gram(GRAMS_REFUSED[why]) is None
