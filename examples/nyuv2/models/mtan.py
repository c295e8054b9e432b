"""SegNet-MTAN (Liu, Johns & Davison, End-To-End Multi-Task Learning With Attention, CVPR 2019)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nyuv2.models.encoder import Encoder
from nyuv2.models.heads import Head
from nyuv2.models.resize import resize

LEVELS = 5


def convolution(inputs: int, outputs: int, kernel: int = 3) -> nn.Sequential:
    """Convolution, batch normalization, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class EncoderBlock(nn.Module):
    """One level of SegNet on the way down: x -> u (its first convolution), p (its last)."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs)
        self.rest = nn.Sequential(*(convolution(outputs, outputs) for _ in range(depth - 1)))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        u = self.first(features)
        return u, self.rest(u)


class SegNetEncoder(Encoder):
    """VGG16's thirteen convolutions, from random weights -> u₀, p₀, u₁, p₁, … of levels of stride 1, 2, 4, 8, 16.

    Args:
        width: channels of the first level; the others have 2, 4, 8 and 8 times as many. The paper has 64.
    """

    def __init__(self, width: int) -> None:
        widths = [width * factor for factor in (1, 2, 4, 8, 8)]
        blocks = map(EncoderBlock, [3, *widths], widths, (2, 2, 3, 3, 3))
        super().__init__(blocks, widths, strides=(1, 2, 4, 8, 16))

    def forward(self, image: Tensor) -> list[Tensor]:
        maps, features = [], image
        for block in self.stages:
            u, p = block(features)
            maps += [u, p]
            features = F.max_pool2d(p, 2)
        return maps


class SegNetDecoder(nn.Module):
    """SegNet's way up: unpools to where the maxima were, and convolves (13 times again).

    The representation is a pytree of the 20 maps that MTAN's attention reads, {"u", "p": on the way down, finest first; "unpooled",
    "decoded": on the way up, coarsest first}.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.widths = encoder.channels
        self.blocks = nn.ModuleList()
        for level in reversed(range(LEVELS)):
            inputs, outputs = decoder_widths(self.widths, level)
            depth = 3 if level >= 2 else 2
            self.blocks.append(
                nn.Sequential(convolution(inputs, outputs), *(convolution(outputs, outputs) for _ in range(depth - 1)))
            )

    def forward(self, maps: list[Tensor]) -> dict[str, list[Tensor]]:
        down = {"u": maps[0::2], "p": maps[1::2]}
        features, unpooled, decoded = F.max_pool2d(down["p"][-1], 2), [], []
        for p, block in zip(reversed(down["p"]), self.blocks, strict=True):
            unpooled.append(unpool(features, p))
            features = block(unpooled[-1])
            decoded.append(features)
        return {**down, "unpooled": unpooled, "decoded": decoded}


def decoder_widths(widths: Sequence[int], level: int) -> tuple[int, int]:
    """Channels that a level of the decoder takes and gives: each level ends as wide as the next finer one."""
    return widths[level], widths[max(level - 1, 0)]


def unpool(features: Tensor, before: Tensor) -> Tensor:
    """`features` where 2x2 pooling of `before` found its maxima, 0 elsewhere: [B, C, h, w], [B, C, H, W] -> [B, C, H, W].

    As nn.MaxUnpool2d, which torch calls not reproducible; with windows apart, a scatter is.
    """
    places = F.max_pool2d(before, 2, return_indices=True)[1]
    empty = features.new_zeros(before.shape).flatten(2)
    return empty.scatter(2, places.flatten(2), features.flatten(2)).view(before.shape)


def attention(inputs: int, channels: int) -> nn.Sequential:
    """A soft mask in 0..1 from 1x1 convolutions g (ReLU) and h (sigmoid): [B, inputs, h, w] -> [B, channels, h, w]."""
    return nn.Sequential(
        *convolution(inputs, channels, 1), nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.Sigmoid()
    )


class AttentionHead(Head):
    """A task's attention network: down, â = f(a(u, â_before) · p) pooled; up, â = a(unpooled, f(â_before resized)) · decoded.

    a is `attention` over what it is given, joined; f is a 3x3 convolution. In the authors' code one f a level serves all
    tasks; here each task has its own (at width 64, 12 million parameters a task), for gradients of different tasks would meet in it
    past the representation, where no surgery takes place. Nor are their Xavier weights and corner-aligned resizing kept.
    """

    def __init__(self, task: str, classes: int, decoder: SegNetDecoder) -> None:
        super().__init__(task, classes)
        widths = decoder.widths
        self.masks_down = nn.ModuleList(attention(width * (1 if level == 0 else 2), width) for level, width in enumerate(widths))
        self.passed_down = nn.ModuleList(map(convolution, widths, [*widths[1:], widths[-1]]))
        up = [decoder_widths(widths, level) for level in reversed(range(LEVELS))]
        self.passed_up = nn.ModuleList(convolution(inputs, outputs) for inputs, outputs in up)
        self.masks_up = nn.ModuleList(attention(inputs + outputs, outputs) for inputs, outputs in up)
        last = nn.Conv2d(widths[0], self.outputs, 1)
        self.start(last)
        self.out = nn.Sequential(nn.Conv2d(widths[0], widths[0], 3, padding=1), last)

    def raw(self, features: dict[str, list[Tensor]]) -> Tensor:
        before: list[Tensor] = []
        for u, p, mask, passed in zip(features["u"], features["p"], self.masks_down, self.passed_down, strict=True):
            attended = mask(torch.cat([u, *before], 1)) * p
            before = [F.max_pool2d(passed(attended), 2)]
        attended = before[0]
        up = zip(features["unpooled"], features["decoded"], self.masks_up, self.passed_up, strict=True)
        for unpooled, decoded, mask, passed in up:
            own = passed(resize(attended, unpooled.shape[-2:]))
            attended = mask(torch.cat([unpooled, own], 1)) * decoded
        output: Tensor = self.out(attended)
        return output
