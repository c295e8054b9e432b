"""Which device, and which arithmetic on it."""

from contextlib import AbstractContextManager

import torch

from harness.errors import RunError

AMP = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; anything else is taken at its word."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"--device {name}: not usable here ({reason}); try --device auto or --device cpu.") from error
    return device


class Precision:
    """Autocast and, for fp16, gradient scaling: `off`, `bf16` or `fp16`."""

    def __init__(self, amp: str, device: torch.device) -> None:
        self.dtype = AMP[amp]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)
