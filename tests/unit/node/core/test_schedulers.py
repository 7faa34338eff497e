"""What schedulers do with answers and with prompts for others, alone and together."""

from __future__ import annotations

import msgspec
import pytest

from engine.batches.sequence import Sampled
from node.core.instructions import (
    AbortTransfer,
    CancelSends,
    EndSequence,
    ExpectPages,
    Instruction,
    PagesReceived,
    PagesSent,
    ReceiveFailed,
    SendMessage,
    StreamPages,
)
from node.core.scheduler import Scheduler
from protocol.hashing import token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import (
    Cancel,
    Failed,
    FailureKind,
    Prefill,
    PrefillDone,
    TokensOut,
)
from protocol.namespace import SHARED, Namespace
from protocol.sampling import Sampling
from tests.support.node.lone_nodes import LoneNodes
from tests.support.node.schedulers import (
    COORDINATOR,
    DECODE,
    P0,
    PAGE,
    PREFILL,
    STOP,
    compute,
    decode_scheduler,
    generate,
    prefill_scheduler,
)
from tests.support.node.untimed import without_times


def test_decode_reserves_first_and_asks_only_for_what_it_lacks() -> None:
    decode = decode_scheduler()
    prompt = list(range(1, 101))  # 6 full pages and a part
    decode.handle(generate("r", prompt, prefill=""), 0.0)
    compute(decode)
    decode.handle(generate("s", prompt + [7] * 20), 0.0)
    _, (expect, send) = decode.next_batch(0.0)
    assert isinstance(expect, ExpectPages) and isinstance(send, SendMessage)
    assert isinstance(send.message, Prefill)
    assert send.message.skip_pages == 6
    assert len(expect.pages) == 2  # of the 8 pages of 120 tokens


def test_prefill_sends_each_chunk_with_its_step_and_nothing_twice() -> None:
    scheduler = prefill_scheduler(chunk=32)
    attempt = Attempt("r", 1)
    prompt = list(range(1, 101))
    request = Prefill(attempt, token_bytes(prompt), SHARED, Sampling(), 1, "reply", ("data",))
    assert scheduler.handle(request, 0.0) == []
    streamed: list[list[int]] = []
    done: list[Instruction] = []
    while not done:
        (part,), (stream,) = scheduler.next_batch(0.0)
        assert isinstance(stream, StreamPages)
        assert list(part.pages[stream.offset + 1 :][: len(stream.pages)]) == stream.pages
        streamed.append(list(range(stream.offset, stream.offset + len(stream.pages))))
        done = scheduler.finish([Sampled((7,)) if part.sampling else None], 0.0)
    assert streamed == [[0], [1, 2], [3, 4], [5]]  # 7 pages, of which decode has the first
    reply = SendMessage("reply", PrefillDone(attempt, [7], 0, P0))
    assert without_times(done) == [reply, EndSequence(part.sequence_id)]
    assert scheduler.next_batch(0.0) == ([], [])
    assert scheduler.load().num_running == 0
    for _ in range(4):
        assert scheduler.load().held_pages == 7, "its pages may not change while they are sent"
        scheduler.handle(PagesSent(attempt), 0.0)
    assert scheduler.load().held_pages == 0


@pytest.mark.parametrize(
    ("address", "sampled", "is_told"),
    [("coordinator", (7,), True), ("coordinator", (7, 8), False), ("", (7,), False)],
)
def test_prefill_tells_the_one_first_token_to_whom_it_may(
    address: str, sampled: tuple[int, ...], is_told: bool
) -> None:
    scheduler, attempt = prefill_scheduler(), Attempt("r", 1)
    scheduler.handle(
        Prefill(
            attempt,
            token_bytes(list(range(1, 21))),
            SHARED,
            Sampling(),
            0,
            "reply",
            ("data",),
            answer_address=address,
        ),
        0.0,
    )
    scheduler.next_batch(1.0)
    sends = [
        one for one in scheduler.finish([Sampled(sampled)], 3.0) if isinstance(one, SendMessage)
    ]
    addresses = [send.address for send in sends]
    assert addresses == (["coordinator", "reply"] if is_told else ["reply"])
    if not is_told:
        return
    told, done = (send.message for send in sends)
    assert isinstance(told, TokensOut) and isinstance(done, PrefillDone)
    (out,) = told.outs
    assert (out.attempt, out.start, out.tokens, out.finish) == (attempt, 0, [7], "")
    assert out.transferred_pages == 2 and out.prefill_times == done.times
    assert done.times is not None and done.times.total_s == 3.0


def test_prompts_that_begin_alike_compute_their_common_pages_once() -> None:
    """Three at once on one prefill node; a fourth that shares nothing does not wait for them."""
    nodes = LoneNodes()
    common = list(range(1, 4 * PAGE + 1))
    prompts = {f"r{i}": [*common, *range(50 + i, 60 + i)] for i in range(3)}
    prompts["other"] = list(range(7, 7 + PAGE))
    for name, prompt in prompts.items():
        nodes.ask("d0", name, prompt, prefill="p0")
    nodes.run()
    own = sum(len(prompt) - len(common) for name, prompt in prompts.items() if name != "other")
    computed = nodes.load("p0").counters.computed_tokens
    assert computed == len(common) + own + len(prompts["other"])


def test_a_decode_node_computes_common_pages_once() -> None:
    nodes = LoneNodes()
    prompt = list(range(1, 5 * PAGE + 4))
    for i in range(3):
        nodes.ask("d0", f"r{i}", prompt)
    nodes.run()
    computed = nodes.load("d0").counters.computed_tokens
    assert computed == len(prompt) + 2 * 3, "all, then the last page"


def test_a_prompt_that_waited_for_one_that_was_given_up_computes_all() -> None:
    prefill = prefill_scheduler(chunk=PAGE)
    prompt = list(range(1, 4 * PAGE + 4))
    for name in ("first", "second"):
        request = generate(name, prompt)
        prefill.handle(
            Prefill(
                request.attempt, request.tokens, SHARED, request.sampling, 0, DECODE, (DECODE,)
            ),
            0.0,
        )
    slices, _ = prefill.next_batch(0.0)
    assert len(slices) == 1, "the second one waits"
    prefill.finish([None], 0.0)
    prefill.handle(Cancel(Attempt("first", 1)), 0.0)
    slices, _ = prefill.next_batch(0.0)
    assert len(slices) == 1
    assert slices[0].start == PAGE, "one page was done"


def test_what_can_never_fit_is_refused_for_good() -> None:
    decode = decode_scheduler(num_pages=4)
    (send,) = decode.handle(generate("r", [1] * 60, max_new_tokens=10), 0.0)
    assert isinstance(send, SendMessage) and isinstance(send.message, Failed)
    assert send.message.kind == "request"
    assert "5 pages" in send.message.reason and "has 4" in send.message.reason


@pytest.mark.parametrize("kind", [PREFILL, DECODE])
def test_queues_are_bounded(kind: str) -> None:
    decode = decode_scheduler(waiting=2)
    prefill = prefill_scheduler(waiting=2)
    replies: list[Instruction] = []
    for number in range(3):
        attempt = Attempt(f"r{number}", 1)
        if kind == DECODE:
            replies += decode.handle(generate(f"r{number}", [1] * 20), 0.0)
        else:
            request = Prefill(
                attempt, token_bytes([1] * 20), SHARED, Sampling(), 0, "me", ("data",)
            )
            replies += prefill.handle(request, 0.0)
    (send,) = replies
    assert isinstance(send, SendMessage) and isinstance(send.message, Failed)
    assert send.message.kind == "busy"
    assert "2 " in send.message.reason


def test_a_request_waits_while_pages_are_held_and_runs_when_they_come_back() -> None:
    decode = decode_scheduler(num_pages=8)
    decode.handle(generate("a", [1] * 90, 10, prefill=""), 0.0)  # 7 pages
    decode.handle(generate("b", [2] * 30, 10, prefill=""), 0.0)  # 3 pages
    slices, _ = decode.next_batch(0.0)
    assert [part.token_ids[0] for part in slices] == [1]
    assert decode.load().num_waiting == 1
    decode.finish([None], 0.0)
    decode.handle(Cancel(Attempt("a", 1)), 0.0)
    slices, _ = decode.next_batch(0.0)
    assert [part.token_ids[0] for part in slices] == [2]


def test_a_prefill_that_never_comes_fails_in_time_and_is_aborted_before_its_pages_go() -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40), 0.0)
    decode.next_batch(0.0)
    assert decode.next_batch(9.9) == ([], [])
    _, instructions = decode.next_batch(10.0)
    assert isinstance(instructions[0], AbortTransfer)
    failures = [i.message for i in instructions if isinstance(i, SendMessage)]
    assert any(isinstance(m, Failed) and "10 s" in m.reason for m in failures)
    assert decode.load().held_pages == 0


def test_a_broken_receive_fails_the_attempt() -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40), 0.0)
    decode.next_batch(0.0)
    instructions = decode.handle(ReceiveFailed(Attempt("r", 1), "peer lost"), 0.0)
    failed = [i.message for i in instructions if isinstance(i, SendMessage)][-1]
    assert isinstance(failed, Failed) and failed.reason == "peer lost"
    assert (failed.kind, failed.node) == ("node", P0), "the sender is to be avoided"
    assert decode.load().held_pages == 0


@pytest.mark.parametrize("kind", ["node", "busy"])
def test_what_prefill_says_of_itself_reaches_the_coordinator(kind: FailureKind) -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40), 0.0)
    decode.next_batch(0.0)
    failed = Failed(Attempt("r", 1), "no room", kind, P0)
    assert SendMessage(COORDINATOR, failed) in decode.handle(failed, 0.0)
    assert decode.load().held_pages == 0


@pytest.mark.parametrize("first_tokens", [[], [7]])
def test_what_a_prefill_node_leaves_out_fails_the_attempt_and_not_the_node(
    first_tokens: list[int],
) -> None:
    """Logprobs of the prompt were asked for, and none come."""
    decode = decode_scheduler()
    sampling = Sampling(num_top_logprobs=0, prompt_logprobs_from=5, prompt_length=40)
    wanted = Sampling(temperature=0.0) if not first_tokens else sampling
    decode.handle(generate("r", [1] * 40, sampling=wanted), 0.0)
    decode.next_batch(0.0)
    told = decode.handle(PrefillDone(Attempt("r", 1), first_tokens, 0, P0), 0.0)
    said = [one.message for one in told if isinstance(one, SendMessage)]
    assert any(isinstance(one, Failed) and one.node == P0 for one in said)
    assert decode.load().held_pages == 0


@pytest.mark.parametrize("max_new_tokens", [0, 1])
def test_a_stop_token_ends_only_an_answer_that_may_have_tokens(max_new_tokens: int) -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40, max_new_tokens, prefill=""), 0.0)
    while slices := decode.next_batch(0.0)[0]:
        told = decode.finish([Sampled((STOP,)) if slices[0].sampling else None], 0.0)
        ends = [EndSequence(slices[0].sequence_id)]
    *before, out = told
    assert before == ends
    assert isinstance(out, SendMessage) and isinstance(out.message, TokensOut)
    (token,) = out.message.outs
    assert (token.tokens, token.finish) == (([STOP], "stop") if max_new_tokens else ([], "length"))


def test_a_step_that_failed_costs_its_requests_their_attempt_and_no_page() -> None:
    decode, prefill = decode_scheduler(), prefill_scheduler()
    decode.handle(generate("r", [1] * 40, prefill=""), 0.0)
    prefill.handle(
        Prefill(Attempt("s", 1), token_bytes([1] * 40), SHARED, Sampling(), 0, "d", ("x",)), 0
    )
    for scheduler, address, node in ((decode, COORDINATOR, Node("d0", 1)), (prefill, "d", P0)):
        ((part,), _) = scheduler.next_batch(0.0)
        attempt = Attempt("r" if scheduler is decode else "s", 1)
        failed = SendMessage(address, Failed(attempt, "no memory", "node", node))
        streams = [] if scheduler is decode else [CancelSends(attempt)]
        assert scheduler.abandon({0}, "no memory", "node", 0.0) == [
            EndSequence(part.sequence_id),
            *streams,
            failed,
        ]
        assert scheduler.finish([], 0.0) == []
        assert scheduler.next_batch(0.0) == ([], [])
        if scheduler is prefill:
            assert scheduler.load().held_pages == 3
            assert scheduler.handle(PagesSent(attempt, "cancelled"), 0.0) == []
        assert scheduler.load().held_pages == 0


def test_a_newer_attempt_replaces_the_older_one() -> None:
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40), 0.0)
    decode.next_batch(0.0)
    instructions = decode.handle(generate("r", [1] * 40, number=2), 0.0)
    assert instructions[0] == AbortTransfer(Attempt("r", 1))
    late = PrefillDone(Attempt("r", 1), [9], 0, Node("p0", 1))
    assert decode.handle(late, 0.0) == []
    assert decode.handle(PagesReceived(Attempt("r", 1)), 0.0) == []


@pytest.mark.parametrize("kind", [PREFILL, DECODE])
def test_pages_belong_to_the_tenant_who_asked(kind: str) -> None:
    scheduler: Scheduler
    if kind == PREFILL:
        scheduler = prefill_scheduler()
        scheduler.handle(
            Prefill(
                Attempt("r", 1),
                token_bytes([1] * 40),
                Namespace("acme"),
                Sampling(),
                0,
                "d",
                ("d",),
            ),
            0.0,
        )
    else:
        scheduler = decode_scheduler()
        request = generate("r", [1] * 40, 1, prefill="")
        scheduler.handle(msgspec.structs.replace(request, namespace=Namespace("acme")), 0.0)
    while slices := scheduler.next_batch(0.0)[0]:
        scheduler.finish([Sampled((7,)) if part.sampling else None for part in slices], 0.0)
    if kind == PREFILL:
        for _ in range(2):
            scheduler.handle(PagesSent(Attempt("r", 1)), 0.0)
    assert scheduler._cache.flush("") == 0
    assert scheduler._cache.flush("acme") == 3, "the page that is not full is cached, too"
