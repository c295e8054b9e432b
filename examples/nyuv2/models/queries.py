"""One transformer decoder a task: learned queries look at the shared pyramid, and every pixel picks among their answers."""

import math

import torch
from torch import Tensor, nn

from nyuv2.models.heads import Head
from nyuv2.models.pyramid import Pyramid

FREQUENCIES = 4  # of each coordinate; the fastest wave has 4 periods over the image


class QueryHead(Head):
    """y(x) = Σ_q softmax_q(⟨m_q, f(x)⟩ / √C) · v_q, of queries q that a transformer decoder has updated from the image.

    After DETR (Carion et al., ECCV 2020) and MaskFormer (Cheng, Schwing & Kirillov, NeurIPS 2021): queries cross-attend to every
    scale but the finest; each then has a mask embedding m_q [C], compared with the pixel features f(x) [C] of the finest scale,
    and a value v_q [outputs]. MaskFormer's sum over class distributions × masks is made fit for every dense task: v_q are class
    logits, a depth before softplus, or a direction, and masks compete by softmax where MaskFormer's overlap by sigmoid, so that
    an answer stays among the queries' values. There is no matching of queries to segments: the loss is the task's own, by pixel.

    Args:
        queries: how many answers a pixel can choose from.
        layers: of the decoder.
    """

    def __init__(self, task: str, classes: int, pyramid: Pyramid, *, queries: int = 32, layers: int = 2) -> None:
        super().__init__(task, classes)
        channels = pyramid.channels
        self.finest, *self.coarser = pyramid.sources
        self.queries = nn.Parameter(torch.randn(queries, channels))
        # A layer for each scale: its bias tells the scales apart.
        self.positions = nn.ModuleDict({level: nn.Linear(4 * FREQUENCIES, channels) for level in self.coarser})
        self.norm = nn.LayerNorm(channels)
        layer = nn.TransformerDecoderLayer(
            channels, math.gcd(channels, 8), 4 * channels, dropout=0.0, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(channels))
        for parameter in self.decoder.parameters():  # its layers are copies of one another until now
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.masks = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.pixels = nn.Conv2d(channels, channels, 1)
        self.values = nn.Linear(channels, self.outputs)
        self.start(self.values)

    def raw(self, features: dict[str, Tensor]) -> Tensor:
        memory = torch.cat([self.tokens(features[level], level) for level in self.coarser], 1)  # [B, N, C]
        queries = self.decoder(self.queries.expand(len(memory), -1, -1), memory)  # [B, Q, C]
        pixels = self.pixels(features[self.finest])  # [B, C, h, w]
        masks = torch.einsum("bqc,bchw->bqhw", self.masks(queries), pixels) / math.sqrt(pixels.shape[1])
        return torch.einsum("bqhw,bqk->bkhw", masks.softmax(1), self.values(queries))

    def tokens(self, scale: Tensor, level: str) -> Tensor:
        """A map as a sequence that knows where it is. [B, C, h, w] -> [B, h·w, C]"""
        waves = position_waves(scale.shape[-2], scale.shape[-1], scale.device)
        return self.norm(scale.flatten(2).transpose(1, 2)) + self.positions[level](waves)  # type: ignore[no-any-return]


def position_waves(height: int, width: int, device: torch.device) -> Tensor:
    """sin and cos(2π · 2^k · c), k = -1…2, of a pixel's c = row and column as shares of the map. [height·width, 16]"""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    place = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)  # [h·w, 2]
    phase = torch.pi * place[..., None] * 2.0 ** torch.arange(FREQUENCIES, device=device)  # [h·w, 2, 4]
    return torch.cat([phase.sin(), phase.cos()], -1).flatten(1)
