"""Pages that travel while they are computed, and are kept, owned and shared as they arrive."""

from __future__ import annotations

import pytest

from engine.batches.sequence import Sampled
from node.core.instructions import (
    CancelSends,
    EndSequence,
    Event,
    ExpectPages,
    PagesArrived,
    PagesReceived,
    PagesSent,
    SendMessage,
    SendPages,
    StreamPages,
)
from node.core.scheduler import Scheduler
from protocol.ids import Attempt
from protocol.messages import (
    Cancel,
    Failed,
    LinkLoad,
    Prefill,
    PrefillDone,
)
from tests.support.node.schedulers import (
    DECODE,
    HASHER,
    P0,
    PAGE,
    asked_prefill,
    decode_scheduler,
    generate,
    messages,
    prefill_scheduler,
)


def test_a_send_that_fails_fails_its_job_once_and_holds_its_pages_to_the_last() -> None:
    prefill, attempt = prefill_scheduler(chunk=32), Attempt("r", 1)
    prefill.handle(asked_prefill("r", 96), 0.0)
    for _ in range(2):
        (part,), _ = prefill.next_batch(0.0)
        prefill.finish([None], 0.0)
    failed = SendMessage(DECODE, Failed(attempt, "peer lost", "node", P0))
    end = EndSequence(part.sequence_id)
    told = prefill.handle(PagesSent(attempt, "peer lost"), 0.0)
    assert told == [end, CancelSends(attempt), failed]
    assert prefill.next_batch(0.0) == ([], [])
    assert prefill.load().held_pages == 6
    assert prefill.handle(PagesSent(attempt, "cancelled"), 0.0) == []
    assert prefill.load().held_pages == 0
    assert prefill.load().counters.transfer_failures == 1


def test_a_send_that_fails_after_the_last_step_is_told() -> None:
    prefill, attempt = prefill_scheduler(), Attempt("r", 1)
    prefill.handle(asked_prefill("r", 20), 0.0)
    prefill.next_batch(0.0)
    prefill.finish([Sampled((7,))], 0.0)
    failed = SendMessage(DECODE, Failed(attempt, "peer lost", "node", P0))
    assert prefill.handle(PagesSent(attempt, "peer lost"), 0.0) == [failed]
    assert prefill.load().held_pages == 0


@pytest.mark.parametrize("is_done", [False, True])
def test_nobody_hears_of_the_sends_of_a_cancelled_job(is_done: bool) -> None:
    prefill, attempt = prefill_scheduler(chunk=32), Attempt("r", 1)
    prefill.handle(asked_prefill("r", 32 if is_done else 96), 0.0)
    (part,), _ = prefill.next_batch(0.0)
    prefill.finish([Sampled((7,)) if is_done else None], 0.0)
    ends = [] if is_done else [EndSequence(part.sequence_id)]
    assert prefill.handle(Cancel(attempt), 0.0) == [*ends, CancelSends(attempt)]
    assert prefill.handle(Cancel(attempt), 0.0) == []
    assert prefill.load().held_pages > 0
    assert prefill.handle(PagesSent(attempt, "peer lost"), 0.0) == []
    assert prefill.load().held_pages == prefill.load().counters.transfer_failures == 0


def test_an_attempt_that_comes_again_waits_for_the_ends_of_what_it_sent() -> None:
    """Else an end of its first life would release the pages of the second too early."""
    prefill, request = prefill_scheduler(chunk=32), asked_prefill("r", 40)
    prefill.handle(request, 0.0)
    (part,), _ = prefill.next_batch(0.0)
    prefill.finish([None], 0.0)
    told = prefill.handle(request, 0.0)
    assert told == [EndSequence(part.sequence_id), CancelSends(request.attempt)]
    assert prefill.next_batch(0.0) == ([], [])
    prefill.handle(asked_prefill("s", 20), 0.0)
    assert len(prefill.next_batch(0.0)[0]) == 1, "others do not wait"
    prefill.finish([Sampled((7,))], 0.0)
    prefill.handle(PagesSent(request.attempt, "cancelled"), 0.0)
    (part,), instructions = prefill.next_batch(0.0)
    assert [type(i) for i in instructions] == [SendPages, StreamPages]
    assert part.start == 32, "what was computed is kept"


def test_what_is_sent_makes_no_room_for_others_but_a_place() -> None:
    prefill = prefill_scheduler(num_pages=6)
    prefill.handle(asked_prefill("a", 40), 0.0)
    prefill.next_batch(0.0)
    prefill.finish([None], 0.0)
    prefill.next_batch(0.0)
    prefill.finish([Sampled((7,))], 0.0)
    prefill.handle(asked_prefill("b", 60), 0.0)
    assert prefill.load().num_running == 0
    assert prefill.next_batch(0.0) == ([], [])
    for _ in range(2):
        prefill.handle(PagesSent(Attempt("a", 1)), 0.0)
    assert prefill.next_batch(0.0)[0]


def owned(scheduler: Scheduler, prompt: list[int]) -> int:
    """Leading pages of the prompt that can be found."""
    return len(scheduler._cache.find(HASHER.hashes(prompt)))


def test_pages_are_owned_as_they_arrive_but_for_the_partial_one() -> None:
    decode, attempt, prompt = decode_scheduler(), Attempt("r", 1), list(range(1, 101))
    decode.handle(generate("first", prompt[:40], 1, prefill=""), 0.0)
    decode.next_batch(0.0)
    decode.finish([None], 0.0)
    decode.next_batch(0.0)
    decode.finish([Sampled((7,))], 0.0)
    assert owned(decode, prompt) == 2
    decode.handle(generate("r", prompt), 0.0)
    decode.next_batch(0.0)
    for num_arrived in (1, 3, 2):  # the last one says nothing new
        decode.handle(PagesArrived(attempt, num_arrived), 0.0)
    assert owned(decode, prompt) == 5
    assert decode.load().counters.pages_received == 3
    decode.handle(PagesReceived(attempt), 0.0)
    assert owned(decode, prompt) == 6, "the first token is still to come"
    assert decode.load().counters.pages_received == 5
    assert decode.load().cached_pages == 1, "all are held but the tail of the first prompt"
    decode.handle(Cancel(attempt), 0.0)
    assert (decode.load().cached_pages, decode.load().held_pages) == (7, 0)
    assert decode.handle(PagesArrived(attempt, 4), 0.0) == []


def test_waiting_for_pages_beyond_computing_is_counted_by_peer() -> None:
    decode = decode_scheduler()
    for name, pages_at, done_at in (("late", 3.0, 1.0), ("early", 4.0, 6.0), ("again", 9.5, 9.0)):
        decode.handle(generate(name, [ord(name[0])] * 40, 1), 0.0)
        decode.next_batch(0.0)
        received = PagesReceived(Attempt(name, 1))
        done = PrefillDone(Attempt(name, 1), [7], 0, P0)
        events: list[tuple[float, Event]] = [(pages_at, received), (done_at, done)]
        for now, event in sorted(events, key=lambda timed: timed[0]):
            decode.handle(event, now)
    assert decode.load().num_running == 0
    assert decode.load().links == (LinkLoad("p0", "in", exposed_s_total=2.5),)


COMMON = list(range(1, 6 * PAGE + 1))


@pytest.mark.parametrize("num_arrived", [0, 2, 4, 6])
def test_what_has_arrived_for_a_cancelled_one_travels_to_no_other(num_arrived: int) -> None:
    decode = decode_scheduler()
    for name in ("first", "second", "third"):
        decode.handle(generate(name, [*COMMON, ord(name[0])]), 0.0)
    (asked,) = messages(decode.next_batch(0.0)[1], Prefill)
    assert asked.attempt == Attempt("first", 1), "the others wait for what they have in common"
    decode.handle(PagesArrived(asked.attempt, num_arrived), 0.0)
    decode.handle(Cancel(asked.attempt), 0.0)
    assert owned(decode, COMMON) == num_arrived
    asks = messages(decode.next_batch(0.0)[1], Prefill)
    assert {ask.skip_pages for ask in asks} == {num_arrived}
    assert len(asks) == (2 if num_arrived == 6 else 1), "nothing common is left, or one asks"


def test_who_does_not_compute_here_does_not_wait_for_what_is_computed_here() -> None:
    decode = decode_scheduler()
    decode.handle(generate("here", COMMON, prefill=""), 0.0)
    decode.handle(generate("there", COMMON), 0.0)
    slices, instructions = decode.next_batch(0.0)
    assert len(slices) == 1
    assert [type(i) for i in instructions] == [ExpectPages, SendMessage]


def test_who_computes_here_waits_for_what_is_received() -> None:
    decode = decode_scheduler()
    decode.handle(generate("there", COMMON), 0.0)
    decode.handle(generate("here", [*COMMON, 7], prefill=""), 0.0)
    assert decode.next_batch(0.0)[0] == []
    decode.handle(PagesArrived(Attempt("there", 1), 5), 0.0)
    assert decode.next_batch(0.0)[0] == []
    decode.handle(PagesReceived(Attempt("there", 1)), 0.0)
    (part,), _ = decode.next_batch(0.0)
    assert list(part.token_ids) == [7]


def test_nobody_waits_for_pages_that_do_not_come() -> None:
    """The first prompt's prefill node is hung, or busy with others."""
    decode = decode_scheduler()
    for name in ("first", "second"):
        decode.handle(generate(name, [*COMMON, 99]), 0.0)
    assert [type(i) for i in decode.next_batch(0.0)[1]] == [ExpectPages, SendMessage], "one of them"
    assert decode.next_batch(1.0)[1] == []
    decode.handle(PagesArrived(Attempt("first", 1), 1), 1.5)
    assert decode.next_batch(3.0)[1] == [], "one page has come since"
    expect, _ = decode.next_batch(3.5)[1]
    assert isinstance(expect, ExpectPages)
    assert expect.transfer == Attempt("second", 1)
    assert len(expect.pages) == 6, "all but the one that is here"


def test_patience_does_not_add_up() -> None:
    decode = decode_scheduler()
    for i in range(4):
        decode.handle(generate(f"r{i}", [*COMMON, 99 + i]), 0.0)
    assert len(decode.next_batch(0.0)[1]) == 2, "one asks"
    assert decode.next_batch(1.9)[1] == []
    assert len(decode.next_batch(2.0)[1]) == 6, "and the other three together"
