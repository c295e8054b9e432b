"""What goes wrong, by the name it has on docs/failure_modes.md: each function does it, and raises or warns what the page says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint

import gradsurgery as gs

TASKS = ("seg", "depth")
FAILURES: dict[str, Callable[[], object]] = {}


def failure(does: Callable[[], object]) -> Callable[[], object]:
    FAILURES[does.__name__] = does
    return does


class Net(nn.Module):
    """A trunk and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.seg, self.depth = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 1)

    def losses(self, z: Tensor) -> dict[str, Tensor]:
        return {"seg": self.seg(z).square().mean(), "depth": -self.depth(z).mean()}


def step(surgery: gs.GradientAggregator | None = None, count: int = 5) -> tuple[Net, gs.GradientAggregator, Tensor]:
    """A network, an aggregator and the trunk's output for a batch."""
    net = Net()
    return net, surgery or gs.GradientAggregator("pcgrad", tasks=TASKS), net.trunk(torch.randn(count, 6))


# --- the order of a step ----------------------------------------------------------------------------------------------------


@failure
def one_by_one() -> None:
    net, surgery, z = step()
    z_seg, z_depth = surgery.split(z)
    net.losses(z_seg)["seg"].backward(retain_graph=True)
    net.losses(z_depth)["depth"].backward()


@failure
def summed_at_detach() -> None:
    net, surgery, z = step()
    sum(net.losses(surgery.detach(z)).values()).backward()  # type: ignore[union-attr]
    surgery.backward()


@failure
def forgotten_backward() -> None:
    net, surgery, z = step()
    net.losses(surgery.detach(z))["seg"].backward()
    surgery.detach(net.trunk(torch.randn(5, 6)))


@failure
def second_backward() -> None:
    net, surgery, z = step()
    for loss in net.losses(surgery.detach(z)).values():
        loss.backward()
    surgery.backward()
    surgery.backward()


@failure
def no_head() -> None:
    net, surgery, z = step()
    surgery.detach(z)
    for loss in net.losses(z.detach()).values():
        loss.backward()
    surgery.backward()


@failure
def graph_is_gone() -> None:
    net, surgery, z = step()
    losses = net.losses(z)
    surgery.backward(losses)
    surgery.backward(losses)


@failure
def second_total() -> None:
    net, surgery, z = step()
    total = surgery.total(net.losses(z))
    total.backward()
    total.backward()


@failure
def differentiated() -> None:
    net, surgery, z = step()
    z_seg, z_depth = surgery.split(z)
    loss = net.losses(z_seg)["seg"] + net.losses(z_depth)["depth"]
    torch.autograd.grad(loss, list(net.trunk.parameters()), create_graph=True)


# --- losses and tasks -------------------------------------------------------------------------------------------------------


@failure
def all_absent() -> None:
    _, surgery, _ = step()
    surgery.backward({"seg": None, "depth": None})


@failure
def fewer_views() -> None:
    _, surgery, z = step()
    surgery.split(z, 1)


@failure
def one_task_alone() -> None:
    net, surgery, z = step()
    surgery.backward({"seg": net.losses(z)["seg"], "depth": None})
    surgery.statistics().norms  # noqa: B018


@failure
def the_sum() -> None:
    net, surgery, z = step()
    surgery.backward(sum(net.losses(z).values()))  # type: ignore[arg-type]


@failure
def one_loss_twice() -> None:
    net, surgery, z = step()
    loss = net.losses(z)["seg"]
    surgery.backward({"seg": loss, "depth": loss})


@failure
def not_reduced() -> None:
    net, surgery, z = step()
    surgery.backward({"seg": net.seg(z).square(), "depth": net.losses(z)["depth"]})


@failure
def loss_without_graph() -> None:
    net, surgery, z = step()
    losses = net.losses(z)
    surgery.backward({"seg": losses["seg"].detach(), "depth": losses["depth"]})


@failure
def losses_not_told() -> None:
    net, surgery, z = step(gs.GradientAggregator("dbmtl", tasks=TASKS))
    z_seg, z_depth = surgery.split(z)
    (net.losses(z_seg)["seg"] + net.losses(z_depth)["depth"]).backward()


@failure
def too_few_tasks() -> None:
    net, surgery, z = step(gs.GradientAggregator("krum", tasks=TASKS))
    surgery.backward(net.losses(z))


# --- parameters -------------------------------------------------------------------------------------------------------------


@failure
def frozen_trunk() -> None:
    net, surgery, _ = step()
    net.trunk.requires_grad_(False)
    surgery.split(net.trunk(torch.randn(5, 6)))


@failure
def nothing_shared() -> None:
    net, surgery, z = step()
    surgery.backward(net.losses(z.detach()))


@failure
def another_trunk() -> None:
    net, surgery, z = step()
    surgery.backward(net.losses(z), shared=nn.Linear(6, 8))


@failure
def reentrant() -> None:
    net, surgery, _ = step()
    x = torch.randn(5, 6, requires_grad=True)
    surgery.backward(net.losses(checkpoint(net.trunk, x, use_reentrant=True)))


@failure
def compiled_once() -> None:
    net, surgery, _ = step()
    trunk = torch.compile(net.trunk, backend="aot_eager")
    surgery.backward(net.losses(trunk(torch.randn(5, 6))))


@failure
def lbfgs() -> None:
    gs.PCGrad(torch.optim.LBFGS(Net().parameters()))


# --- memory -----------------------------------------------------------------------------------------------------------------


@failure
def another_batch_size() -> None:
    surgery = gs.GradientAggregator("dbmtl", tasks=TASKS)
    for count in (5, 3):
        net, _, z = step(surgery, count)
        z_seg, z_depth = surgery.split(z)
        losses = surgery.observe({"seg": net.seg(z_seg).square().mean(), "depth": net.depth(z_depth).square().mean()})
        sum(losses.values()).backward()


@failure
def another_method() -> None:
    gs.GradientAggregator("cagrad", tasks=TASKS).load_state_dict(gs.GradientAggregator("pcgrad", tasks=TASKS).state_dict())


@failure
def other_tasks() -> None:
    gs.GradientAggregator("pcgrad", tasks=("depth", "seg")).load_state_dict(
        gs.GradientAggregator("pcgrad", tasks=TASKS).state_dict()
    )


@failure
def scaler_after_detach() -> None:
    net, surgery, z = step()
    for loss in net.losses(surgery.detach(z)).values():
        loss.backward()
    surgery.backward(scaler=torch.amp.GradScaler("cpu"))


@failure
def every_in_a_graph() -> None:
    surgery = gs.GradientAggregator("pcgrad", every=10)
    with mock.patch("torch.cuda.is_current_stream_capturing", return_value=True):  # which needs no GPU to be asked
        surgery._reuse.take(("gradients", (True, True), ()), torch.device("cuda"))


# --- several processes ------------------------------------------------------------------------------------------------------


@contextmanager
def several_processes() -> Iterator[None]:
    """A job of two, of which this is one; nothing is sent."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


@failure
def alone_on_parameters() -> None:
    net, surgery, z = step()
    with several_processes():
        surgery.backward(net.losses(z))


@failure
def alone_on_features() -> None:
    net, surgery, z = step()
    with several_processes(), warnings.catch_warnings():
        warnings.simplefilter("error")
        z_seg, z_depth = surgery.split(z)
        (net.losses(z_seg)["seg"] + net.losses(z_depth)["depth"]).backward()
