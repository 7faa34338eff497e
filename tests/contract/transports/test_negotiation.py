"""How two transports agree on the way that pages travel."""

from __future__ import annotations

import pytest

from kvtransfer.backends.faulty import FaultPlan, Faults
from kvtransfer.links.handshake import Hello, Place, choose_backend
from kvtransfer.pages.layout import WHOLE
from protocol.ids import Node
from protocol.layout import KVLayout
from protocol.trust.versions import PROTOCOL_VERSION
from tests.support.transfer.endpoints import Endpoint, Make, attempt, new_backend, until

LAYOUT = KVLayout(4, 3, 2, 8, "float32")
ALL = ["nccl", "shm", "tcp"]


def hello(backends: list[str], host: str = "h", gpu: str = "") -> Hello:
    return Hello(
        PROTOCOL_VERSION, Node("n", 1), LAYOUT, "m", WHOLE, WHOLE, Place(host, gpu), backends
    )


def test_the_best_common_way_is_chosen() -> None:
    assert choose_backend(hello(ALL, "h", "g0"), hello(ALL, "h", "g1")) == "nccl"
    assert choose_backend(hello(ALL, "h", "g0"), hello(ALL, "i", "g1")) == "nccl"
    assert choose_backend(hello(ALL, "h", "g0"), hello(ALL, "h", "g0")) == "shm", "one GPU"
    assert choose_backend(hello(ALL, "h", "g0"), hello(ALL, "i", "")) == "tcp"
    assert choose_backend(hello(["shm", "tcp"]), hello(["tcp"])) == "tcp"
    assert choose_backend(hello(["shm"]), hello(["shm"], host="i")) == ""


def used_by(end: Endpoint) -> set[str]:
    return {link.transport for link in end.transport.links() if link.transport}


def move(a: Endpoint, b: Endpoint, number: int = 1) -> str:
    b.expect(attempt(number), [0])
    a.send(b.address, attempt(number), [0])
    return a.await_sent()[1] or b.await_received()[1]


def test_processes_of_one_host_use_shared_memory_and_others_tcp(make: Make) -> None:
    shm, tcp = new_backend("shm"), new_backend("tcp")
    a, b = (make(name, backend=shm, others=[tcp]) for name in "ab")
    elsewhere = make("c", backend=shm, others=[tcp], place=Place("another host"))
    assert move(a, b) == move(elsewhere, b) == ""
    assert (used_by(a), used_by(elsewhere)) == ({"shm"}, {"tcp"})


def test_without_a_common_way_the_peer_says_what_to_do(make: Make) -> None:
    a = make("a", backend=new_backend("shm"))
    b = make("b", backend=new_backend("tcp"))
    assert "tcp here, shm there" in (error := move(a, b)) and "--kv-backend auto" in error


def test_a_backend_that_makes_no_pair_is_replaced_by_the_next(make: Make) -> None:
    broken, shm, tcp = Faults(FaultPlan(no_pairs=True)), new_backend("shm"), new_backend("tcp")
    a, b = (make(name, backend=shm, faults=broken, others=[tcp]) for name in "ab")
    assert "no pair" in move(a, b)
    assert move(a, b, number=2) == ""
    assert used_by(a) == {"tcp"}


def test_a_link_without_work_is_closed_and_made_anew(make: Make) -> None:
    a, b = make("a", idle_close_s=0.1), make("b")
    for number in range(2):
        assert move(a, b, number) == ""
        until(
            lambda: not any(link.is_open for end in (a, b) for link in end.transport.links()),
            "closing of the link",
        )
    assert sum(link.failures for end in (a, b) for link in end.transport.links()) == 0


def test_who_ends_its_links_does_not_say_that_they_are_lost(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = make("a"), make("b")
    assert move(a, b) == ""
    b.transport.close()
    assert "the link from" not in caplog.text
