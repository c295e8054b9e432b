"""Writing text: byte by byte with the first head, or self-speculatively, where the other heads draft and the first one checks.

Blockwise parallel decoding (Stern, Shazeer & Uszkoreit 2018), as Gloeckle et al. use it: one pass over the text and a draft of the
bytes to come says, at every position, what each head makes of it. The draft is kept as far as the first head agrees; where it ends,
the first head has the byte after it, and the other heads have the next draft. So a pass yields 1 to n bytes, and the text is that
of the first head alone (but for two bytes as good as equally likely: products of other shapes round differently).
"""

from dataclasses import dataclass

import torch

from multitoken.model import MultiTokenModel


@dataclass(frozen=True)
class Written:
    """The bytes that follow the prompt, and how many passes of the model they took."""

    text: bytes
    passes: int

    @property
    def bytes_per_pass(self) -> float:
        return len(self.text) / self.passes


@torch.no_grad()
def write(model: MultiTokenModel, prompt: bytes, count: int, *, speculative: bool) -> Written:
    """The `count` ≥ 1 most likely bytes after `prompt`, each given those before it (greedy).

    The model sees the text from `window_start` on, so never more than the context it was trained with. An empty prompt is a line
    break.
    """
    model.eval()
    device = model.trunk.position.device
    text = list(prompt or b"\n")
    given, draft, passes = len(text), list[int](), 0
    heads = list(model.heads.values()) if speculative else [model.heads["next1"]]
    while len(text) < given + count:
        start = window_start(len(text), len(model.trunk.position))
        # Draft no further than is wanted, nor to where the window moves on: both ways to write then see the same text.
        room = given + count - len(text) - 1
        while room and window_start(len(text) + room, len(model.trunk.position)) != start:
            room -= 1
        draft = draft[:room]
        read = torch.tensor([text[start:] + draft], device=device)
        features = model.trunk(read)
        guesses = torch.stack([head(features)[0, len(text) - start - 1 :].argmax(-1) for head in heads]).tolist()  # [n][1 + draft]
        passes += 1
        agreed = 0
        while agreed < len(draft) and draft[agreed] == guesses[0][agreed]:
            agreed += 1
        text += [*draft[:agreed], guesses[0][agreed]]
        draft = [guess[agreed] for guess in guesses[1:]]
    return Written(bytes(text[given:]), passes)


def window_start(length: int, context: int) -> int:
    """Where the window lies that predicts the byte after `length` ≥ 1 bytes: it moves on by half a context at a time."""
    half = max(1, context // 2)
    return max(0, -(-(length - context) // half) * half)
