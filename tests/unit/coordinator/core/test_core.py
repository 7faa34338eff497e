"""The core of a coordinator: what it is told, and what it tells its shell to do."""

from __future__ import annotations

import itertools
from typing import TypeVar

import pytest

from coordinator.answers.answer import Answer
from coordinator.answers.request import Request
from coordinator.core.core import (
    ALIVE_EVERY_S,
    CHECK_EVERY_S,
    READY_WITHOUT_NODE_S,
    CoordinatorCore,
)
from coordinator.core.errors import DuplicateRequest, TooBusy, Unavailable
from coordinator.core.instructions import (
    AnswerChanged,
    AnswerEnded,
    AnswerStarted,
    Forget,
    Instruction,
    Send,
)
from coordinator.core.tracked_request import TrackedRequest
from coordinator.routing.expected_pages import KEPT_S
from protocol.ids import Attempt, Node
from protocol.messages import (
    COORDINATOR_LEASE_S,
    Cancel,
    CoordinatorAlive,
    Generate,
    Goodbye,
    TokenOut,
    TokensOut,
)
from protocol.sampling import Sampling
from tests.support.coordinator.cores import ME, core_of, hear
from tests.support.coordinator.nodes import LEASE_S, heartbeat, load_of

D0 = Node("d0", 1)
Kind = TypeVar("Kind")


def request(rid: str = "", num_tokens: int = 20) -> Request:
    return Request(list(range(1, num_tokens + 1)), Sampling(seed=7), 8, rid=rid)


def of_kind(instructions: list[Instruction], kind: type[Kind]) -> list[Kind]:
    return [one for one in instructions if isinstance(one, kind)]


def messages(instructions: list[Instruction], kind: type[Kind]) -> list[tuple[str, Kind]]:
    sends = of_kind(instructions, Send)
    return [(send.address, send.message) for send in sends if isinstance(send.message, kind)]


def test_a_request_from_its_start_to_its_end() -> None:
    core = core_of("p0", "d0")
    started, send = core.submit(request(), 1.0)
    assert isinstance(started, AnswerStarted) and isinstance(send, Send)
    generate = send.message
    assert isinstance(generate, Generate) and send.address == "tcp://d0:1"
    assert generate.reply_address == ME and generate.attempt == Attempt("1", 1)
    assert (core.num_unfinished, core.num_running, core.num_waiting) == (1, 1, 0)
    out = TokenOut(generate.attempt, 0, [5])
    assert core.handle(TokensOut([out], D0), 1.1) == [AnswerChanged(started.answer)]
    out = TokenOut(generate.attempt, 1, [6], finish="length")
    assert core.handle(TokensOut([out], D0), 1.2) == [AnswerEnded(started.answer)]
    assert started.answer.output_ids == [5, 6] and core.num_unfinished == 0
    assert core.statistics.totals.lifetime.requests == 1


def test_what_is_refused_leaves_nothing() -> None:
    core = core_of()
    with pytest.raises(Unavailable):
        core.submit(request("a"), 0.0)
    core = core_of("d0", max_queued_requests=2)
    core.submit(request("a"), 0.0)
    with pytest.raises(DuplicateRequest):
        core.submit(request("a"), 0.0)
    core.submit(request("b"), 0.0)
    with pytest.raises(TooBusy):
        core.submit(request("c"), 0.0)
    with pytest.raises(Unavailable, match="room for"):
        core_of("d0").submit(request("d", num_tokens=16_001), 0.0)
    assert core.num_unfinished == 2
    core.cancel("1", 0.1)
    core.submit(request("a"), 0.2)


def test_every_live_node_hears_several_times_per_lease_that_it_is_alive() -> None:
    core = core_of("p0", "d0")
    heard: dict[str, list[float]] = {"tcp://p0:1": [], "tcp://d0:1": []}
    now = 0.0
    while now < 2 * COORDINATOR_LEASE_S:
        hear(core, "p0", now)
        hear(core, "d0", now)
        for address, alive in messages(core.tick(now), CoordinatorAlive):
            assert alive == CoordinatorAlive(ME, COORDINATOR_LEASE_S)
            heard[address].append(now)
        wake_at = core.wake_at(now)
        assert wake_at is not None and wake_at > now
        now = wake_at
    for times in heard.values():
        gaps = [later - before for before, later in itertools.pairwise(times)]
        assert len(times) >= 10 and max(gaps) <= ALIVE_EVERY_S + 2 * CHECK_EVERY_S


def test_it_wants_to_be_asked_while_there_are_nodes_or_requests() -> None:
    core = core_of()
    assert core.wake_at(0.0) is None
    hear(core, "d0", 0.0)
    assert core.wake_at(0.0) is not None
    core.submit(request(), 0.0)
    core.handle(Goodbye(D0), 0.1)
    assert core.wake_at(0.1) is not None, "the request has a deadline"


def test_what_became_free_is_given_away_by_the_next_tick() -> None:
    core = core_of("d0")
    core.submit(request(num_tokens=2_000), 0.0)  # two seconds
    (started,) = core.submit(request(), 0.0)
    assert isinstance(started, AnswerStarted) and core.num_waiting == 1
    core.tick(0.0)
    core.handle(TokensOut([TokenOut(Attempt("1", 1), 0, [5], "length")], D0), 0.3)
    assert core.wake_at(0.3) == 0.3
    ((_, generate),) = messages(core.tick(0.3), Generate)
    assert generate.attempt.request_id == started.answer.request_id


def test_a_silent_node_is_forgotten_and_its_requests_go_elsewhere() -> None:
    core = core_of("d0")
    core.submit(request(), 0.0)
    hear(core, "d1", LEASE_S - 0.1)
    instructions = core.tick(LEASE_S)
    assert instructions[0] == Forget("tcp://d0:1")
    ((address, generate),) = messages(instructions, Generate)
    assert address == "tcp://d1:1" and generate.attempt.number == 2


def test_a_message_that_cannot_be_sent_fails_its_attempt() -> None:
    core = core_of("d0", "d1")
    (_, generate) = messages(core.submit(request(), 0.0), Generate)[0]
    address = messages(core.tick(0.0), CoordinatorAlive)[0][0]
    assert core.undeliverable(address, CoordinatorAlive(ME), 0.0) == []
    assert core.undeliverable("tcp://d0:1", generate, 0.0) == []
    assert core.wake_at(0.0) == 0.0
    ((_, again),) = messages(core.tick(0.0), Generate)
    assert again.attempt == Attempt("1", 2)


def test_a_draining_node_gets_no_new_requests() -> None:
    core = core_of("d0", "d1")
    core.set_draining({"d1"}, 0.0)
    for i in range(2):
        ((address, _),) = messages(core.submit(request(), 100.0 * i), Generate)
        assert address == "tcp://d0:1"
    core.set_draining({"d0", "d1"}, 500.0)
    assert not core.is_ready
    with pytest.raises(Unavailable):
        core.submit(request(), 500.0)


def test_a_request_that_is_cancelled_ends_once_on_both_sides() -> None:
    core = core_of("d0")
    core.submit(request(), 0.0)
    send, end = core.cancel("1", 0.1)
    assert send == Send("tcp://d0:1", Cancel(Attempt("1", 1)))
    assert isinstance(end, AnswerEnded) and end.answer.error is not None
    assert end.answer.error.kind == "client_left"
    assert core.cancel("1", 0.2) == []
    late = TokensOut([TokenOut(Attempt("1", 1), 0, [5])], D0)
    assert of_kind(core.handle(late, 0.3), AnswerChanged) == []


def test_a_request_without_an_end_is_ended_in_time() -> None:
    core = core_of("d0", request_timeout_s=2.0)
    core.submit(request(), 0.0)
    core.tick(1.9)
    assert core.num_unfinished == 1
    (end,) = of_kind(core.tick(2.0 + CHECK_EVERY_S), AnswerEnded)
    assert end.answer.error is not None and end.answer.error.kind == "timed_out"


def test_an_explanation_keeps_nothing_and_says_what_comes_next() -> None:
    core = core_of("p0", "p1", "d0", "d1")
    _, explained, _ = core.explain(request(), 0.0)
    assert core.num_unfinished == 0
    _, generate = messages(core.submit(request(), 0.0), Generate)[0]
    assert generate.prefill_node == explained.prefill

    busy = core_of("d0")
    hear(busy, "d0", 0.0, load_of(queued_tokens=500))
    assert busy.explain(request(), 0.0)[1].queue_s == pytest.approx(0.5)


# Pages that tokens tell of, before the record of ownership does


def turn(
    core: CoordinatorCore, now: float, num_tokens: int = 64, num_answered: int = 40
) -> Request:
    """An answered turn of a conversation; returns the next one, with the answer in its prompt."""
    first = Request(list(range(num_tokens)), Sampling(seed=1), num_answered)
    ((_, generate),) = messages(core.submit(first, now), Generate)
    answered = list(range(1000, 1000 + num_answered))
    out = TokenOut(generate.attempt, 0, answered, finish="length")
    core.handle(TokensOut([out], D0), now + 0.1)
    return Request(first.tokens + answered + [5] * 30, Sampling(seed=1), 8)


def owned(core: CoordinatorCore, request: Request, now: float) -> dict[str, int]:
    candidates, _, _ = core.explain(request, now)
    return {c.live.node.name: c.owned_pages for c in [*candidates.prefill, *candidates.decode]}


def test_the_next_turn_finds_the_pages_of_the_answer_at_once() -> None:
    """80 tokens and 40 answered ones, of which the last one has no KV: seven full pages."""
    core = core_of("p0", "p1", "d0")
    following = turn(core, 0.0, num_tokens=80)
    assert sorted(owned(core, following, 0.1).values()) == [0, 5, 7]
    assert owned(core, following, 0.1)["d0"] == 7


def test_pages_that_tokens_tell_of_can_be_fetched_at_once() -> None:
    core = core_of("p0", "p1", "d0")
    _, route, _ = core.explain(turn(core, 0.0, num_tokens=640), 0.1)
    assert route.fetch_from == D0 and route.fetch_pages == 42


def test_what_the_node_removes_is_not_believed_any_more() -> None:
    core = core_of("p0", "p1", "d0")
    following = turn(core, 0.0)
    hashes = core._demands.demand_of(TrackedRequest(Answer(following, "", 0.1))).hashes
    core.index.removed(D0, hashes[5:6])
    assert owned(core, following, 0.1)["d0"] == 5
    core.handle(Goodbye(D0), 0.2)
    core.handle(heartbeat("decode", Node("d0", 2)), 0.3)
    assert owned(core, following, 0.3)["d0"] == 0


def test_what_no_event_confirms_is_not_believed_for_long() -> None:
    core = core_of("p0", "d0")
    following = turn(core, 0.0)
    assert owned(core, following, KEPT_S / 2)["d0"] == 6
    hear(core, "p0", 3 * KEPT_S)
    hear(core, "d0", 3 * KEPT_S)
    assert owned(core, following, 3 * KEPT_S) == {"p0": 0, "d0": 0}


def test_an_answer_that_broke_off_tells_of_no_page_beyond_the_prompt() -> None:
    core = core_of("p0", "d0")
    first = Request(list(range(64)), Sampling(seed=1), 40)
    ((_, generate),) = messages(core.submit(first, 0.0), Generate)
    answered = list(range(1000, 1040))
    core.handle(TokensOut([TokenOut(generate.attempt, 0, answered)], D0), 0.1)
    core.cancel("1", 0.1)
    following = Request(first.tokens + answered + [5] * 30, Sampling(seed=1), 8)
    assert owned(core, following, 0.2)["d0"] == 4


def test_what_comes_while_all_nodes_are_down_waits_for_as_long_as_the_cluster_is_ready() -> None:
    core = core_of("d0")
    core.tick(1.0)
    core.handle(Goodbye(D0), 1.0)
    assert core.serves(1.0 + READY_WITHOUT_NODE_S - 0.1)
    assert core.submit(request("a"), 1.0) and core.max_total_tokens > 0
    core.tick(1.0 + READY_WITHOUT_NODE_S)
    with pytest.raises(Unavailable, match="no node takes requests"):
        core.submit(request("b"), 1.0 + READY_WITHOUT_NODE_S)
    assert core.num_unfinished == 1, "it waits on, up to its deadline"
