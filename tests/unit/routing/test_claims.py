"""Pages that nodes will own soon."""

from __future__ import annotations

from coordinator.routing.expected_pages import KEPT_S, ExpectedPages
from protocol.ids import Node
from tests.support.coordinator.nodes import chain_of

P0, P1 = Node("p0", 1), Node("p1", 1)
CHAIN = chain_of("a", 20)


def test_what_was_sent_counts_at_once() -> None:
    claims = ExpectedPages()
    claims.add(P0, CHAIN, 0, now=0.0)
    assert claims.extend(CHAIN, {}, 0.0) == {P0: 20}
    assert claims.extend(CHAIN[:7], {P1: 3}, 0.0) == {P0: 7, P1: 3}
    assert claims.extend(chain_of("b", 20), {}, 0.0) == {}
    assert claims.extend([], {}, 0.0) == {}


def test_claims_continue_what_is_owned() -> None:
    claims = ExpectedPages()
    claims.add(P0, CHAIN, 5, 0.0)
    assert claims.extend(CHAIN, {P0: 5}, 0.0) == {P0: 20}
    assert claims.extend(CHAIN, {P0: 9}, 0.0) == {P0: 20}
    assert claims.extend(CHAIN, {P0: 4}, 0.0) == {P0: 4}, "a page between them is gone"
    assert claims.extend(CHAIN, {P0: 20}, 0.0) == {P0: 20}


def test_a_prompt_that_parts_from_what_is_claimed() -> None:
    claims = ExpectedPages()
    claims.add(P0, CHAIN, 0, 0.0)
    assert claims.extend(CHAIN[:11] + chain_of("b", 5), {}, 0.0) == {P0: 11}


def test_a_turn_and_the_next_one_across_generations() -> None:
    claims = ExpectedPages()
    claims.add(P0, CHAIN[:8], 0, KEPT_S)
    claims.add(P0, CHAIN, 8, KEPT_S * 2.5)
    assert claims.extend(CHAIN, {P0: 8}, KEPT_S * 2.5) == {P0: 20}
    claims = ExpectedPages()
    claims.add(P0, CHAIN[:8], 0, KEPT_S * 0.9)
    claims.add(P0, CHAIN[:8] + CHAIN[8:], 8, KEPT_S * 1.1)
    assert claims.extend(CHAIN, {}, KEPT_S * 1.1) == {P0: 20}


def test_a_life_that_is_over_claims_nothing() -> None:
    claims = ExpectedPages()
    claims.add(P0, CHAIN, 0, 0.0)
    claims.add(P0, CHAIN, 0, KEPT_S + 1)
    claims.forget(P0)
    claims.forget(P0)
    assert claims.extend(CHAIN, {}, KEPT_S + 1) == {}
