"""What the pictures of predictions say about depth."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from nyuv2.data import NYUv2Dataset
from nyuv2.data.rooms import GeneratedRooms
from nyuv2.data.sample import INDOORS, DataInfo, DepthScale
from nyuv2.pictures import plot_predictions
from torch import Tensor, nn


class _Constant(nn.Module):
    """Predicts one depth for every pixel."""

    def __init__(self, depth: float) -> None:
        super().__init__()
        self.depth = nn.Parameter(torch.tensor(depth))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"depth": self.depth.detach().expand(len(image), 1, *image.shape[-2:])}


@pytest.mark.parametrize(
    ("scale", "label"),
    [
        (INDOORS, "depth [m]"),
        (DepthScale("px", 256.0, 20.0, inverse=True), "inverse depth [px]"),
        (DepthScale("", 1.0, 0.1, inverse=True), "inverse depth"),
    ],
)
@pytest.mark.parametrize(("depth", "extend"), [(0.5, "neither"), (1000.0, "max")])
def test_the_color_bar_says_what_depth_is_and_when_a_prediction_exceeds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: DepthScale, label: str, depth: float, extend: str
) -> None:
    rooms = GeneratedRooms(split="val", size=(32, 32), classes=13, seed=0, count=2)
    rooms.info = DataInfo("rooms", rooms.info.classes, rooms.info.tasks, scale)
    data = NYUv2Dataset(rooms, size=(32, 32), augment=False, seed=0, count=None, keep=True)
    bars: list[tuple[str, str]] = []
    original = Figure.colorbar

    def watched(figure: Figure, *arguments: object, label: str, extend: str, **options: object) -> object:
        bars.append((label, extend))
        return original(figure, *arguments, label=label, extend=extend, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "colorbar", watched)
    tasks: Sequence[str] = ("depth",)
    plot_predictions(data, _Constant(depth), tasks, tmp_path / "predictions.png")
    assert bars == [(label, extend)]
