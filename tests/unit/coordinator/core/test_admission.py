"""Who is refused by a coordinator's core, who waits, and for how long."""

from __future__ import annotations

import pytest

from coordinator.answers.answer import Answer
from coordinator.answers.request import Request
from coordinator.core.core import CHECK_EVERY_S, CoordinatorCore
from coordinator.core.errors import TooBusy
from coordinator.core.instructions import AnswerEnded, AnswerStarted, Instruction, Send
from coordinator.core.pause import Pause
from protocol.ids import Attempt, Node
from protocol.messages import Failed, Generate
from protocol.sampling import Sampling
from tests.support.coordinator.cores import core_of, hear
from tests.support.coordinator.nodes import RATE, load_of

D0 = Node("d0", 1)
MAX_WAIT_S = 10.0


def request(tenant: str = "", num_tokens: int = 1_000, priority: int = 0) -> Request:
    """A second of work, unless told otherwise."""
    tokens = list(range(1, num_tokens + 1))
    return Request(tokens, Sampling(seed=7), 1, tenant=tenant, priority=priority)


def submit(core: CoordinatorCore, *asked: Request, now: float = 0.0) -> list[Answer]:
    answers = []
    for one in asked:
        started = core.submit(one, now)[0]
        assert isinstance(started, AnswerStarted)
        answers.append(started.answer)
    return answers


def until_refused(core: CoordinatorCore, tenant: str) -> tuple[int, TooBusy]:
    """How many requests of a tenant are let in, and what is said to the next one."""
    for count in range(1_000):
        try:
            submit(core, request(tenant))
        except TooBusy as refused:
            return count, refused
    raise AssertionError("nobody was refused")


def later(core: CoordinatorCore, now: float, busy_s: float = 0.0) -> list[Instruction]:
    """What happens by a time at which the node is busy for so long."""
    hear(core, "d0", now, load_of(queued_tokens=int(busy_s * RATE)))
    return core.tick(now)


def ended(instructions: list[Instruction]) -> list[Answer]:
    return [one.answer for one in instructions if isinstance(one, AnswerEnded)]


def test_who_would_wait_too_long_is_told_when_to_come_back() -> None:
    core = core_of("d0", max_wait_s=MAX_WAIT_S)
    count, refused = until_refused(core, "")
    # The prompts that fit into seven tenths of the bound, and the one that is computed.
    assert 0.6 * MAX_WAIT_S <= count <= MAX_WAIT_S
    assert refused.retry_after_s == 1 and "come back in 1 s" in str(refused)
    assert core.num_unfinished == count
    assert core.statistics.totals.lifetime.refused_requests == 1


def test_the_time_to_come_back_grows_with_what_is_ahead() -> None:
    core = core_of("d0", max_wait_s=MAX_WAIT_S)
    hear(core, "d0", 0.0, load_of(queued_tokens=int(60 * RATE)))
    with pytest.raises(TooBusy) as caught:
        core.submit(request(), 0.0)
    assert caught.value.retry_after_s == 53


def test_a_tenant_that_is_refused_leaves_the_others_alone() -> None:
    core = core_of("d0", max_wait_s=MAX_WAIT_S)
    until_refused(core, "greedy")
    assert until_refused(core, "modest")[0] >= 3
    with pytest.raises(TooBusy):
        submit(core, request("greedy"))


def test_a_higher_priority_waits_for_less() -> None:
    core = core_of("d0", max_wait_s=MAX_WAIT_S)
    until_refused(core, "")
    (urgent,) = submit(core, request(priority=1))
    assert not urgent.is_done


def test_answers_to_one_body_are_let_in_together() -> None:
    core = core_of("d0", max_wait_s=MAX_WAIT_S, max_queued_requests=30)
    submit(core, request())
    for _ in range(29):
        core.submit(request(), 0.0, is_next=True)
    with pytest.raises(TooBusy, match="30 requests are unfinished"):
        core.submit(request(), 0.0, is_next=True)
    assert ended(later(core, 2 * MAX_WAIT_S, busy_s=5.0)) == [], "they wait for each other"


def test_a_prompt_counts_for_its_own_first_token() -> None:
    core = core_of("d0", max_ttft=3.0)
    submit(core, request(num_tokens=1_000))
    with pytest.raises(TooBusy):
        submit(core, request(num_tokens=2_500))
    (short,) = submit(core, request(num_tokens=10))
    assert not short.is_done


def test_who_has_waited_too_long_is_given_up_and_no_node_hears_of_it() -> None:
    core = core_of("d0", max_wait_s=2.0)
    first, waiting = submit(core, request(num_tokens=1_300), request())
    assert ended(later(core, 1.2, busy_s=5.0)) == []
    instructions = later(core, 2.0 + 2 * CHECK_EVERY_S, busy_s=4.0)
    assert ended(instructions) == [waiting] and not first.is_done
    assert not any(
        isinstance(one, Send) and isinstance(one.message, Generate) for one in instructions
    )
    assert waiting.error is not None and waiting.error.kind == "too_busy"
    assert waiting.error.retry_after_s >= 1 and "come back in" in waiting.error.message
    assert core.turns.shares.num_unfinished("") == core.num_unfinished == 1


def test_a_pause_is_no_wait() -> None:
    core = core_of("d0", max_wait_s=2.0)
    _, waiting = submit(core, request(num_tokens=1_300), request())
    core.set_pause(Pause(1, "in_place"), 0.5)
    (held,) = submit(core, request("another"), now=1.0)
    assert ended(later(core, 50.0)) == []
    core.set_pause(Pause(2, None), 60.0)
    assert ended(later(core, 60.1)) == [] and not waiting.is_done and not held.is_done


def test_a_request_that_was_begun_has_another_deadline() -> None:
    core = core_of("d0", max_wait_s=2.0)
    (answer,) = submit(core, request())
    later(core, 1.0, busy_s=5.0)
    core.handle(Failed(Attempt(answer.request_id, 1), "broken", "node", D0), 1.0)
    assert core.num_waiting == 1
    assert ended(later(core, 4.0, busy_s=5.0)) == [] and core.num_waiting == 1
