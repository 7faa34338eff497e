"""One suite for every backend of `PairTransport`: what the `Transport` interface promises."""

from __future__ import annotations

import errno
import os
import resource
import socket
import threading
from typing import Any

import pytest

from kvtransfer.backends.faulty import FaultPlan, Faults
from kvtransfer.links.counts import LinkCounts
from kvtransfer.pages.staging import PageRows
from protocol.layout import FP8, KVLayout
from tests.support.transfer.endpoints import (
    DEADLINE_S,
    LAYOUT,
    NUM_PAGES,
    Make,
    attempt,
    move_until_it_arrives,
    new_backend,
    same,
)


def test_bytes_arrive_at_the_reserved_pages_and_nowhere_else(make: Make) -> None:
    a, b = make("a"), make("b")
    before = b.pool.clone()
    source, target = [7, 3, 60, 11], [5, 63, 0, 9]
    b.expect(attempt(), target)
    a.send(b.address, attempt(), source)
    assert b.await_received() == (attempt(), "")
    assert a.await_sent() == (attempt(), "")
    assert same(b.pool[:, target], a.pool[:, source])
    others = [p for p in range(NUM_PAGES) if p not in target]
    assert same(b.pool[:, others], before[:, others])


def test_the_source_may_change_once_it_is_sent(make: Make) -> None:
    a, b = make("a"), make("b")
    wanted = a.pool[:, [1, 2]].clone()
    b.expect(attempt(), [1, 2])
    a.send(b.address, attempt(), [1, 2])
    assert a.await_sent() == (attempt(), "")
    a.pool.zero_()
    assert b.await_received() == (attempt(), "")
    assert same(b.pool[:, [1, 2]], wanted)


def test_a_transfer_in_parts_ends_once(make: Make) -> None:
    a, b = make("a"), make("b")
    b.expect(attempt(), [10, 11, 12, 13, 14])
    a.send(b.address, attempt(), [0, 1], offset=0)
    a.send(b.address, attempt(), [2, 3, 4], offset=2)
    assert b.await_received() == (attempt(), "")
    assert same(b.pool[:, 10:15], a.pool[:, :5])
    assert b.received.empty()


def test_interleaved_transfers_both_ways_and_from_several_senders(
    backend_name: str, make: Make
) -> None:
    if backend_name == "nccl":
        pytest.skip("three nodes need three GPUs")
    nodes = [make(name) for name in "abc"]
    wanted = {}
    for i, sender in enumerate(nodes):
        for j, receiver in enumerate(nodes):
            if i == j:
                continue
            for number in range(4):
                transfer = attempt(number, f"{i}{j}")
                pages = [8 * i + number, 8 * i + number + 4]
                targets = [30 + 8 * i + number, 30 + 8 * i + number + 4]
                wanted[transfer] = (sender.pool[:, pages].clone(), receiver, targets)
                receiver.expect(transfer, targets)
                sender.send(receiver.address, transfer, pages)
    for receiver in nodes:
        assert {receiver.await_received() for _ in range(8)} == {
            (t, "") for t, (_, r, _) in wanted.items() if r is receiver
        }
    for content, receiver, targets in wanted.values():
        assert same(receiver.pool[:, targets], content)


def test_a_transfer_larger_than_a_frame(make: Make) -> None:
    layout = KVLayout(page_size=64, num_layers=4, num_kv_heads=8, head_dim=64, dtype="float32")
    a, b = (make(name, layout=layout, num_pages=40) for name in "ab")
    assert 40 * layout.page_bytes > 36 << 20
    b.expect(attempt(), list(range(40)))
    a.send(b.address, attempt(), list(reversed(range(40))))
    assert b.await_received() == (attempt(), "")
    assert same(b.pool, a.pool.flip(1))


def test_after_an_abort_nothing_is_written(make: Make) -> None:
    slow = Faults(FaultPlan(hold=frozenset([1])))
    a, b = make("a", faults=slow), make("b", faults=slow)
    b.expect(attempt(), [0, 1])
    a.send(b.address, attempt(), [0], offset=0)
    assert a.await_sent() == (attempt(), "")
    a.send(b.address, attempt(), [1], offset=1)
    assert slow.held.wait(DEADLINE_S)
    b.transport.abort(attempt())
    before = b.pool.clone()
    slow.released.set()
    assert a.await_sent() == (attempt(), "")
    # The link still works, and by order the held frame was received before this one.
    b.expect(attempt(2), [5])
    a.send(b.address, attempt(2), [5])
    assert b.await_received() == (attempt(2), "")
    before[:, 5] = a.pool[:, 5].to(before.device)
    assert same(b.pool, before)
    assert b.received.empty()


def test_another_layout_is_refused_by_name(make: Make) -> None:
    a = make("a")
    b = make("b", layout=KVLayout(8, 3, 2, 8, "float32"))
    rounded = make("c", layout=KVLayout(4, 3, 2, 8, FP8, "token"), gpu=1)
    for other, says in ((b, "page_size 8 here, 4 there"), (rounded, f"dtype {FP8} here, float32")):
        other.expect(attempt(), [0])
        a.send(other.address, attempt(), [0])
        _, error = a.await_sent()
        assert says in error


def test_another_model_is_refused(make: Make) -> None:
    a, b = make("a"), make("b", fingerprint="other")
    a.send(b.address, attempt(), [0])
    assert "different weights" in a.await_sent()[1]


def test_garbage_on_the_port_harms_nobody(make: Make) -> None:
    a, b = make("a"), make("b")
    host, _, port = b.address.rpartition(":")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b"", b"\x04\x00\x00\x00abcd"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(garbage)
    b.expect(attempt(), [0])
    a.send(b.address, attempt(), [0])
    assert b.await_received() == (attempt(), "")


def test_the_listener_outlives_a_lack_of_files(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    accept = socket.socket.accept

    def without_files(listener: socket.socket) -> Any:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", without_files)
    a, b = make("a"), make("b")
    assert failed.wait(DEADLINE_S)
    for sender, receiver in ((a, b), (b, a)):
        receiver.expect(attempt(), [0])
        sender.send(receiver.address, attempt(), [0])
        assert receiver.await_received() == (attempt(), "")


def test_a_peer_that_is_not_there(make: Make) -> None:
    a, b = make("a"), make("b")
    address = b.address
    b.transport.close()
    a.send(address, attempt(), [0])
    assert "nobody listens" in a.await_sent()[1]


def test_a_corrupted_page_set_fails_and_is_counted(make: Make) -> None:
    broken = Faults(FaultPlan(corrupt=frozenset([0])))
    a, b = make("a", faults=broken), make("b", faults=broken)
    before = b.pool.clone()
    b.expect(attempt(), [0])
    a.send(b.address, attempt(), [1])
    assert "checksum" in b.await_received()[1]
    assert same(b.pool, before)
    assert sum(link.failures for link in b.transport.links()) == 1
    b.expect(attempt(2), [0])
    a.send(b.address, attempt(2), [1])
    assert b.await_received() == (attempt(2), "")


@pytest.mark.parametrize(
    "plan", [FaultPlan(cut_sends=frozenset([1])), FaultPlan(cut_receives=frozenset([1]))]
)
def test_a_cut_link_fails_its_transfers_and_a_new_one_works(make: Make, plan: FaultPlan) -> None:
    broken = Faults(plan)
    a, b = make("a", faults=broken), make("b", faults=broken)
    b.expect(attempt(), [0, 1])
    a.send(b.address, attempt(), [0], offset=0)
    assert a.await_sent() == (attempt(), "")
    a.send(b.address, attempt(), [1], offset=1)
    transfer, error = b.await_received()
    assert transfer == attempt() and error
    move_until_it_arrives(a, b, [4], first_number=2)


def test_a_part_that_is_lost_on_its_way_in_fails_its_transfer(make: Make) -> None:
    broken = Faults(FaultPlan(cut_receives=frozenset([0])))
    a, b = make("a", faults=broken), make("b", faults=broken)
    b.expect(attempt(), [0])
    a.send(b.address, attempt(), [1])
    transfer, error = b.await_received()
    assert transfer == attempt() and "cut this receive" in error
    a.await_sent()


@pytest.mark.parametrize("broken", ["gather", "scatter"])
def test_an_error_of_either_end_fails_the_transfer_and_a_new_link_works(
    make: Make, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def out_of_memory(*_: object) -> None:
        raise RuntimeError("out of memory")

    a, b = make("a"), make("b")
    with monkeypatch.context() as patch:
        patch.setattr(PageRows, broken, out_of_memory)
        b.expect(attempt(), [0])
        a.send(b.address, attempt(), [1])
        error = a.await_sent()[1]
        assert broken == "scatter" or "out of memory" in error
        assert b.await_received()[1] != ""
    move_until_it_arrives(a, b, [0], first_number=2)


def test_a_rate_is_of_long_frames_only() -> None:
    counts = LinkCounts()
    meter = counts.opened("gloo")
    meter.began(now=10.0)
    meter.moved(64 << 10, now=15.0)
    assert counts.stats("peer", "out", 1024).bytes_per_s == 0
    meter.began(now=20.0)
    meter.moved(8 << 20, now=22.0)
    stats = counts.stats("peer", "out", page_bytes=1 << 10)
    assert stats.bytes_per_s == 4 << 20
    assert (stats.busy_s, stats.pages_moved) == (7.0, 64 + (8 << 10))


def test_counters_tell_what_moved(make: Make) -> None:
    a, b = make("a"), make("b")
    b.expect(attempt(), [0, 1, 2])
    a.send(b.address, attempt(), [0, 1, 2])
    a.await_sent()
    b.await_received()
    [out], [incoming] = a.transport.links(), b.transport.links()
    assert (out.direction, out.peer, out.is_open) == ("out", "b", True)
    assert (incoming.direction, incoming.peer) == ("in", "a")
    assert out.pages_moved == 3 and out.bytes_moved == 3 * LAYOUT.page_bytes


def test_what_is_sent_arrives_though_the_link_is_closed_next(make: Make) -> None:
    layout = KVLayout(page_size=64, num_layers=4, num_kv_heads=8, head_dim=64, dtype="float32")
    for number in range(5):
        a, b = make(f"a{number}", layout=layout), make(f"b{number}", layout=layout)
        b.expect(attempt(), list(range(12)))
        a.send(b.address, attempt(), list(range(12)))
        sent = a.await_sent()
        a.transport.close()
        assert (sent, b.await_received()) == ((attempt(), ""), (attempt(), ""))


def test_ends_of_other_message_sizes_understand_each_other(backend_name: str, make: Make) -> None:
    """Two versions of the program may prefer different sizes: the receiver's counts."""
    if backend_name == "local":
        pytest.skip("both ends share the backend")
    a, b = (
        make(f"n{i}", backend=new_backend(backend_name.replace("nccl", f"nccl:{i}")))
        for i in range(2)
    )
    for end, num_rows in ((a, 4), (b, 7)):
        (backend,) = end.backends
        backend.message_bytes, backend.window = num_rows * LAYOUT.layer_page_bytes, num_rows
    for sender, receiver in ((a, b), (b, a)):
        receiver.expect(attempt(), list(range(20)))
        sender.send(receiver.address, attempt(), list(range(20)))
        assert receiver.await_received() == (attempt(), "")
        assert same(receiver.pool[:, :20], sender.pool[:, :20])


def test_more_open_files_than_select_knows(make: Make) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 3000:
        pytest.skip("so many files may not be opened here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        a, b = make("a"), make("b")
        for number in range(3):
            b.expect(attempt(number), [0])
            a.send(b.address, attempt(number), [0])
            assert b.await_received() == (attempt(number), "")
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
