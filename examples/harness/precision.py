"""Which device, and which arithmetic on it."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from harness.errors import RunError
from harness.processes import launched, local_rank

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; anything else is taken at its word.

    Of several processes each takes the GPU of its number on its machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if launched() and name.startswith("cuda:"):
        raise RunError(f"--device {name}: expected cuda or cpu with several processes, each of which takes a GPU of its own.")
    if launched() and name == "cuda":
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"--device {name}: not usable here ({reason}); try --device auto or --device cpu.") from error
    return device


def at_least_float32(value: Tensor) -> Tensor:
    """float32 where it is half as wide, as it is otherwise."""
    return value.float() if value.element_size() < 4 else value


class Precision:
    """Autocast and, for fp16, gradient scaling: `off`, `bf16` or `fp16`."""

    def __init__(self, amp: str, device: torch.device) -> None:
        self.dtype = AMP[amp]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)
