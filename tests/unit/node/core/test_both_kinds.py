"""Nodes that answer requests and compute prompts for others: a role is a preference, not a wall."""

from __future__ import annotations

import msgspec
import pytest

from decode.answers import Answers
from engine.batches.sequence import Sampled
from engine.cache.prefix_cache import PrefixCache
from node.core.instructions import AbortTransfer, EndSequence, SendMessage, StreamPages
from node.core.scheduler import Scheduler, SchedulerLimits
from prefill.handovers import Handovers
from protocol.hashing import token_bytes
from protocol.ids import Attempt, Node
from protocol.messages import Generate, Prefill, PrefillDone, TokensOut
from protocol.namespace import SHARED
from protocol.sampling import Sampling
from tests.support.node.lone_nodes import LoneNodes
from tests.support.node.schedulers import GREEDY, PAGE, generate, scheduler_of


def node_of(name: str, num_pages: int = 64, running: int = 4, waiting: int = 8) -> Scheduler:
    limits = SchedulerLimits(chunk_tokens=32, max_running=running, max_waiting=waiting)
    cache = PrefixCache(num_pages, PAGE)
    return scheduler_of("decode", Node(name, 1), name, limits, cache, [Answers, Handovers])


def request(
    name: str,
    prompt: list[int],
    count: int,
    prefill: str = "",
    owner: str = "",
    num_pages: int = 0,
    sampling: Sampling = GREEDY,
) -> Generate:
    asked = generate(
        name,
        prompt,
        count,
        prefill,
        fetch=(Node(owner, 1), owner, num_pages),
        stops=(),
        sampling=sampling,
    )
    return msgspec.structs.replace(asked, prefill_node=Node(prefill, 1) if prefill else None)


def test_one_step_has_tokens_of_an_answer_and_chunks_of_prompts_for_anybody() -> None:
    node = node_of("n0")
    node.handle(request("own", [1] * 20, 9), 0.0)
    node.next_batch(0.0)
    (said,) = node.finish([Sampled((7,))], 0.0)
    assert isinstance(said, SendMessage) and isinstance(said.message, TokensOut)
    other = Prefill(Attempt("other", 1), token_bytes([2] * 20), SHARED, GREEDY, 0, "n1", ("n1",))
    node.handle(other, 0.0)
    slices, (stream,) = node.next_batch(0.0)
    assert [list(part.token_ids) for part in slices] == [[7], [2] * 20]
    assert isinstance(stream, StreamPages) and stream.data_addresses == ("n1",)
    done, end, tokens = node.finish([Sampled((8,)), Sampled((9,))], 0.0)
    assert isinstance(done, SendMessage) and isinstance(tokens, SendMessage)
    assert end == EndSequence(slices[1].sequence_id)
    assert (done.address, type(done.message)) == ("n1", PrefillDone)
    assert (tokens.address, type(tokens.message)) == ("coordinator", TokensOut)


def test_prompts_of_both_kinds_compute_what_they_have_in_common_once() -> None:
    node, common = node_of("n0"), list(range(1, 2 * PAGE + 1))
    node.handle(request("own", [*common, 91], 1), 0.0)
    node.handle(
        Prefill(Attempt("other", 1), token_bytes([*common, 92]), SHARED, GREEDY, 0, "n1", ("n1",)),
        0.0,
    )
    while slices := node.next_batch(0.0)[0]:
        node.finish([Sampled((7,)) if part.sampling else None for part in slices], 0.0)
    assert node.load().counters.computed_tokens == 2 * PAGE + 2
    assert node.load().counters.reused_tokens == 2 * PAGE


def test_a_node_that_is_to_ask_itself_computes_the_prompt() -> None:
    node = node_of("n0")
    node.handle(request("r", [1] * 20, 4, prefill="n0"), 0.0)
    slices, instructions = node.next_batch(0.0)
    assert len(slices) == 1 and instructions == []


@pytest.mark.parametrize("kind", ["answer", "handover"])
def test_a_newer_attempt_replaces_the_older_one_of_either_kind(kind: str) -> None:
    """The node computed the prompt for another one, and is asked for the answer now; or received
    pages for its answer, and is asked to compute them for another one."""
    node = node_of("n0")
    answer = request("r", [1] * 40, 4, prefill="n1" if kind == "answer" else "")
    prefill = Prefill(Attempt("r", 1), answer.tokens, SHARED, GREEDY, 0, "n1", ("n1",))
    first, second = (answer, prefill) if kind == "answer" else (prefill, answer)
    node.handle(first, 0.0)
    node.next_batch(0.0)
    instructions = node.handle(second, 0.0)
    assert (AbortTransfer(Attempt("r", 1)) in instructions) == (kind == "answer")
    assert (node.load().num_running, node.load().num_waiting) == (0, 1)


@pytest.mark.parametrize("num_pages", [64, 8])
@pytest.mark.parametrize("second", [1, 200])
def test_no_two_nodes_wait_for_each_other(num_pages: int, second: int) -> None:
    """Neither for a place, nor for pages that both lack, nor for room: then time passes, and an
    answer whose pages do not come makes some."""
    nodes = LoneNodes(num_prefill=0, num_decode=2, num_pages=num_pages, max_running=1)
    nodes.ask("d0", "a", list(range(1, 100)), prefill="d1")
    nodes.ask("d1", "b", list(range(second, second + 99)), prefill="d0")
    nodes.run()
    assert [answer.end for answer in nodes.answers.values()] == ["length", "length"]
    num_made_room = sum(nodes.load(name).counters.preemptions for name in ("d0", "d1"))
    assert (num_made_room > 0) == (num_pages == 8)


def test_both_kinds_wait_in_one_queue() -> None:
    node = node_of("n0", waiting=2, running=1)
    for name in ("a", "x"):
        node.handle(request(name, [ord(name)] * 20, 4), 0.0)
    node.next_batch(0.0)
    assert (node.load().num_running, node.load().num_waiting) == (1, 1)
    for name in ("b", "c"):
        refused = node.handle(
            Prefill(Attempt(name, 1), token_bytes([2] * 20), SHARED, GREEDY, 0, "n1", ("n1",)), 0.0
        )
        assert bool(refused) == (name == "c")
    node.next_batch(0.0)
    assert (node.load().num_running, node.load().num_waiting) == (2, 1), "it has its own places"


def test_its_role_is_what_it_says_and_may_change() -> None:
    node = node_of("n0")
    assert node.load().role == "decode"
    node.role = "prefill"
    assert node.load().role == "prefill"
    node.handle(generate("r", [1] * 20, prefill=""), 0.0)
    assert len(node.next_batch(0.0)[0]) == 1, "it still does all work"
