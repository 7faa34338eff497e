"""A node obeys SIGTERM and SIGINT from its first moment on, each in its way once it serves."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from node.stop_signals import StopSignals

DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of the tests themselves come back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(wakeup)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_does_not_serve_ends_although_its_main_thread_is_held(
    number: signal.Signals,
) -> None:
    statuses: list[int] = []
    ended = threading.Event()

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    signals = StopSignals(end)
    os.kill(os.getpid(), number)
    assert ended.wait(DEADLINE_S) and statuses == [0]
    signals.obey(lambda: None, lambda: None)


def test_a_node_that_serves_leaves_or_stops() -> None:
    told: list[str] = []
    signals = StopSignals(lambda status: told.append("ended"))
    signals.obey(lambda: told.append("leave"), lambda: told.append("stop"))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(number)
    assert told == ["leave", "stop", "leave"]
