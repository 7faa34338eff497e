"""Heartbeats over a real channel: at their interval, and at once when work came or went."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from node.shell.heartbeat import Heartbeats
from protocol.channel import Channel
from protocol.ids import Node
from protocol.messages import Goodbye, Heartbeat, Load
from tests.support.coordinator.nodes import info_of, load_of

NODE = Node("p0", 1)
DEADLINE_S = 20.0
NEVER_S = 100_000.0
"""A lease so long that no heartbeat of its interval comes during a test."""


@pytest.fixture
def coordinator() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


@pytest.fixture
def node_channel() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def start(node: Channel, coordinator: Channel, lease_s: float, stall_s: float) -> Heartbeats:
    addresses = (coordinator.address,)
    heartbeats = Heartbeats(node.outgoing(), info_of(NODE), lease_s, stall_s, lambda: addresses)
    heartbeats.start()
    return heartbeats


def next_load(coordinator: Channel) -> Load:
    (message, *_) = coordinator.drain(DEADLINE_S)
    assert isinstance(message, Heartbeat)
    return message.load


def test_work_that_came_or_went_is_told_at_once(
    node_channel: Channel, coordinator: Channel
) -> None:
    heartbeats = start(node_channel, coordinator, NEVER_S, NEVER_S)
    busy = load_of(queued_tokens=500, num_running=1)
    heartbeats.update(busy)
    assert next_load(coordinator) == busy
    heartbeats.update(load_of())
    assert next_load(coordinator) == load_of()
    heartbeats.close()
    assert coordinator.drain(DEADLINE_S) == [Goodbye(NODE)]


def test_progress_is_no_news(node_channel: Channel, coordinator: Channel) -> None:
    heartbeats = start(node_channel, coordinator, NEVER_S, NEVER_S)
    heartbeats.update(load_of(queued_tokens=500, num_running=1))
    assert next_load(coordinator).queued_tokens == 500
    for tokens in (400, 300, 200):
        heartbeats.update(load_of(queued_tokens=tokens, num_running=1))
    heartbeats.update(load_of(queued_tokens=900, num_running=2))
    assert next_load(coordinator).queued_tokens == 900
    heartbeats.close()


def test_they_come_without_news(node_channel: Channel, coordinator: Channel) -> None:
    heartbeats = start(node_channel, coordinator, 0.1, NEVER_S)
    heartbeats.update(load_of())
    loads = [next_load(coordinator) for _ in range(3)]
    assert loads == [load_of()] * 3
    heartbeats.close()


def test_a_loop_that_hangs_has_none(node_channel: Channel, coordinator: Channel) -> None:
    heartbeats = start(node_channel, coordinator, 0.1, stall_s=0.0)
    heartbeats.update(load_of())
    heartbeats.close()
    assert coordinator.drain(DEADLINE_S) == [Goodbye(NODE)]


def test_a_loop_that_has_not_begun_has_none(node_channel: Channel, coordinator: Channel) -> None:
    heartbeats = start(node_channel, coordinator, NEVER_S, NEVER_S)
    heartbeats.close()
    assert coordinator.drain(DEADLINE_S) == [Goodbye(NODE)]
