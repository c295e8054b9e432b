"""SIGTERM, SIGHUP and Ctrl-C as a request that a loop answers at its next step boundary."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While the block runs, the first of SIGTERM, SIGINT and SIGHUP only sets `signal`; a second one acts as usual.

    SIGHUP (the terminal was closed) stays ignored where it is, as under nohup.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        numbers: list[int] = [signal.SIGTERM, signal.SIGINT]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._request)
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()
