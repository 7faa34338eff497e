"""An owner of pages that another node asks for: it sends all of them, or refuses."""

from __future__ import annotations

from node.core.instructions import (
    Event,
    PagesSent,
    SendMessage,
    SendPages,
)
from node.core.scheduler import Scheduler
from protocol.hashing import join_hashes, token_bytes
from protocol.ids import Attempt
from protocol.messages import (
    Failed,
    Fetch,
    FetchRefused,
    Prefill,
)
from protocol.namespace import SHARED
from protocol.sampling import Sampling
from tests.support.node.fetching import (
    PROMPT,
    R1,
    both_kinds,
    fetch_of,
    owner_scheduler,
)
from tests.support.node.schedulers import (
    HASHER,
    PREFILL,
    compute,
    decode_scheduler,
    generate,
    messages,
)


def owner_of(kind: str) -> Scheduler:
    """Has computed PROMPT."""
    owner: Scheduler
    if kind == PREFILL:
        owner = owner_scheduler()
        owner.handle(Prefill(R1, token_bytes(PROMPT), SHARED, Sampling(), 7, "d", ("d",)), 0.0)
    else:
        owner = decode_scheduler()
        owner.handle(generate("r", PROMPT, 1, prefill=""), 0.0)
    compute(owner)
    return owner


@both_kinds
def test_an_owner_sends_all_or_refuses(kind: str) -> None:
    owner = owner_of(kind)
    sent_before = owner.load().counters.pages_sent
    (send,) = owner.handle(fetch_of(6, skip_pages=2), 0.0)
    assert isinstance(send, SendPages)
    assert (send.data_addresses, send.transfer, send.offset, send.is_fetch) == (
        ("data",),
        R1,
        0,
        True,
    )
    assert len(send.pages) == 4
    assert owner.load().counters.pages_sent == sent_before + 4
    assert owner.load().held_pages == 6
    owner.handle(PagesSent(R1, is_fetch=True), 0.0)
    assert owner.load().held_pages == 0
    longer = Fetch(R1, join_hashes(HASHER.hashes(PROMPT + [5] * 20)), 0, PREFILL, ("data",))
    (refused,) = owner.handle(longer, 0.0)
    assert isinstance(refused, SendMessage) and refused.address == PREFILL
    assert isinstance(refused.message, FetchRefused)
    assert "6 of these 7" in refused.message.reason


@both_kinds
def test_pages_that_are_served_cannot_be_evicted_before_all_is_sent(kind: str) -> None:
    """The same question twice: which end is whose cannot be told."""
    owner = owner_of(kind)
    for num_pages in (6, 2):
        assert isinstance(owner.handle(fetch_of(num_pages), 0.0)[0], SendPages)
    for error in ("", "peer lost"):
        assert owner.load().held_pages == 6
        assert owner.handle(PagesSent(R1, error, is_fetch=True), 0.0) == []
    assert owner.load().held_pages == 0
    assert owner.load().counters.transfer_failures == 1


@both_kinds
def test_a_served_fetch_that_broke_ends_no_work_of_the_same_attempt(kind: str) -> None:
    """The owner computes (or awaits) pages of the very attempt it serves."""
    owner = owner_of(kind)
    request: Event
    if kind == PREFILL:
        request = Prefill(R1, token_bytes(PROMPT), SHARED, Sampling(), 0, "d", ("d",))
    else:
        request = generate("r", [3] * 40)
    owner.handle(request, 0.0)
    owner.next_batch(0.0)
    held = owner.load().held_pages
    owner.handle(fetch_of(6), 0.0)
    assert owner.handle(PagesSent(R1, "peer lost", is_fetch=True), 0.0) == []
    assert owner.load().held_pages == held > 0
    if kind == PREFILL:
        broken = owner.handle(PagesSent(R1, "peer lost"), 0.0)
        assert len(messages(broken, Failed)) == 1, "its own send is still known"


def test_serving_is_no_use_of_the_pages() -> None:
    """Two chains fill the node; the one that was served last is still the first to go."""
    owner = owner_scheduler(num_pages=7)
    for name, prompt in (("a", [1] * 48), ("b", [2] * 48)):
        request = Prefill(Attempt(name, 1), token_bytes(prompt), SHARED, Sampling(), 3, "d", ("d",))
        owner.handle(request, 0.0)
        compute(owner, 0.0 if name == "a" else 1.0)

    def fetch(token: int) -> Fetch:
        return Fetch(R1, join_hashes(HASHER.hashes([token] * 48)), 0, PREFILL, ("data",))

    assert all(isinstance(i, SendPages) for t in (2, 1) for i in owner.handle(fetch(t), 2.0))
    for _ in range(2):
        owner.handle(PagesSent(R1, is_fetch=True), 2.0)
    third = Prefill(Attempt("c", 1), token_bytes([3] * 64), SHARED, Sampling(), 4, "d", ("d",))
    owner.handle(third, 3.0)
    owner.next_batch(3.0)
    assert isinstance(owner.handle(fetch(2), 3.0)[0], SendPages)
    assert isinstance(owner.handle(fetch(1), 3.0)[0], SendMessage)
