"""Every backbone with every decoder: shapes and ranges, where gradients flow, what freezing means, what does not fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from harness.errors import RunError
from nyuv2.models import builder
from nyuv2.models.builder import BACKBONES, DenseModel, build_model
from nyuv2.models.mtan import unpool
from nyuv2.models.vit import PatchEmbedding, ViTEncoder
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, max_unpool2d
from torch.utils._pytree import tree_leaves
from torchvision.models import ResNet, SwinTransformer, VisionTransformer
from torchvision.models.resnet import Bottleneck

import gradsurgery as gs

TASKS = ("segmentation", "depth", "normal")


def tiny_resnet(**_: Any) -> ResNet:
    return ResNet(Bottleneck, [1, 1, 1, 1], width_per_group=4)


def tiny_swin(**_: Any) -> SwinTransformer:
    return SwinTransformer([4, 4], 8, [2, 1, 1, 1], [1, 1, 2, 2], [7, 7])


def tiny_vit(**_: Any) -> VisionTransformer:
    return VisionTransformer(image_size=64, patch_size=16, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32)


TINY: dict[str, Callable[..., nn.Module]] = {"resnet50": tiny_resnet, "swin_t": tiny_swin, "vit_b_16": tiny_vit}
COMBINATIONS = [(backbone, decoder) for backbone in BACKBONES for decoder in ("refinenet", "fpn", "queries")]
COMBINATIONS.append(("segnet", "mtan"))


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, network in TINY.items():
        monkeypatch.setitem(builder.BACKBONES, name, replace(BACKBONES[name], network=network))


def _model(backbone: str, decoder: str | None, **options: Any) -> DenseModel:
    options = {"classes": 5, "channels": 4 if backbone == "segnet" else 8, **options}
    return build_model(TASKS, backbone=backbone, decoder=decoder, **options)


@pytest.mark.parametrize("size", [(32, 32), (57, 75), (33, 130)])
@pytest.mark.parametrize(("backbone", "decoder"), COMBINATIONS)
def test_predictions_have_the_size_of_the_image_and_lie_in_range(backbone: str, decoder: str, size: tuple[int, int]) -> None:
    model = _model(backbone, decoder).eval()
    with torch.no_grad():
        prediction = model(torch.rand(2, 3, *size))
    shapes = {"segmentation": (2, 5, *size), "depth": (2, 1, *size), "normal": (2, 3, *size)}
    assert {task: tuple(value.shape) for task, value in prediction.items()} == shapes
    assert all(value.isfinite().all() for value in prediction.values())
    assert (prediction["depth"] > 0).all()
    torch.testing.assert_close(prediction["normal"].norm(dim=1), torch.ones(2, *size))


@pytest.mark.parametrize("size", [(32, 48), (61, 35)])
@pytest.mark.parametrize(("backbone", "decoder"), COMBINATIONS)
def test_each_task_reaches_the_whole_representation_trunk_and_its_own_head(
    backbone: str, decoder: str, size: tuple[int, int]
) -> None:
    """Through surgery: every leaf of the representation, every parameter of the trunk and of the task's head, no other head."""
    model = _model(backbone, decoder).train()
    image = torch.rand(2, 3, *size)
    for task in TASKS:
        model.zero_grad(set_to_none=True)
        features = model.trunk(image)
        leaves = tree_leaves(features)
        for leaf in leaves:
            leaf.retain_grad()
        surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, order="ascending")
        views = dict(zip(TASKS, surgery.split(features), strict=True))
        output = model.heads[task](views[task], size)
        (output * torch.randn_like(output)).mean().backward()
        assert all(leaf.grad is not None and leaf.grad.abs().max() > 0 for leaf in leaves)
        assert [name for name, value in model.trunk.named_parameters() if value.grad is None] == []
        for other, head in model.heads.items():
            assert all((value.grad is not None) == (other == task) for value in head.parameters())
    assert len(leaves) == {"refinenet": 1, "fpn": 4, "queries": 4, "mtan": 20}[decoder]


@pytest.mark.parametrize("backbone", [*BACKBONES, "segnet"])
def test_frozen_stages_keep_weights_and_statistics_while_the_rest_trains(backbone: str) -> None:
    model = _model(backbone, None, freeze_stages=2)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    surgery = gs.GradientAggregator("mean", tasks=TASKS)
    views = zip(model.heads.values(), surgery.split(model.trunk(torch.rand(2, 3, 64, 64))), strict=True)
    loss = sum(((head(view, (64, 64)) - 0.3) ** 2 * torch.rand(64, 64)).mean() for head, view in views)
    assert isinstance(loss, Tensor)
    loss.backward()
    optimizer.step()
    after = model.state_dict()
    frozen = tuple(f"trunk.encoder.stages.{index}." for index in range(2))
    assert all(torch.equal(before[name], after[name]) for name in after if name.startswith(frozen))
    trained = {name for name, value in model.named_parameters() if not name.startswith(frozen)}
    assert all(value.requires_grad == (name in trained) for name, value in model.named_parameters())
    # Weight decay and a step of 0.1 move whatever has a gradient; a bias of 0 may have one of 0 before batch normalization.
    assert all(not torch.equal(before[name], after[name]) for name in trained if after[name].dim() > 1)
    statistics = {name for name in after if name.endswith("num_batches_tracked") and not name.startswith(frozen)}
    assert all(after[name] == before[name] + 1 for name in statistics)
    model.trunk.freeze(0)
    assert all(value.requires_grad for value in model.parameters())
    assert all(module.training for module in model.modules())


def test_a_vit_keeps_the_positions_of_its_own_grid_and_interpolates_others() -> None:
    """On its own grid the stages are torchvision's encoder; on another, a position that is linear in the row stays so inside."""
    network = tiny_vit().eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        tokens = network._process_input(image)
        expected = network.encoder(torch.cat([network.class_token.expand(2, -1, -1), tokens], 1))
        found = image
        for stage in ViTEncoder(network).eval().stages:
            found = stage(found)
    torch.testing.assert_close(found, expected)

    embedding = PatchEmbedding(tiny_vit())
    row = torch.arange(4.0).view(4, 1).expand(4, 4).reshape(16, 1)
    embedding.position.data = torch.cat([torch.full((1, 1), 9.0), row])[None].expand(1, 17, 16).clone()
    positions = embedding.positions((8, 5))[0, :, 0]
    assert positions[0] == 9  # the class token's
    # A row's center is (r + ½) / 8 of the height, hence row (r + ½) / 2 − ½ of 4; clamped at the border.
    wanted = ((torch.arange(8.0) + 0.5) / 2 - 0.5).clamp(0, 3)
    torch.testing.assert_close(positions[1:].view(8, 5), wanted.view(8, 1).expand(8, 5))


def test_unpooling_is_that_of_torch_also_at_odd_sizes() -> None:
    before, features = torch.randn(2, 3, 7, 10), torch.randn(2, 3, 3, 5)
    _, places = max_pool2d(before, 2, return_indices=True)
    assert torch.equal(unpool(features, before), max_unpool2d(features, places, 2, output_size=(7, 10)))


def test_attention_masks_open_and_closed_pass_the_shared_features_or_nothing() -> None:
    """Masks of 1 make MTAN's answer that of the shared SegNet's last map; masks of 0 make it a constant."""
    model = _model("segnet", None).eval()
    head: Any = model.heads["segmentation"]
    features = model.trunk(torch.rand(1, 3, 32, 32))
    for mask in [*head.masks_down, *head.masks_up]:
        mask[-2].weight.data.zero_()
        mask[-2].bias.data.fill_(100.0)
    torch.testing.assert_close(head.raw(features), head.out(features["decoded"][-1]))
    head.masks_up[-1][-2].bias.data.fill_(-200.0)
    torch.testing.assert_close(head.raw(features), head.out(torch.zeros_like(features["decoded"][-1])))


def test_queries_answers_stay_among_their_values() -> None:
    """With one value for all queries every pixel answers it, whatever the masks say."""
    model = _model("resnet50", "queries").eval()
    head: Any = model.heads["normal"]
    head.values.weight.data.zero_()
    head.values.bias.data = torch.tensor([1.0, -2.0, 3.0])
    raw = head.raw(model.trunk(torch.rand(2, 3, 40, 40)))
    torch.testing.assert_close(raw, torch.tensor([1.0, -2, 3]).view(1, 3, 1, 1).expand_as(raw))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_missing_pretrained_weights_say_where_to_put_them(monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    def offline(**options: Any) -> None:
        assert options["weights"] is BACKBONES[backbone].weights
        raise URLError("no network")

    monkeypatch.setitem(builder.BACKBONES, backbone, replace(BACKBONES[backbone], network=offline))
    name = backbone.replace("mobilenetv2", "mobilenet_v2")
    with pytest.raises(RunError, match=rf"--pretrained: could not download https://.*{name}.*no network.*checkpoints"):
        _model(backbone, None, pretrained=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "segnet", "decoder": "fpn"}, "--backbone segnet --decoder fpn: segnet and mtan go together"),
        ({"backbone": "resnet50", "decoder": "mtan"}, "--backbone resnet50 --decoder mtan: segnet and mtan go together"),
        ({"backbone": "segnet", "decoder": None, "pretrained": True}, "no weights for --backbone segnet"),
        ({"backbone": "resnet50", "decoder": None, "freeze_stages": 5}, "--freeze-stages 5: resnet50 has 4 stages"),
    ],
)
def test_choices_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        _model(**options)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet50", "swin_t", "vit_b_16"])
def test_the_networks_of_torchvision_have_the_channels_that_are_expected(monkeypatch: pytest.MonkeyPatch, backbone: str) -> None:
    monkeypatch.undo()
    model = build_model(("depth",), classes=13, backbone=backbone, channels=8).eval()
    with torch.no_grad():
        maps = model.trunk.encoder(torch.rand(1, 3, 45, 64))
        assert model(torch.rand(1, 3, 45, 64))["depth"].shape == (1, 1, 45, 64)
    assert tuple(features.shape[1] for features in maps) == model.trunk.encoder.channels
