"""What is known of an answer whose coordinator has died, and how another one begins with it."""

from __future__ import annotations

import pytest

from coordinator.answers.answer import Answer, FinishReason
from coordinator.answers.request import Request
from coordinator.leaving.taking_over import AnsweredBefore, answered_before, begin_with
from protocol.hashing import token_bytes
from protocol.ids import Node
from protocol.messages import TakenOver
from protocol.sampling import Sampling


def reply(name: str, tokens: list[int] | None, finish: str = "", lives: bool = False) -> TakenOver:
    raw = None if tokens is None else token_bytes(tokens)
    return TakenOver(Node(name, 1), "q", lives, raw, finish, 3)


def test_the_longest_answer_counts_and_one_living_owner_forbids_all() -> None:
    short, long = reply("d0", [5]), reply("d1", [5, 6])
    assert answered_before([short, long, reply("p0", None)]) == AnsweredBefore([5, 6], "", 3)
    whole = reply("d2", [5, 6], "stop")
    assert answered_before([whole, long]) == AnsweredBefore([5, 6], "stop", 3)
    assert answered_before([long, reply("d0", None, lives=True)]) is None
    assert answered_before([]) == answered_before([reply("p0", None)]) == AnsweredBefore([])


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (AnsweredBefore([]), None),
        (AnsweredBefore([5, 6]), None),
        (AnsweredBefore([5, 6, 2], "stop"), FinishReason("stop", 2)),
        (AnsweredBefore([5, 6, 7, 8], "length"), FinishReason("length")),
        (AnsweredBefore([5, 6, 7, 8]), FinishReason("length")),
        (AnsweredBefore([5, 6, 7, 8, 2], "stop"), FinishReason("length")),
    ],
)
def test_an_answer_begins_with_what_there_is_and_no_more_than_is_asked(
    before: AnsweredBefore, reason: FinishReason | None
) -> None:
    """The request asks for four tokens; 2 ends an answer."""
    answer = Answer(Request([1], Sampling(), 4, end_token_ids=(2,)), "id", 0.0)
    assert begin_with(answer, before, 1.0) == (reason is not None)
    assert answer.output_ids == before.tokens[:4] and answer.finish_reason == reason
