"""The first token of an answer is told as soon as the decode node hears of it, and told once."""

from __future__ import annotations

import pytest

from node.core.instructions import PagesReceived, ReceiveFailed
from node.core.scheduler import Scheduler
from protocol.ids import Attempt
from protocol.messages import Failed, PrefillDone, TokensOut
from tests.support.node.schedulers import (
    P0,
    STOP,
    decode_scheduler,
    generate,
    messages,
    step,
)

ATTEMPT = Attempt("r", 1)
DONE = PrefillDone(ATTEMPT, [5], 0, P0)


def receiving(max_new_tokens: int = 4) -> Scheduler:
    """A decode node whose only prompt is computed elsewhere."""
    decode = decode_scheduler()
    decode.handle(generate("r", [1] * 40, max_new_tokens), 0.0)
    assert decode.next_batch(0.0)[0] == []
    return decode


def test_the_first_token_does_not_wait_for_the_pages() -> None:
    decode = receiving()
    (told,) = messages(decode.handle(DONE, 0.0), TokensOut)
    assert [(out.start, out.tokens, out.finish) for out in told.outs] == [(0, [5], "")]
    assert step(decode)[0] == [], "without its pages nothing can follow"
    assert decode.handle(PagesReceived(ATTEMPT), 0.0) == []
    slices, instructions = step(decode)
    assert [(part.start, list(part.token_ids)) for part in slices] == [(40, [5])]
    (told,) = messages(instructions, TokensOut)
    assert [(out.start, out.tokens) for out in told.outs] == [(1, [7])]


def test_it_is_told_once_where_the_pages_come_first() -> None:
    decode = receiving()
    assert decode.handle(PagesReceived(ATTEMPT), 0.0) == []
    (told,) = messages(decode.handle(DONE, 0.0), TokensOut)
    assert [(out.start, out.tokens) for out in told.outs] == [(0, [5])]
    assert [list(part.token_ids) for part in step(decode)[0]] == [[5]]


@pytest.mark.parametrize(("max_new_tokens", "token"), [(1, 5), (4, STOP)])
def test_an_end_is_told_when_the_pages_are_here(max_new_tokens: int, token: int) -> None:
    decode = receiving(max_new_tokens)
    assert decode.handle(PrefillDone(ATTEMPT, [token], 0, P0), 0.0) == []
    (told,) = messages(decode.handle(PagesReceived(ATTEMPT), 0.0), TokensOut)
    assert [bool(out.finish) for out in told.outs] == [True]
    assert decode.load().held_pages == 0 and decode.load().cached_pages


def test_an_attempt_whose_pages_do_not_come_fails_behind_its_first_token() -> None:
    decode = receiving()
    decode.handle(DONE, 0.0)
    instructions = decode.handle(ReceiveFailed(ATTEMPT, "gone"), 0.0)
    (failed,) = messages(instructions, Failed)
    assert failed.attempt == ATTEMPT and failed.node == P0
    assert decode.load().held_pages == 0 and step(decode)[0] == []
