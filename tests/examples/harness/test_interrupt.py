"""Signals as requests: the first is noted, the second acts, and what was ignored stays so."""

import os
import signal
from collections.abc import Iterator

import pytest
from harness.interrupt import Interrupt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process sends itself signals")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_is_noted_and_the_second_acts(number: signal.Signals) -> None:
    seen: list[int] = []
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, lambda got, _: seen.append(got))
    with Interrupt() as interrupt:
        assert interrupt.signal is None
        os.kill(os.getpid(), number)
        assert (interrupt.signal, seen) == (number, [])
        os.kill(os.getpid(), signal.SIGTERM)
        assert (interrupt.signal, seen) == (number, [signal.SIGTERM])
    os.kill(os.getpid(), number)
    assert seen == [signal.SIGTERM, number]


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.signal is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
