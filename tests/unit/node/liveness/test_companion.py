"""A companion process: what coordinators and probes hear through it of this process, which stands
for a node whose main loop does as it likes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from node.liveness.heartbeats import Heartbeats
from node.liveness.process import CompanionProcess, HealthPortInUse
from protocol.channel import Channel
from protocol.ids import Node
from protocol.messages import AnyMessage, Goodbye, Heartbeat
from tests.support.coordinator.nodes import info_of, load_of

NODE = Node("p0", 1)
INFO = info_of(NODE)
DEADLINE_S = 20.0
NO_REDIS = "redis://127.0.0.1:1/0"
"""Nobody listens there: heartbeats do not wait for Redis."""


@pytest.fixture
def coordinator() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


@contextmanager
def companion(lease_s: float = 0.1, stall_s: float = 1000.0) -> Iterator[CompanionProcess]:
    process = CompanionProcess(NODE, "127.0.0.1", 0, NO_REDIS, lease_s, stall_s)
    try:
        yield process
    finally:
        process.close()


def heartbeats_of(process: CompanionProcess, coordinator: Channel) -> Heartbeats:
    return Heartbeats(process.board, INFO, lambda: [coordinator.address], process.tell_news)


def await_message(
    coordinator: Channel, is_wanted: Callable[[AnyMessage], bool], what: str
) -> AnyMessage:
    """Returns the first message that is wanted, and drops those before it."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        for message in coordinator.drain(1.0):
            if is_wanted(message):
                return message
    raise AssertionError(f"{what} did not come within {DEADLINE_S:g} s")


def get(process: CompanionProcess, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{process.health_port}{path}", timeout=DEADLINE_S)


def is_busy(message: AnyMessage) -> bool:
    """The heartbeat was sent when the loop had not come round for several intervals."""
    return isinstance(message, Heartbeat) and message.load.turn_s > 0.05


def test_a_loop_that_does_not_come_round_is_told_as_busy(coordinator: Channel) -> None:
    with companion() as process:
        heartbeats_of(process, coordinator).update(load_of(num_running=1))
        for _ in range(3):
            message = await_message(coordinator, is_busy, "a heartbeat of a busy loop")
            assert isinstance(message, Heartbeat)
            assert message.info == INFO and message.load.num_running == 1
        assert get(process, "/live").json()["condition"] == "alive"
        assert get(process, "/ready").status_code == 200


def test_before_the_loop_begins_there_is_no_heartbeat(coordinator: Channel) -> None:
    with companion() as process:
        live, ready = get(process, "/live"), get(process, "/ready")
        assert live.status_code == 200 and ready.status_code == 503
        assert live.json()["condition"] == ready.json()["condition"] == "starting"
        assert get(process, "/other").status_code == 404
    assert coordinator.drain() == []


def test_news_is_told_long_before_it_is_time(coordinator: Channel) -> None:
    with companion(lease_s=100_000.0) as process:
        heartbeats = heartbeats_of(process, coordinator)
        for num_running in (1, 2, 0):
            load = load_of(num_running=num_running)
            heartbeats.update(load)
            await_message(
                coordinator,
                lambda m, n=num_running: isinstance(m, Heartbeat) and m.load.num_running == n,
                f"news of {num_running} requests",
            )


@pytest.mark.parametrize("lease_s", [0.1, 100_000.0])
def test_a_stuck_loop_says_goodbye_and_comes_back(coordinator: Channel, lease_s: float) -> None:
    with companion(lease_s, stall_s=0.3) as process:
        heartbeats = heartbeats_of(process, coordinator)
        heartbeats.update(load_of())
        await_message(coordinator, lambda m: m == Goodbye(NODE), "the goodbye of a stuck node")
        assert coordinator.drain() == [], "a stuck node has heartbeats"
        live = get(process, "/live")
        assert live.status_code == 503 and live.json()["condition"] == "stuck"
        heartbeats.update(load_of(num_running=1))
        await_message(coordinator, lambda m: isinstance(m, Heartbeat), "a heartbeat afterwards")


def test_a_node_that_drains_is_not_ready_and_has_heartbeats(coordinator: Channel) -> None:
    with companion() as process:
        heartbeats = heartbeats_of(process, coordinator)
        heartbeats.update(load_of())
        assert get(process, "/ready").status_code == 200
        heartbeats.tell_draining()
        heartbeats.update(load_of(num_running=1))
        live, ready = get(process, "/live"), get(process, "/ready")
        assert (live.status_code, ready.status_code) == (200, 503)
        assert ready.json()["is_draining"] is True
        coordinator.drain()
        await_message(coordinator, lambda m: isinstance(m, Heartbeat), "a heartbeat")


def test_the_end_is_told_once(coordinator: Channel) -> None:
    with companion() as process:
        heartbeats_of(process, coordinator).update(load_of())
        await_message(coordinator, lambda m: isinstance(m, Heartbeat), "a heartbeat")
    await_message(coordinator, lambda m: m == Goodbye(NODE, is_planned=True), "a goodbye")
    assert coordinator.drain() == []


def test_a_lost_companion_is_noticed() -> None:
    with companion() as process:
        lost = threading.Event()
        process.when_lost(lost.set)
        process._process.kill()
        assert lost.wait(DEADLINE_S)
        again = threading.Event()
        process.when_lost(again.set)
        assert again.is_set(), "who asks later is told at once"
        process.tell_news()  # the main loop goes on until its turn ends


def test_a_taken_port_is_a_sentence() -> None:
    with companion() as process, pytest.raises(HealthPortInUse, match="--health-port"):
        CompanionProcess(NODE, "127.0.0.1", process.health_port, NO_REDIS, 1.0, 1.0)
