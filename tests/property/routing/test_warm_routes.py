"""Whatever is cached where, the router's choice is no slower for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing.policies import NEAR_TIE_SHARE, TIE_S
from tests.support.coordinator.nodes import LAYOUT, registry_of
from tests.support.coordinator.routes import PAGE_BYTES, route, with_link


@given(
    owned=st.dictionaries(st.sampled_from(("p0", "p1", "d0", "d1")), st.integers(0, 100)),
    num_tokens=st.integers(1, 1600),
)
def test_on_idle_nodes_no_prefix_makes_a_prompt_slower_than_it_is_cold(
    owned: dict[str, int], num_tokens: int
) -> None:
    """Links are faster than computing. An owner may be taken that costs a tie more."""
    registry = registry_of(dict.fromkeys(("p0", "p1", "d0", "d1"), with_link(PAGE_BYTES / 0.001)))
    num_full_pages = num_tokens // LAYOUT.page_size
    owned = {name: min(pages, num_full_pages) for name, pages in owned.items()}
    cold = route(registry, num_tokens=num_tokens)
    warm = route(registry, owned=owned, num_tokens=num_tokens)
    slack_s = NEAR_TIE_SHARE * warm.cost.score + 2 * TIE_S
    assert warm.cost.first_token_s <= cold.cost.first_token_s + slack_s
    if max(owned.values(), default=0) >= 20:
        assert warm.cached_pages > 0 and warm.cost.first_token_s < cold.cost.first_token_s
