"""Pages that nodes will own soon, whoever claims what and when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing.expected_pages import KEPT_S, ExpectedPages
from protocol.ids import Node
from tests.support.coordinator.nodes import chain_of

P0, P1 = Node("p0", 1), Node("p1", 1)
CHAIN = chain_of("a", 20)


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
