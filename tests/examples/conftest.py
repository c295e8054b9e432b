"""What is asked of every trainer alike."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.resume_point import load_state


@pytest.fixture
def resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """resumes(train, Problem, options, call=6, step=6): a run that gets SIGTERM ends with the bytes of one that does not.

    `train(out, *options)` is the trainer's main; the signal comes in the call-th pass of the trunk, validation's among them, and
    the checkpoint has to be that of the step in which it came.
    """

    def check(
        train: Callable[..., int], problem: Any, options: Sequence[str], *, call: int, step: int, files: Sequence[str] = ()
    ) -> None:
        assert train(tmp_path / "whole", *options) == 0
        represent, calls = problem.represent, 0

        def stopping(self: Any, batch: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                signal.raise_signal(signal.SIGTERM)
            return represent(self, batch)

        with monkeypatch.context() as patched:
            patched.setattr(problem, "represent", stopping)
            assert train(tmp_path / "parts", *options) == 128 + signal.SIGTERM
        assert load_state(tmp_path / "parts/checkpoints/last")["step"] == step
        assert train(tmp_path / "parts", "--resume") == 0
        for name in ("log.csv", "metrics.json", *files):
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
        states = [load_state(tmp_path / run / "checkpoints/last")["model"] for run in ("whole", "parts")]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    return check
