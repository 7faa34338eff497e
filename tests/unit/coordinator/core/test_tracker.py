"""One request, its attempts, and exactly one end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coordinator.answers.answer import Answer, AnswerError, FinishReason
from coordinator.answers.request import Request
from coordinator.core.demands import DemandMaker
from coordinator.core.instructions import (
    AnswerChanged,
    AnswerEnded,
    Instruction,
    Send,
)
from coordinator.core.patience import BUSY_RETRY_S, MAX_FAILURES, RETRY_WITHIN_S
from coordinator.core.statistics import Statistics
from coordinator.core.tracker import Tracker
from coordinator.routing.route import NoRoute
from protocol import hashing
from protocol.hashing import tokens_from_bytes
from protocol.ids import Attempt, Node
from protocol.messages import Cancel, Failed, Generate, TokenOut, TokensOut
from protocol.sampling import Sampling, TokenLogprobs
from tests.support.coordinator.nodes import Nodes, booked, load_of
from tests.support.coordinator.tracking import LONG, request, tick, tokens_of, tracker_of
from tests.support.models.tokenizers import character_pieces

D0, D1, P0 = Node("d0", 1), Node("d1", 1), Node("p0", 1)


def sent(outcomes: list[Instruction]) -> Generate:
    messages = [o.message for o in outcomes if isinstance(o, Send)]
    generates = [m for m in messages if isinstance(m, Generate)]
    assert len(generates) == 1
    return generates[0]


def start(*names: str) -> tuple[Tracker, Nodes, Generate]:
    """With a request that was sent; to d0 if there is a choice."""
    nodes = Nodes(*names)
    tracker = tracker_of(nodes)
    for name in set(names) - {"p0", "d0"}:
        nodes.join(name, load_of(num_running=7, queued_tokens=10))
    return tracker, nodes, sent(tracker.submit(request(), 0.0))


def stray(attempt: Attempt, name: str = "d0") -> Send:
    """What is sent to a node that works on something that nobody waits for."""
    return Send(f"tcp://{name}:1", Cancel(attempt))


def lose(tracker: Tracker, nodes: Nodes, name: str, now: float) -> list[Instruction]:
    return tracker.node_lost(nodes.leave(name), now)


def ended(outcomes: list[Instruction]) -> dict[str, str]:
    """By request id, the kind of error that it ended with, or how it ended well."""
    answers = [o.answer for o in outcomes if isinstance(o, AnswerEnded)]
    return {a.request_id: a.error.kind if a.error else a.finish_reason.kind for a in answers}  # type: ignore[union-attr]


def test_tokens_until_the_end() -> None:
    tracker, _, generate = start("p0", "d0")
    assert generate.reply_address == "tcp://me:1"
    assert generate.prefill_address == "tcp://p0:1"
    assert tokens_from_bytes(generate.tokens) == [1, 2, 3]
    (changed,) = tracker.tokens(tokens_of(generate.attempt, 7), 0.1)
    assert isinstance(changed, AnswerChanged) and changed.answer.output_ids == [7]
    (end,) = tracker.tokens(tokens_of(generate.attempt, 0, finish="stop", start=1), 0.2)
    assert isinstance(end, AnswerEnded) and end.answer.output_ids == [7, 0]
    assert end.answer.finish_reason == FinishReason("stop", matched=0)
    assert end.answer.num_attempts == 1
    assert len(tracker) == 0
    assert tracker.tokens(tokens_of(generate.attempt, 9), 0.3) == [stray(generate.attempt)]


def test_a_gap_in_the_tokens_is_a_failure_and_what_was_told_stays() -> None:
    tracker, _, generate = start("d0", "d1")
    tracker.tokens(tokens_of(generate.attempt, 7, 8), 0.1)
    outcomes = tracker.tokens(tokens_of(generate.attempt, 9, start=3), 0.2)
    assert Send("tcp://d0:1", Cancel(generate.attempt)) in outcomes
    again = sent(outcomes)
    assert tokens_from_bytes(again.tokens) == [1, 2, 3, 7, 8]
    (changed,) = tracker.tokens(tokens_of(again.attempt, 9, node=D1), 0.3)
    assert isinstance(changed, AnswerChanged) and changed.answer.output_ids == [7, 8, 9]


def test_a_first_token_that_comes_from_both_nodes_counts_once() -> None:
    tracker, _, generate = start("p0", "d0")
    attempt = generate.attempt
    (changed,) = tracker.tokens(tokens_of(attempt, 7, node=P0), 0.1)
    assert isinstance(changed, AnswerChanged) and changed.answer.output_ids == [7]
    assert tracker.tokens(tokens_of(attempt, 7), 0.2) == [], "nothing is new"
    (changed,) = tracker.tokens(tokens_of(attempt, 8, start=1), 0.3)
    assert isinstance(changed, AnswerChanged) and changed.answer.output_ids == [7, 8]
    late = tracker.tokens(tokens_of(attempt, 7, node=P0), 0.4)
    assert late == [] and changed.answer.output_ids == [7, 8], "the short way may be the longer one"


@pytest.mark.parametrize(
    ("token", "max_new_tokens", "finish"),
    [(0, 8, FinishReason("stop", matched=0)), (7, 1, FinishReason("length"))],
)
@pytest.mark.parametrize("is_paused", [True, False])
def test_a_first_token_that_is_the_last_one_ends_the_answer_whoever_is_lost(
    token: int, max_new_tokens: int, finish: FinishReason, is_paused: bool
) -> None:
    """The prefill node does not say that nothing follows, and the decode node has no time to."""
    nodes = Nodes("p0", "d0")
    tracker = tracker_of(nodes)
    asked = request(max_new_tokens=max_new_tokens)
    generate = sent(tracker.submit(asked, 0.0))
    tracker.tokens(tokens_of(generate.attempt, token, node=P0), 0.1)
    assert generate.prefill_node == P0 and len(tracker) == 1
    outcomes = tracker.pause(0.2) if is_paused else lose(tracker, nodes, "d0", 0.2)
    assert list(ended(outcomes)) == [asked.request_id]
    assert asked.finish_reason == finish and asked.output_ids == [token]
    assert not [o for o in outcomes if isinstance(o, Send) and isinstance(o.message, Generate)]
    assert len(tracker) == 0 and booked(nodes.placement) == {}


def test_nodes_that_tell_different_tokens_have_failed_and_what_was_told_stays() -> None:
    tracker, _, generate = start("p0", "d0", "d1")
    tracker.tokens(tokens_of(generate.attempt, 7, node=P0), 0.1)
    outcomes = tracker.tokens(tokens_of(generate.attempt, 9), 0.2)
    assert Send("tcp://d0:1", Cancel(generate.attempt)) in outcomes
    assert tokens_from_bytes(sent(outcomes).tokens) == [1, 2, 3, 7]


def test_logprobs_come_with_their_tokens_or_the_attempt_has_failed() -> None:
    nodes = Nodes("d0", "d1")
    tracker = tracker_of(nodes)
    nodes.join("d1", load_of(num_running=7, queued_tokens=10))
    sampling = Sampling(seed=5, prompt_length=3, num_top_logprobs=0)
    generate = sent(tracker.submit(request(sampling=sampling), 0.0))
    logprobs = [TokenLogprobs(-0.25), TokenLogprobs(-1.5)]
    out = TokenOut(generate.attempt, 0, [7, 8], logprobs=logprobs)
    (changed,) = tracker.tokens(TokensOut([out], D0), 0.1)
    assert isinstance(changed, AnswerChanged) and changed.answer.logprobs == logprobs
    again = sent(tracker.tokens(tokens_of(generate.attempt, 9, start=2), 0.2))
    assert tokens_from_bytes(again.tokens) == [1, 2, 3, 7, 8]
    assert again.sampling == sampling, "the prompt became longer, not what the client sent"


def test_tokens_count_only_from_the_node_that_was_asked() -> None:
    tracker, _, generate = start("d0", "d1")
    outcomes = tracker.tokens(tokens_of(generate.attempt, 7, node=D1), 0.1)
    assert outcomes == [stray(generate.attempt, "d1")]


def test_a_lost_decode_node_is_replaced_and_the_answer_goes_on() -> None:
    tracker, nodes, generate = start("p0", "d0", "d1")
    tracker.tokens(tokens_of(generate.attempt, 7, 8), 0.1)
    again = sent(lose(tracker, nodes, "d0", 1.0))
    assert again.attempt == Attempt("r", 2)
    assert tokens_from_bytes(again.tokens) == [1, 2, 3, 7, 8]
    assert again.max_new_tokens == 6
    assert again.sampling == generate.sampling, "a retry draws the same tokens"
    assert tracker.tokens(tokens_of(generate.attempt, 9), 1.1) == [], "the old attempt is void"


def test_a_node_that_was_only_stopped_hears_that_its_attempt_is_over() -> None:
    """It may be waiting for pages, and would hold its own for as long as it waits."""
    tracker, nodes, generate = start("p0", "d0", "d1")
    node = Node("d0", 1)
    lose(tracker, nodes, "d0", 1.0)
    nodes.join("d0")
    assert tracker.node_heard(node) == [Send("tcp://d0:1", Cancel(generate.attempt))]
    assert tracker.node_heard(node) == [], "once"


def test_a_prefill_node_is_needed_until_the_first_token_only() -> None:
    tracker, nodes, generate = start("p0", "d0")
    tracker.tokens(tokens_of(generate.attempt, 7), 0.1)
    assert lose(tracker, nodes, "p0", 0.2) == []
    tracker, nodes, generate = start("p0", "d0")
    outcomes = lose(tracker, nodes, "p0", 0.2)
    assert Send("tcp://d0:1", Cancel(generate.attempt)) in outcomes
    assert sent(outcomes).prefill_address == ""


def test_without_any_node_it_waits_until_its_deadline_then_fails_once() -> None:
    tracker, nodes, _ = start("d0")
    assert lose(tracker, nodes, "d0", 1.0) == []
    assert tick(tracker, 500.0) == tracker.time_out(600.0, 500.0) == []
    (end,) = tracker.time_out(600.0, 601.0)
    assert ended([end]) == {"r": "unavailable"}
    assert end.answer.error.message == "node d0 was lost, and no node is alive, for up to 600 s"  # type: ignore[union-attr]
    assert tick(tracker, 700.0) == []


def test_a_node_that_comes_back_in_time_gets_the_request() -> None:
    tracker, nodes, _ = start("d0")
    lose(tracker, nodes, "d0", 1.0)
    nodes.join("d1")
    assert sent(tick(tracker, 2.0)).attempt.number == 2


def test_requests_wait_for_busy_nodes_as_long_as_it_takes() -> None:
    nodes = Nodes("d0")
    tracker = tracker_of(nodes)
    first = sent(tracker.submit(request("a", num_tokens=LONG), 0.0))
    assert tracker.submit(request("b"), 0.0) == [] and tracker.num_waiting == 1
    now = 0.0
    while now < 10 * RETRY_WITHIN_S:
        now += 0.5
        nodes.heard("d0", load_of(queued_tokens=LONG), now)
        assert tick(tracker, now) == []
    tracker.tokens(tokens_of(first.attempt, 7), now)
    nodes.heard("d0", load_of(), now)
    assert sent(tracker.dispatch(now)).attempt == Attempt("b", 1)
    assert tracker.num_waiting == 0


def test_a_request_that_comes_while_all_nodes_are_down_waits_for_one() -> None:
    nodes = Nodes("d0")
    tracker = tracker_of(nodes)
    tracker.node_lost(nodes.leave("d0"), 1.0)
    assert tracker.submit(request("a"), 2.0) == [] and tick(tracker, 9.0) == []
    nodes.join("d0", incarnation=2, now=15.0)
    assert sent(tick(tracker, 15.0)).attempt == Attempt("a", 1)


def test_requests_that_wait_while_all_nodes_die_end_too() -> None:
    nodes = Nodes("d0")
    tracker = tracker_of(nodes)
    tracker.submit(request("a", num_tokens=LONG), 0.0)
    tracker.submit(request("b"), 0.0)
    assert lose(tracker, nodes, "d0", 1.0) == []
    assert tick(tracker, 1.0) == []
    assert ended(tracker.time_out(60.0, 61.0)) == {"a": "unavailable", "b": "unavailable"}
    assert len(tracker) == tracker.num_waiting == 0


def test_a_retry_that_waits_keeps_its_place() -> None:
    """It is sent before a request of the same size that came later."""
    tracker, nodes, _ = start("d0", "d1")
    for name in ("d0", "d1"):
        nodes.heard(name, load_of(queued_tokens=LONG), 0.1)
    assert tracker.submit(request("later", now=0.2), 0.2) == []
    assert lose(tracker, nodes, "d0", 0.3) == []
    nodes.heard("d1", load_of(), 3.0)
    attempts = [o.message.attempt for o in tracker.dispatch(3.0) if isinstance(o, Send)]  # type: ignore[union-attr]
    assert attempts == [Attempt("r", 2), Attempt("later", 1)]


def test_each_lack_of_nodes_is_waited_for_anew() -> None:
    tracker, nodes, _ = start("d0")
    lose(tracker, nodes, "d0", 1.0)
    nodes.heard("d1", load_of(queued_tokens=1_000_000), 2.0)
    assert tick(tracker, 2.0) == [] and tracker.num_waiting == 1
    later = 5 * RETRY_WITHIN_S
    lose(tracker, nodes, "d1", later)
    assert ended(tick(tracker, later)) == {}


def test_attempts_are_bounded() -> None:
    tracker, _, _ = start("d0", "d1")
    for number in range(1, MAX_FAILURES):
        failed = Failed(Attempt("r", number), "broken", "node", D0)
        assert sent(tracker.failed(failed, 0.0)).attempt.number == number + 1
    last = Failed(Attempt("r", MAX_FAILURES), "broken", "node", D0)
    (end,) = tracker.failed(last, 0.0)
    assert isinstance(end, AnswerEnded) and end.answer.error is not None
    assert "4 attempts" in end.answer.error.message and end.answer.error.kind == "unavailable"


def test_what_no_retry_can_mend_ends_at_once() -> None:
    tracker, _, generate = start("d0")
    failed = Failed(generate.attempt, "too long", "request", D0)
    (end,) = tracker.failed(failed, 0.0)
    assert isinstance(end, AnswerEnded) and end.answer.num_attempts == 1
    assert end.answer.error == AnswerError("bad_request", "too long")


def test_a_prefill_node_that_failed_is_not_asked_again() -> None:
    tracker, _, generate = start("p0", "p1", "d0")
    addresses = [generate.prefill_address]
    for number in (1, 2):
        node = generate.prefill_node
        assert node is not None
        generate = sent(tracker.failed(Failed(Attempt("r", number), "broken", "node", node), 0.0))
        addresses.append(generate.prefill_address)
    assert set(addresses[:2]) == {"tcp://p0:1", "tcp://p1:1"}
    assert addresses[2] == "", "decode prefills for itself"


def test_busy_nodes_are_asked_again_later_and_cost_no_attempt() -> None:
    tracker, _, generate = start("d0", "d1")
    busy = Failed(generate.attempt, "full", "busy", D0)
    generate = sent(tracker.failed(busy, 0.0))
    now, decode = 0.0, D1
    for _ in range(3 * MAX_FAILURES):
        outcomes = tracker.failed(Failed(generate.attempt, "full", "busy", decode), now)
        if not outcomes:
            assert tick(tracker, now + BUSY_RETRY_S / 2) == []
            now += BUSY_RETRY_S
            outcomes = tick(tracker, now)
        generate, decode = sent(outcomes), D0
    outcomes = tracker.failed(Failed(generate.attempt, "full", "busy", D0), RETRY_WITHIN_S)
    assert ended(outcomes) == {"r": "too_busy"}


def test_a_busy_node_long_after_another_one_is_waited_for_again() -> None:
    tracker, _, generate = start("d0", "d1")
    again = sent(tracker.failed(Failed(generate.attempt, "full", "busy", D0), 0.0))
    later = 3 * RETRY_WITHIN_S
    outcomes = tracker.failed(Failed(again.attempt, "full", "busy", D1), later)
    assert ended(outcomes) == {}


def test_cancel_tells_the_decode_node_and_ends_the_answer() -> None:
    tracker, nodes, generate = start("p0", "d0")
    cancel, end = tracker.cancel("r", 0.1)
    assert cancel == Send("tcp://d0:1", Cancel(generate.attempt))
    assert ended([end]) == {"r": "client_left"}
    assert tracker.cancel("r", 0.1) == []
    assert len(tracker) == 0 and booked(nodes.placement) == {}


def test_cancel_of_a_request_that_waits_tells_no_node() -> None:
    nodes = Nodes("d0")
    tracker = tracker_of(nodes)
    tracker.submit(request("a", num_tokens=LONG), 0.0)
    tracker.submit(request("b"), 0.0)
    assert ended(tracker.cancel("b", 0.1)) == {"b": "client_left"}
    assert len(tracker) == 1 and tracker.num_waiting == 0


def test_no_route_at_submission_keeps_nothing() -> None:
    nodes = Nodes()
    nodes.join("d0", num_pages=1)
    tracker = tracker_of(nodes)
    with pytest.raises(NoRoute):
        tracker.submit(request(num_tokens=LONG), 0.0)
    assert len(tracker) == tracker.num_waiting == 0


def test_booked_work_shrinks_with_the_first_token() -> None:
    tracker, nodes, generate = start("p0", "d0")
    prompt_s = 0.01 + 3 / 1000
    assert booked(nodes.placement) == {"p0": (1, prompt_s), "d0": (1, 0.0)}
    tracker.tokens(tokens_of(generate.attempt, 7), 0.1)
    assert booked(nodes.placement) == {"d0": (1, 0.0)}
    tracker.tokens(tokens_of(generate.attempt, 0, finish="stop", start=1), 0.2)
    assert booked(nodes.placement) == {}


def test_a_node_that_cannot_be_reached_is_one_that_failed() -> None:
    tracker, _, generate = start("d0", "d1")
    outcomes = tracker.undeliverable(generate.attempt, 0.0)
    assert not any(isinstance(outcome, Send) for outcome in outcomes), "it is queued again"
    again = sent(tracker.dispatch(0.0))
    assert again.attempt.number == 2
    assert tracker.undeliverable(generate.attempt, 0.1) == [], "an attempt that is over"


def test_an_end_says_how_many_attempts_there_were() -> None:
    tracker, _, _ = start("d0", "d1")
    for number in range(1, MAX_FAILURES + 1):
        outcomes = tracker.failed(Failed(Attempt("r", number), "broken", "node", D0), 0.0)
    (end,) = outcomes
    assert isinstance(end, AnswerEnded) and end.answer.num_attempts == MAX_FAILURES


def test_requests_of_a_lost_node_go_in_their_order() -> None:
    """The short one goes first, though it was lost last."""
    nodes = Nodes("d0")
    tracker = tracker_of(nodes)
    for name, num_tokens in (("long", 30), ("short", 20)):
        sent(tracker.submit(request(name, num_tokens=num_tokens), 0.0))
    nodes.join("d1")
    outcomes = lose(tracker, nodes, "d0", 0.01)
    sends = [o.message for o in outcomes if isinstance(o, Send)]
    order = [m.attempt.request_id for m in sends if isinstance(m, Generate)]
    assert order == ["short", "long"]


def test_what_waits_is_hashed_again_when_the_model_changes() -> None:
    nodes = Nodes("d0")
    demands = DemandMaker(nodes.registry)
    tracker = Tracker(nodes.placement, nodes.queue, demands, Statistics(nodes.registry), "me")
    nodes.heard("d0", load_of(queued_tokens=100_000), 0.0)
    answer = request(num_tokens=40)
    assert tracker.submit(answer, 0.0) == []
    before = tracker._requests["r"].hashes
    assert tracker.hash_again(0.1) == [] and tracker._requests["r"].hashes is before
    nodes.leave("d0")
    nodes.join("d0", load_of(queued_tokens=100_000), incarnation=2, model_fingerprint="other")
    assert demands.model_has_changed() and not demands.model_has_changed()
    assert tracker.hash_again(0.1) == [] and len(nodes.queue) == 1
    after = tracker._requests["r"].hashes
    assert len(after) == len(before) == 2 and not set(after) & set(before)


def text_of(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def test_a_stop_string_ends_the_answer_and_the_node_is_told() -> None:
    nodes = Nodes("d0")
    tracker = tracker_of(nodes)
    asked = Request([1], Sampling(), 8, stop_strings=["b"], pieces=character_pieces())
    generate = sent(tracker.submit(Answer(asked, "r", 0.0), 0.0))
    cancel, end = tracker.tokens(tokens_of(generate.attempt, *map(ord, "abc")), 0.1)
    assert cancel == Send("tcp://d0:1", Cancel(generate.attempt))
    assert isinstance(end, AnswerEnded) and end.answer.text == "a"
    assert len(tracker) == 0 and booked(nodes.placement) == {}


def test_a_page_is_hashed_once_over_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []
    hash_pages = hashing.page_hashes

    def counted(tokens: Sequence[int], page_size: int, start: bytes) -> list[bytes]:
        hashed.append(len(tokens) // page_size)
        return hash_pages(tokens, page_size, start)

    monkeypatch.setattr(hashing, "page_hashes", counted)
    nodes = Nodes("d0", "d1")
    tracker = tracker_of(nodes)
    nodes.join("d1", load_of(num_running=7, queued_tokens=10))
    generate = sent(tracker.submit(request(max_new_tokens=64, num_tokens=40), 0.0))
    tracker.tokens(tokens_of(generate.attempt, *range(100, 140)), 0.1)
    again = sent(lose(tracker, nodes, "d0", 0.2))
    assert len(tokens_from_bytes(again.tokens)) == 80
    assert hashed == [2, 3], "the pages of the prompt, then those of the answer"


def test_names_are_free_again_when_their_requests_have_ended() -> None:
    tracker, _, generate = start("d0")
    assert tracker.has_rid("r")
    tracker.tokens(tokens_of(generate.attempt, 0, finish="stop"), 0.1)
    assert not tracker.has_rid("r")


def test_what_takes_too_long_is_ended_and_cancelled() -> None:
    tracker, _, generate = start("d0")
    assert tracker.time_out(5.0, 5.0) == []
    outcomes = tracker.time_out(5.0, 5.1)
    assert outcomes[0] == Send("tcp://d0:1", Cancel(generate.attempt))
    assert ended(outcomes) == {"r": "timed_out"} and len(tracker) == 0
