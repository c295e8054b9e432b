"""What a trainer supplies to the training loop."""

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset

from gradsurgery.balancers.uncertainty import Kind


class Problem(Protocol):
    """A model with one trunk and a head for each task, its data, losses and metrics; batches are what the data sets collate to."""

    tasks: tuple[str, ...]
    kinds: tuple[Kind, ...]  # one a task
    loss_units: dict[str, str]  # task -> what its loss measures, for axis labels
    metric_names: tuple[str, ...]  # every name that evaluate may return
    headline: tuple[str, ...]  # the few of them worth a line of the terminal after each epoch

    @property
    def model(self) -> nn.Module:
        """Trunk and heads."""
        ...

    @property
    def train_data(self) -> Dataset[Any]:
        """A data set with a length; what it yields is a function of (epoch, index)."""
        ...

    @property
    def val_data(self) -> Dataset[Any]:
        """The data set that `evaluate` sees, in order."""
        ...

    def parameter_groups(self, lr: float, head_lr: float) -> list[dict[str, Any]]:
        """The model's parameters as optimizer groups."""
        ...

    def start_epoch(self, epoch: int) -> None:
        """Prepare data and model (in training mode) for `epoch`; depends on `epoch` alone, as a resumed run calls it again."""
        ...

    def represent(self, batch: Any) -> Any:
        """The trunk's output, where the tasks' gradients meet: a tensor or a pytree of tensors."""
        ...

    def loss(self, task: str, features: Any, batch: Any) -> Tensor | None:
        """The head of `task` on the representation and its scalar loss, or None when the batch holds no target for it."""
        ...

    def evaluate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Metrics over the batches (model in eval mode, gradients off). A metric without any valid target is left out."""
        ...

    def score(self, metrics: dict[str, float]) -> float:
        """One number, higher is better: what picks the best checkpoint and stops early."""
        ...
