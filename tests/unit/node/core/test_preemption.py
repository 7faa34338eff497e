"""Answers that take more pages than there are give way, go on later, and are the same; also where
steps are started before the tokens of those before them are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from node.core.instructions import AbortTransfer, Instruction
from protocol.messages import Fetch, TokensOut
from tests.support.node.lone_nodes import LoneNodes
from tests.support.node.schedulers import (
    P0,
    PAGE,
    PREFILL,
    compute,
    decode_scheduler,
    generate,
    messages,
    step,
)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("prefill", ["p0", ""])
def test_answers_that_exceed_the_pool_together_are_all_given(prefill: str, ahead: bool) -> None:
    nodes = LoneNodes(num_pages=13)
    nodes.cluster.nodes["d0"].device.runs_ahead = ahead
    for i in range(4):
        nodes.ask("d0", f"r{i}", [i + 1] * 20, 100, prefill)
    nodes.run()
    for answer in nodes.answers.values():
        assert answer.end == "length"
        assert answer.reused == (0, 2 if prefill else 0, 0), "as when it was admitted first"
    counters = nodes.load("d0").counters
    assert 0 < counters.preemptions < 20, "some give way, and not again and again"
    assert counters.requests == 4 and counters.generated_tokens == 400


def tokens_of(instructions: Sequence[Instruction]) -> Counter[str]:
    """Returns how many tokens each request is told."""
    tokens: Counter[str] = Counter()
    for message in messages(instructions, TokensOut):
        assert isinstance(message, TokensOut)
        tokens.update({out.attempt.request_id: len(out.tokens) for out in message.outs})
    return tokens


def test_the_youngest_gives_way_and_finds_its_pages_again() -> None:
    """Of twelve pages each takes six; then the old one wants a seventh for its last tokens."""
    decode = decode_scheduler(num_pages=12)
    decode.handle(generate("old", [1] * 20, 80, prefill=""), 0.0)
    decode.handle(generate("young", [2] * 20, 100, prefill=""), 0.0)
    told: Counter[str] = Counter()
    while not decode.load().counters.preemptions:
        told += tokens_of(step(decode)[1])
        assert told["old"] < 80
    assert decode.load().num_waiting == decode.load().num_running == 1
    computed, before = decode.load().counters.computed_tokens, told["young"]
    while decode.load().num_waiting:
        (part,), instructions = step(decode)
        told += tokens_of(instructions)
    assert told["old"] == 80
    assert (part.start, len(part.token_ids)) == (5 * PAGE, 20 + before - 5 * PAGE)
    assert part.sampling is not None
    assert decode.load().counters.computed_tokens - computed == len(part.token_ids)


def test_nobody_is_admitted_who_would_soon_give_way() -> None:
    """Two pages each are enough to begin; six are for the next 64 tokens."""
    for num_pages, num_admitted in ((11, 1), (12, 2)):
        decode = decode_scheduler(num_pages)
        for name in ("a", "b"):
            decode.handle(generate(name, [ord(name)] * 20, 100, prefill=""), 0.0)
        step(decode)
        assert decode.load().num_running == num_admitted


def test_a_fetch_ends_before_its_pages_go_to_an_older_answer_and_is_not_asked_for_again() -> None:
    """Late pages of the first one would come in the place of others."""
    decode = decode_scheduler(num_pages=14)
    young = generate("young", [2] * 100, 1, prefill="", fetch=(P0, PREFILL, 6))
    decode.handle(generate("old", [1] * 20, 160, prefill=""), 0.0)
    decode.handle(young, 0.0)
    wanted = step(decode)[1]
    assert len(messages(wanted, Fetch)) == 1
    for _ in range(130):
        wanted += step(decode)[1]
    assert [i for i in wanted if isinstance(i, AbortTransfer)] == [AbortTransfer(young.attempt)]
    assert decode.load().counters.preemptions == 1
    wanted += compute(decode)
    assert len(messages(wanted, Fetch)) == 1
    assert len([i for i in wanted if isinstance(i, AbortTransfer)]) == 1
    assert tokens_of(wanted) == {"old": 160, "young": 1}
