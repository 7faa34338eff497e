"""Pages that travel while they are computed: layer after layer, progress, cancelling."""

from __future__ import annotations

from functools import partial

import pytest
from torch import Tensor

from kvtransfer.backends.faulty import FaultPlan, Faults
from tests.support.transfer.endpoints import LAYOUT, Endpoint, Make, attempt, same, until

LAYERS = LAYOUT.num_layers


def test_a_layer_travels_before_the_next_one_is_computed(make: Make) -> None:
    """Nothing of a later layer is in the sender's pool when the earlier one arrives."""
    a, b = make("a", min_send_bytes=1), make("b")
    source, target = [7, 3], [5, 63]
    content = a.pool[:, source].clone()
    a.pool.zero_()
    b.pool.zero_()
    b.expect(attempt(), target)
    stream = a.stream(b.address, attempt(), source)
    for layer in range(LAYERS):
        a.pool[layer, source] = content[layer]
        stream.layers_ready(layer + 1)
        if layer < LAYERS - 1:
            arrived = partial(_is_there, b, layer, target, content)
            until(arrived, "arrival of a layer")
            assert a.sent.empty() and b.received.empty()
            assert not b.pool[layer + 1 :].any()
    assert b.await_received() == (attempt(), "")
    stream.finish()
    assert a.await_sent() == (attempt(), "")
    assert same(b.pool[:, target], content)


def test_layers_of_a_short_chunk_are_sent_together(make: Make) -> None:
    counting = Faults(FaultPlan())
    two_layers = 2 * 3 * LAYOUT.layer_page_bytes
    a = make("a", faults=counting, min_send_bytes=two_layers)
    b = make("b", faults=counting)
    b.expect(attempt(), [0, 1, 2])
    stream = a.stream(b.address, attempt(), [4, 5, 6])
    for layer in range(LAYERS):
        stream.layers_ready(layer + 1)
    stream.finish()
    assert b.await_received() == (attempt(), "")
    assert counting.num_sends == 2, "two layers, then the last one"
    assert same(b.pool[:, :3], a.pool[:, 4:7])


def test_finish_alone_sends_everything(make: Make) -> None:
    a, b = make("a"), make("b")
    b.expect(attempt(), [0, 1])
    a.stream(b.address, attempt(), [8, 9]).finish()
    assert b.await_received() == (attempt(), "")
    assert a.await_sent() == (attempt(), "")
    assert same(b.pool[:, :2], a.pool[:, 8:10])


def test_progress_tells_how_many_leading_pages_are_complete(make: Make) -> None:
    a, b = make("a", min_send_bytes=1), make("b")
    b.expect(attempt(), [10, 11, 12, 13])
    a.send(b.address, attempt(), [0], offset=0)
    assert b.await_progress() == (attempt(), 1)
    stream = a.stream(b.address, attempt(), [1, 2], offset=1)
    stream.layers_ready(LAYERS - 1)
    a.send(b.address, attempt(), [3], offset=3)
    assert [a.await_sent() for _ in range(2)] == [(attempt(), "")] * 2
    assert b.progress.empty(), "page 3 is here, but pages 1 and 2 lack a layer"
    stream.finish()
    assert b.await_received() == (attempt(), "")
    assert b.progress.empty(), "the last page ends the transfer instead"
    assert same(b.pool[:, 10:14], a.pool[:, :4])


def test_cancelled_frames_are_not_sent_and_every_send_ends(make: Make) -> None:
    slow = Faults(FaultPlan(hold=frozenset([0])))
    a, b = make("a", faults=slow), make("b", faults=slow)
    b.expect(attempt(1), [0])
    b.expect(attempt(2), [1])
    a.send(b.address, attempt(1), [0])
    assert slow.held.wait(20.0)
    a.send(b.address, attempt(2), [1])
    stream = a.stream(b.address, attempt(2), [2])
    stream.layers_ready(LAYERS)
    a.transport.cancel(attempt(2))
    assert [a.await_sent() for _ in range(2)] == [(attempt(2), "it was cancelled")] * 2
    slow.released.set()
    assert a.await_sent() == (attempt(1), "")
    assert b.await_received() == (attempt(1), "")
    b.expect(attempt(3), [4])
    a.send(b.address, attempt(3), [4])
    assert b.await_received() == (attempt(3), "")
    assert slow.num_sends == 2, "nothing of the cancelled transfer was sent"


def test_an_unfinished_stream_ends_when_its_link_is_lost(make: Make) -> None:
    broken = Faults(FaultPlan(cut_sends=frozenset([1])))
    a, b = make("a", faults=broken, min_send_bytes=1), make("b", faults=broken)
    b.expect(attempt(), [0])
    stream = a.stream(b.address, attempt(), [0])
    for layer in range(LAYERS):
        stream.layers_ready(layer + 1)
    transfer, error = b.await_received()
    assert transfer == attempt() and error
    assert a.sent.empty(), "its pages may still be read: the stream is not finished"
    stream.finish()
    assert "cut this send" in a.await_sent()[1]


@pytest.mark.parametrize("offset", [1, 2**40])
def test_pages_that_nobody_asked_for_fail_their_transfer_and_touch_nothing(
    make: Make, offset: int
) -> None:
    a, b = make("a"), make("b")
    before = b.pool.clone()
    b.expect(attempt(), [0, 1])
    a.send(b.address, attempt(), [5, 6], offset=offset)
    assert "nobody asked for" in b.await_received()[1]
    assert same(b.pool, before)


def test_a_page_that_comes_twice_fails_its_transfer(make: Make) -> None:
    a, b = make("a"), make("b")
    b.expect(attempt(), [0, 1])
    for _ in range(2):
        a.send(b.address, attempt(), [5])
    assert b.await_progress() == (attempt(), 1)
    assert "twice" in b.await_received()[1]


def test_a_layer_that_comes_twice_makes_up_for_no_other(make: Make) -> None:
    a, b = make("a", min_send_bytes=1), make("b")
    b.expect(attempt(), [0])
    a.stream(b.address, attempt(), [5]).layers_ready(1)
    until(lambda: same(b.pool[0, 0], a.pool[0, 5]), "arrival of a layer")
    a.transport.cancel(attempt())
    a.stream(b.address, attempt(), [5]).layers_ready(1)
    assert "twice" in b.await_received()[1]


def test_a_link_does_not_end_for_idleness_before_a_stream(make: Make) -> None:
    """The first layer of a long chunk may be computed for longer than links may be idle: here so
    long that the link the other way has ended twice."""
    a, b = (make(name, idle_close_s=0.05) for name in "ab")
    b.expect(attempt(), [0])
    a.send(b.address, attempt(), [3])
    assert b.await_received() == (attempt(), "")
    b.expect(attempt(2), [0])
    stream = a.stream(b.address, attempt(2), [3])
    for number in (3, 4):
        a.expect(attempt(number), [9])
        b.send(a.address, attempt(number), [9])
        assert a.await_received() == (attempt(number), "")
        until(lambda: not is_open(b, "out"), "closing of the link the other way")
    assert is_open(a, "out")
    stream.finish()
    assert b.await_received() == (attempt(2), "")
    until(lambda: not is_open(a, "out"), "closing of the link")


def is_open(end: Endpoint, direction: str) -> bool:
    return any(link.is_open for link in end.transport.links() if link.direction == direction)


def _is_there(end: Endpoint, layer: int, pages: list[int], content: Tensor) -> bool:
    return same(end.pool[layer, pages], content[layer])
