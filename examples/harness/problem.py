"""What a trainer supplies to the training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from gradsurgery.balancers.uncertainty import Kind
from harness.metric import Metric
from harness.model import MultiTaskModel

Series = Mapping[str, Mapping[int, float]]  # column of log.csv -> step -> value


class Problem(Protocol):
    """A model with one trunk and a head for each task, its data, losses and metrics; batches are what the data sets collate to."""

    name: str  # of the data, for titles
    tasks: tuple[str, ...]
    kinds: tuple[Kind, ...]  # one a task
    loss_units: dict[str, str]  # task -> what its loss measures, for axis labels
    metrics: tuple[Metric, ...]  # all that evaluate may return
    floors: dict[str, float]  # metric -> what the best answer that looks at no input reaches
    collate: Callable[[list[Any]], Any] | None  # samples -> batch; None: torch's own way

    @property
    def model(self) -> MultiTaskModel:
        """What is trained."""
        ...

    @property
    def train_data(self) -> Dataset[Any]:
        """A data set with a length; what it yields is a function of (epoch, index)."""
        ...

    @property
    def val_data(self) -> Dataset[Any]:
        """The data set that `evaluate` sees, in order."""
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

    def describe(self) -> str:
        """The data in words, to stand before a comma: "96 training and 16 validation images at 120×160"."""
        ...

    def describe_floor(self) -> str:
        """The floor's answer in words: "the class 'wall', a depth of 2.51 m (the median)"."""
        ...

    def draw(self, folder: Path) -> None:
        """Pictures of the model at work: predictions.png, and what else shows it."""
        ...

    def notes(self, log: Series) -> Sequence[tuple[str, Sequence[str]]]:
        """Further sections for note.md as (title, sentences)."""
        ...
