"""Fetching from owners: what schedulers do about it, whatever the pages are for."""

from __future__ import annotations

import msgspec
import pytest

from engine.batches.sequence import Sampled
from node.core.fetching import FETCH_TIMEOUT_S
from node.core.instructions import (
    AbortTransfer,
    EndSequence,
    Event,
    ExpectPages,
    PagesArrived,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    SendMessage,
    SendPages,
    StreamPages,
)
from node.core.scheduler import Scheduler
from protocol.hashing import split_hashes, token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import (
    Cancel,
    Failed,
    Fetch,
    FetchRefused,
    Generate,
    LinkLoad,
    Prefill,
    PrefillDone,
    TokensOut,
)
from protocol.namespace import SHARED
from protocol.sampling import Sampling
from tests.support.node.fetching import (
    OWNER,
    P1,
    PROMPT,
    R1,
    both_kinds,
    fetch_of,
)
from tests.support.node.lone_nodes import LoneNodes
from tests.support.node.schedulers import (
    D0,
    DECODE,
    HASHER,
    P0,
    PAGE,
    PREFILL,
    compute,
    decode_scheduler,
    generate,
    messages,
    prefill_scheduler,
)
from tests.support.node.untimed import untimed


def prefill_request(
    prompt: list[int] = PROMPT, skip_pages: int = 0, fetch_pages: int = 6, owner: Node = P1
) -> Prefill:
    return Prefill(
        attempt=R1,
        tokens=token_bytes(prompt),
        namespace=SHARED,
        sampling=Sampling(),
        skip_pages=skip_pages,
        reply_address=DECODE,
        data_addresses=(DECODE,),
        fetch_node=owner,
        fetch_address=OWNER,
        fetch_pages=fetch_pages,
    )


def asker_of(kind: str, prompt: list[int] = PROMPT, **fetch: int) -> tuple[Scheduler, Event]:
    """A node of this kind, and the message that makes it fetch."""
    if kind == PREFILL:
        return prefill_scheduler(), prefill_request(prompt, **fetch)
    pages = fetch.get("fetch_pages", 6)
    return decode_scheduler(), generate("r", prompt, prefill="", fetch=(P1, OWNER, pages))


def plain(kind: str, prompt: list[int]) -> Event:
    """Another request, which fetches nothing."""
    if kind == PREFILL:
        return Prefill(
            Attempt("s", 1), token_bytes(prompt), SHARED, Sampling(), 0, DECODE, (DECODE,)
        )
    return generate("s", prompt, 1, prefill="")


def fetched_and_computed(scheduler: Scheduler) -> tuple[int, int]:
    load = scheduler.load()
    return load.counters.fetched_tokens, load.counters.computed_tokens


# The asker


@both_kinds
def test_the_asker_reserves_asks_and_computes_only_the_rest(kind: str) -> None:
    asker, request = asker_of(kind)
    asker.handle(request, 0.0)
    slices, (expect, ask) = asker.next_batch(0.0)
    assert slices == [], "its pages are not here yet"
    assert asker.load().queued_tokens == len(PROMPT) - 6 * PAGE
    assert isinstance(expect, ExpectPages) and expect.transfer == R1
    assert isinstance(ask, SendMessage) and ask.address == OWNER
    assert isinstance(ask.message, Fetch)
    assert split_hashes(ask.message.hashes) == HASHER.hashes(PROMPT)[:6]
    assert (ask.message.skip_pages, ask.message.reply_address) == (0, kind)
    instructions = asker.handle(PagesReceived(R1), 1.0)
    if kind == PREFILL:
        assert instructions == [SendPages((DECODE,), R1, expect.pages, 0)]
    assert isinstance(asker.handle(fetch_of(6), 1.0)[0], SendPages), "it is an owner now"
    (part,), _ = asker.next_batch(1.0)
    assert (part.start, list(part.token_ids)) == (6 * PAGE, PROMPT[6 * PAGE :])
    assert list(part.pages[:6]) == expect.pages
    (reply,) = [i for i in asker.finish([Sampled((7,))], 1.0) if isinstance(i, SendMessage)]
    if kind == PREFILL:
        assert untimed(reply.message) == PrefillDone(R1, [7], 6 * PAGE, P0, 6 * PAGE)
    else:
        assert isinstance(reply.message, TokensOut)
        assert reply.message.outs[0].cached_tokens == 6 * PAGE
        assert reply.message.outs[0].fetched_tokens == 6 * PAGE
    load = asker.load()
    assert fetched_and_computed(asker) == (6 * PAGE, len(PROMPT) - 6 * PAGE)
    assert (load.counters.pages_fetched, load.counters.pages_received) == (6, 6)
    assert load.counters.reused_tokens == 0


@both_kinds
def test_others_compute_while_pages_travel(kind: str) -> None:
    asker, request = asker_of(kind)
    asker.handle(request, 0.0)
    asker.handle(plain(kind, [9] * 20), 0.0)
    slices, _ = asker.next_batch(0.0)
    assert [list(part.token_ids) for part in slices] == [[9] * 20]


@both_kinds
@pytest.mark.parametrize("why", ["refused", "broken", "late"])
def test_a_failed_fetch_is_aborted_and_computed(kind: str, why: str) -> None:
    asker, request = asker_of(kind)
    asker.handle(request, 0.0)
    asker.next_batch(0.0)
    if why == "refused":
        instructions = asker.handle(FetchRefused(R1, "gone", P1), 1.0)
    elif why == "broken":
        instructions = asker.handle(ReceiveFailed(R1, "peer lost"), 1.0)
    else:
        assert asker.next_batch(FETCH_TIMEOUT_S - 0.1) == ([], [])
        slices, instructions = asker.next_batch(FETCH_TIMEOUT_S)
        assert slices, "and computes at once"
        asker.finish([None], 5.0)
    assert instructions[0] == AbortTransfer(R1)
    assert not [i for i in instructions[1:] if not isinstance(i, StreamPages)]
    assert asker.handle(PagesReceived(R1), 5.0) == [], "an event that was on its way"
    done = compute(asker)
    assert messages(done, PrefillDone if kind == PREFILL else TokensOut)
    assert fetched_and_computed(asker) == (0, len(PROMPT))
    assert asker.load().counters.transfer_failures == (why != "refused")


@both_kinds
@pytest.mark.parametrize("why", ["refused", "broken", "late"])
def test_what_of_a_fetch_has_arrived_is_kept(kind: str, why: str) -> None:
    asker, request = asker_of(kind)
    asker.handle(request, 0.0)
    _, instructions = asker.next_batch(0.0)
    (expect,) = [i for i in instructions if isinstance(i, ExpectPages)]
    late = 2.0 + FETCH_TIMEOUT_S
    just_before = late - 0.1
    passed_on = asker.handle(PagesArrived(R1, 1), 1.0)
    assert asker.handle(PagesArrived(R1, 1), 1.0) == [], "nothing new"
    passed_on += asker.handle(PagesArrived(R1, 3), 2.0)
    if kind == PREFILL:
        assert passed_on == [
            SendPages((DECODE,), R1, expect.pages[:1], 0),
            SendPages((DECODE,), R1, expect.pages[1:3], 1),
        ]
    else:
        assert passed_on == []
    assert isinstance(asker.handle(fetch_of(3), 2.0)[0], SendPages), "these are owned now"
    assert asker.load().queued_tokens == len(PROMPT) - 6 * PAGE
    assert asker.next_batch(just_before) == ([], []), "late is who makes no progress"
    if why == "refused":
        asker.handle(FetchRefused(R1, "gone", P1), just_before)
    elif why == "broken":
        asker.handle(ReceiveFailed(R1, "peer lost"), just_before)
    (part,), instructions = asker.next_batch(late)
    assert AbortTransfer(R1) in instructions or why != "late"
    assert (part.start, list(part.token_ids)) == (
        3 * PAGE,
        PROMPT[3 * PAGE :][: len(part.token_ids)],
    )
    asker.finish([None], late)
    (part,), _ = asker.next_batch(late)
    reply, *ends = asker.finish([Sampled((7,))], late)
    assert isinstance(reply, SendMessage)
    assert ends == ([EndSequence(part.sequence_id)] if kind == PREFILL else [])
    if kind == PREFILL:
        assert untimed(reply.message) == PrefillDone(R1, [7], 3 * PAGE, P0, 3 * PAGE)
    else:
        assert isinstance(reply.message, TokensOut)
        assert reply.message.outs[0].cached_tokens == 3 * PAGE
        assert reply.message.outs[0].fetched_tokens == 3 * PAGE
    assert fetched_and_computed(asker) == (3 * PAGE, len(PROMPT) - 3 * PAGE)
    assert asker.load().counters.pages_received == 3
    (link,) = asker.load().links
    assert (link.peer, link.direction) == ("p1", "in")
    assert link.exposed_s_total == pytest.approx(late if why == "late" else just_before)


@both_kinds
def test_time_spent_on_a_fetch_is_exposed(kind: str) -> None:
    asker, request = asker_of(kind)
    asker.handle(request, 1.0)
    asker.next_batch(2.0)
    assert asker.load().links == ()
    asker.handle(PagesReceived(R1), 3.5)
    assert asker.load().links == (LinkLoad("p1", "in", exposed_s_total=1.5),)


def test_a_prompt_for_a_prefill_node_waits_for_pages_that_decode_fetches() -> None:
    decode = decode_scheduler()
    decode.handle(generate("here", PROMPT, prefill="", fetch=(P1, OWNER, 4)), 0.0)
    decode.handle(generate("there", PROMPT), 0.0)
    _, instructions = decode.next_batch(0.0)
    assert not messages(instructions, Prefill)
    decode.handle(PagesArrived(Attempt("here", 1), 2), 0.0)
    assert not messages(decode.next_batch(0.0)[1], Prefill)
    decode.handle(PagesReceived(Attempt("here", 1)), 0.0)
    (prefill,) = messages(decode.next_batch(0.0)[1], Prefill)
    assert isinstance(prefill, Prefill)
    assert prefill.skip_pages == 4, "it does not wait for what is computed here"


@both_kinds
def test_a_cancelled_fetch_is_aborted_and_leaves_no_page(kind: str) -> None:
    asker, request = asker_of(kind)
    asker.handle(request, 0.0)
    asker.next_batch(0.0)
    assert asker.load().held_pages > 0
    assert asker.handle(Cancel(R1), 0.0) == [AbortTransfer(R1)]
    assert asker.load().held_pages == asker.load().queued_tokens == 0
    assert asker.handle(PagesReceived(R1), 0.0) == []
    assert asker.handle(FetchRefused(R1, "late", P1), 0.0) == []
    assert asker.next_batch(9.0) == ([], [])


@both_kinds
def test_a_newer_attempt_aborts_the_fetch_of_the_older_one(kind: str) -> None:
    asker, request = asker_of(kind)
    asker.handle(request, 0.0)
    asker.next_batch(0.0)
    assert isinstance(request, Prefill | Generate)
    newer = msgspec.structs.replace(request, attempt=Attempt("r", 2))
    assert asker.handle(newer, 0.0) == [AbortTransfer(R1)]
    _, (expect, _) = asker.next_batch(0.0)
    assert isinstance(expect, ExpectPages) and expect.transfer == Attempt("r", 2)


def test_a_job_whose_cached_pages_cannot_be_sent_fetches_no_longer() -> None:
    prefill = prefill_scheduler()
    prefill.handle(plain(PREFILL, PROMPT[:40]), 0.0)
    compute(prefill)
    prefill.handle(prefill_request(), 0.0)
    _, instructions = prefill.next_batch(0.0)
    assert [type(i) for i in instructions] == [SendPages, ExpectPages, SendMessage]
    broken = prefill.handle(PagesSent(R1, "peer lost"), 0.0)
    failed = Failed(R1, "peer lost", "node", P0)
    assert broken == [AbortTransfer(R1), SendMessage(DECODE, failed)]
    assert prefill.load().held_pages == 0


@both_kinds
@pytest.mark.parametrize("fetch_pages", [0, 1, 6, 7, 1000])
def test_it_asks_for_what_it_lacks_and_never_for_the_last_token(
    kind: str, fetch_pages: int
) -> None:
    """It has 2 of the prompt's 7 full pages; the last page holds the last token."""
    asker, request = asker_of(kind, PROMPT + list(range(200, 212)), fetch_pages=fetch_pages)
    asker.handle(plain(kind, PROMPT[:40]), 0.0)
    compute(asker)
    asker.handle(request, 0.0)
    slices, instructions = asker.next_batch(0.0)
    asked = messages(instructions, Fetch)
    if fetch_pages <= 2:
        assert slices and not asked and not [i for i in instructions if isinstance(i, ExpectPages)]
        return
    (fetch,) = asked
    (expect,) = [i for i in instructions if isinstance(i, ExpectPages)]
    assert isinstance(fetch, Fetch) and fetch.skip_pages == 2
    assert len(split_hashes(fetch.hashes)) == 6
    assert len(expect.pages) == 4


@both_kinds
def test_a_node_does_not_ask_itself(kind: str) -> None:
    if kind == PREFILL:
        asker: Scheduler = prefill_scheduler()
        asker.handle(prefill_request(owner=P0), 0.0)
    else:
        asker = decode_scheduler()
        asker.handle(generate("r", PROMPT, prefill="", fetch=(D0, DECODE, 6)), 0.0)
    slices, instructions = asker.next_batch(0.0)
    assert slices and not [i for i in instructions if not isinstance(i, StreamPages)]


def test_decode_passes_the_owner_on_to_prefill() -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", PROMPT, fetch=(P1, OWNER, 5)), 0.0)
    _, instructions = decode.next_batch(0.0)
    assert not messages(instructions, Fetch)
    (prefill,) = messages(instructions, Prefill)
    assert isinstance(prefill, Prefill)
    assert (prefill.fetch_node, prefill.fetch_address, prefill.fetch_pages) == (P1, OWNER, 5)


# All together


def test_decode_lends_its_pages_to_the_prefill_that_computes_for_it() -> None:
    """Directions differ, the attempt is the same: d0 serves p0 and awaits p0's pages."""
    nodes = LoneNodes()
    nodes.ask("d0", "turn-1", PROMPT)
    nodes.run()
    longer = PROMPT + [99] * 60
    nodes.ask("d0", "turn-2", longer, prefill="p0", owner="d0", owned_pages=6)
    nodes.run()
    assert nodes.answers["turn-2"].reused == (6 * PAGE, 4, 6 * PAGE)
    computed = nodes.load("p0").counters.computed_tokens
    assert (nodes.load("p0").counters.fetched_tokens, computed) == (
        6 * PAGE,
        len(longer) - 6 * PAGE,
    )
    assert nodes.load("d0").counters.pages_received == 4, "decode gets only what it lacks"
