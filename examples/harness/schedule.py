"""When to change the learning rate and when to stop."""

import math
from collections.abc import Callable

SCHEDULES = ("cosine", "step", "constant")


def learning_rate_factor(schedule: str, total_steps: int, warmup_steps: int) -> Callable[[int], float]:
    """The factor on every learning rate as a function of the step, for `torch.optim.lr_scheduler.LambdaLR`.

    A linear warm-up of `warmup_steps`, then: cosine, ½(1 + cos πt) for progress t in 0..1; step, ×0.1 at t = 0.6 and again at
    t = 0.85; constant, 1.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {SCHEDULES}, found {schedule!r}")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        if schedule == "step":
            return 0.1 ** ((progress >= 0.6) + (progress >= 0.85))
        return 1.0

    return factor


class EarlyStopping:
    """Says stop after `patience` epochs in a row without a better score (higher is better); patience 0 never stops."""

    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.best_epoch, self.waited = patience, -math.inf, -1, 0

    def update(self, epoch: int, score: float) -> bool:
        """Take an epoch's score and return whether it is the best so far; a score that is NaN never is."""
        improved = score > self.best
        if improved:
            self.best, self.best_epoch, self.waited = score, epoch, 0
        else:
            self.waited += 1
        return improved

    @property
    def stop(self) -> bool:
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best, self.best_epoch, self.waited = state["best"], int(state["best_epoch"]), int(state["waited"])
