"""Pages that nodes will own soon."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing.expected_pages import KEPT_S, ExpectedPages
from protocol.ids import Node
from tests.support.nodes import chain_of

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


@given(at=st.floats(0.0, 100.0), later_s=st.floats(0.0, 4 * KEPT_S), others=st.booleans())
def test_a_claim_counts_for_one_to_two_periods(at: float, later_s: float, others: bool) -> None:
    """Whether or not others are made after it."""
    claims = ExpectedPages()
    claims.add(P0, CHAIN, 0, at)
    if others:
        claims.add(P1, chain_of("b", 3), 0, at + later_s / 2)
    found = claims.extend(CHAIN, {}, at + later_s)
    if later_s < KEPT_S:
        assert found == {P0: 20}
    if later_s > 2.001 * KEPT_S:
        assert found == {}


def test_a_life_that_is_over_claims_nothing() -> None:
    claims = ExpectedPages()
    claims.add(P0, CHAIN, 0, 0.0)
    claims.add(P0, CHAIN, 0, KEPT_S + 1)
    claims.forget(P0)
    claims.forget(P0)
    assert claims.extend(CHAIN, {}, KEPT_S + 1) == {}


@given(
    claimed=st.lists(
        st.tuples(st.sampled_from([P0, P1]), st.sampled_from("ab"), st.integers(0, 12)), max_size=6
    ),
    owned=st.dictionaries(st.sampled_from([P0, P1]), st.integers(1, 12)),
    asked=st.sampled_from("ab"),
)
def test_never_less_than_what_is_owned_nor_more_than_the_prompt(
    claimed: list[tuple[Node, str, int]], owned: dict[Node, int], asked: str
) -> None:
    claims = ExpectedPages()
    shared = chain_of("s", 4)
    for node, name, num_pages in claimed:
        chain = (shared + chain_of(name, 8))[:num_pages]
        claims.add(node, chain, min(owned.get(node, 0), len(chain)), 0.0)
    hashes = shared + chain_of(asked, 8)
    before = dict(owned)
    found = claims.extend(hashes, owned, 0.0)
    assert owned == before
    assert all(found[node] >= owned[node] for node in owned)
    assert all(1 <= depth <= len(hashes) for depth in found.values())
    for node in found.keys() - owned.keys():
        assert any(claimant == node for claimant, _, _ in claimed)
