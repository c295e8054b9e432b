"""HydraNet: shapes, where gradients flow, what freezing means."""

import pytest
import torch
from nyuv2.models.builder import DenseModel, build_model
from torch import Tensor

import gradsurgery as gs

TASKS = ("segmentation", "depth", "normal")


@pytest.fixture(scope="module")
def network() -> DenseModel:
    torch.manual_seed(0)
    return build_model(TASKS, classes=13, channels=16)


@pytest.mark.parametrize("size", [(64, 96), (57, 75), (120, 160)])
def test_predictions_have_the_size_of_the_image(network: DenseModel, size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    network.eval()
    with torch.no_grad():
        features = network.trunk(image)
        prediction = network(image)
    assert features.shape == (2, 16, -(-size[0] // 4), -(-size[1] // 4))
    assert {task: tuple(value.shape) for task, value in prediction.items()} == {
        "segmentation": (2, 13, *size),
        "depth": (2, 1, *size),
        "normal": (2, 3, *size),
    }
    assert (prediction["depth"] > 0).all()
    torch.testing.assert_close(prediction["normal"].norm(dim=1), torch.ones(2, *size))


def test_images_are_normalized_with_imagenet_statistics(network: DenseModel) -> None:
    seen: list[Tensor] = []
    handle = network.trunk.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    gray = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    network.trunk(gray + torch.tensor([0.229, 0.0, -0.225]).view(1, 3, 1, 1))
    handle.remove()
    torch.testing.assert_close(seen[0].mean((2, 3)), torch.tensor([[1.0, 0.0, -1.0]]))
    assert {"trunk.mean", "trunk.std"} <= set(network.state_dict())


def test_each_head_reaches_the_trunk_and_no_other_head(network: DenseModel) -> None:
    network.train()
    image = torch.rand(2, 3, 64, 64)
    for task in TASKS:
        network.zero_grad(set_to_none=True)
        (network(image)[task] ** 2 * torch.rand(2, 1, 64, 64)).mean().backward()
        assert all(parameter.grad is not None for parameter in network.trunk.parameters())
        for other, head in network.heads.items():
            assert all((parameter.grad is not None) == (other == task) for parameter in head.parameters())


def test_the_representation_survives_surgery_in_both_forms(network: DenseModel) -> None:
    """The heads change nothing in place: views of the representation stay equal to it, and both forms agree."""
    network.eval()
    image = torch.rand(1, 3, 64, 64)
    gradients = []
    for form in ("split", "detach"):
        network.zero_grad(set_to_none=True)
        surgery = gs.GradientAggregator("pcgrad", tasks=TASKS, order="ascending")
        features = network.trunk(image)
        before = features.detach().clone()
        if form == "split":
            views = surgery.split(features)
            heads = zip(network.heads.values(), views, strict=True)
            torch.stack([head(view, (64, 64)).square().mean() for head, view in heads]).sum().backward()
        else:
            detached = surgery.detach(features)
            for task, head in network.heads.items():
                with surgery.task(task):
                    head(detached, (64, 64)).square().mean().backward()
            surgery.backward()
        assert torch.equal(features.detach(), before)
        gradients.append([parameter.grad.clone() for parameter in network.trunk.parameters() if parameter.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_frozen_encoder_keeps_weights_and_statistics_while_the_decoder_trains() -> None:
    torch.manual_seed(0)
    network = build_model(("depth",), classes=13, channels=8)
    network.trunk.freeze(6)
    network.train()
    encoder = {name: value.clone() for name, value in network.trunk.encoder.state_dict().items()}
    decoder = {name: value.clone() for name, value in network.trunk.decoder.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    features = network.trunk(torch.rand(2, 3, 64, 64))
    assert features.requires_grad
    network.heads["depth"](features, (64, 64)).mean().backward()
    optimizer.step()
    assert all(torch.equal(encoder[name], value) for name, value in network.trunk.encoder.state_dict().items())
    assert not any(torch.equal(decoder[name], value) for name, value in network.trunk.decoder.state_dict().items())

    network.trunk.freeze(0)
    network.train()
    network.trunk(torch.rand(2, 3, 64, 64)).mean().backward()
    assert all(parameter.grad is not None for parameter in network.trunk.encoder.parameters())
    assert any(not torch.equal(encoder[name], value) for name, value in network.trunk.encoder.state_dict().items())


def test_unknown_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found 'edges'"):
        build_model(("depth", "edges"), classes=13)
