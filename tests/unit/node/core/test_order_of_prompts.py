"""Short prompts pass long ones in the steps of a node, and hold none of them up for ever."""

from __future__ import annotations

from node.core.scheduler import Scheduler
from protocol.messages import PrefillDone
from tests.support.node.schedulers import asked_prefill, messages, prefill_scheduler, step

CHUNK = 64


def node_with(*lengths: int) -> Scheduler:
    node = prefill_scheduler(num_pages=256, chunk=CHUNK)
    for name, length in zip("abcd", lengths, strict=False):
        node.handle(asked_prefill(name, length), 0.0)
    return node


def test_a_short_prompt_ends_in_its_first_step_behind_a_long_one() -> None:
    slices, instructions = step(node_with(400, 20))
    assert [len(part.token_ids) for part in slices] == [44, 20]
    (done,) = messages(instructions, PrefillDone)
    assert done.attempt.request_id == "b"


def test_prompts_of_one_length_end_in_the_order_of_arrival() -> None:
    node, ended = node_with(100, 100, 100), []
    while len(ended) < 3:
        ended += [done.attempt.request_id for done in messages(step(node)[1], PrefillDone)]
    assert ended == ["a", "b", "c"]


def test_a_long_prompt_goes_on_beside_short_ones_that_come_for_ever() -> None:
    node, number, ended = node_with(160), 0, []
    while "a" not in ended:
        number += 1
        node.handle(asked_prefill(chr(256 + number), CHUNK), 0.0)
        ended += [done.attempt.request_id for done in messages(step(node)[1], PrefillDone)]
    assert 160 / CHUNK < number <= 160 / (CHUNK // 4), "it had a share of each step"
