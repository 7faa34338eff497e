"""Whatever nodes there are, every routing policy chooses one that may be chosen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.routing.policies import POLICIES
from coordinator.routing.route import NoRoute
from protocol.ids import Node
from tests.support.coordinator.nodes import Nodes, demand_of, load_of

WORK = demand_of(1600, "a")
NAMES = ["p0", "p1", "p2", "d0", "d1", "d2"]


@pytest.mark.parametrize("policy", POLICIES)
@given(data=st.data())
def test_always_a_live_node_that_is_large_enough_and_not_avoided(
    policy: str, data: st.DataObject
) -> None:
    nodes = Nodes(policy=policy)
    room = data.draw(
        st.dictionaries(st.sampled_from(NAMES), st.sampled_from([99, 100, 101, 1000])), "room"
    )
    num_running: dict[str, int] = {}
    for name, num_pages in room.items():
        queued_tokens = data.draw(st.sampled_from([0, 300, 9000]))
        num_running[name] = data.draw(st.integers(0, 9))
        nodes.heard(name, load_of(queued_tokens, num_running[name]), 0.0)
        nodes.join(name, load_of(queued_tokens, num_running[name]), num_pages=num_pages)
        owned = data.draw(st.integers(0, 100))
        nodes.index.stored(Node(name, 1), WORK.hashes[:owned])
    avoid = tuple(data.draw(st.sets(st.sampled_from(NAMES)), "avoid"))

    prefill = [n for n, pages in room.items() if n[0] == "p" and pages >= 100 and n not in avoid]
    answering = [n for n, pages in room.items() if pages >= 101]
    answering = [n for n in answering if n not in avoid] or answering
    if not answering:
        with pytest.raises(NoRoute, match="room for 101 pages"):
            nodes.placement.route(demand_of(1600, "a", avoid), 0.0)
        return
    chosen = nodes.placement.route(demand_of(1600, "a", avoid), 0.0)
    assert chosen.decode.name in answering
    mixes_work = POLICIES[policy](lambda: 0.0).mixes_work
    if chosen.prefill is not None:
        assert chosen.prefill.name in prefill and chosen.decode.name[0] == "d"
    elif chosen.decode.name[0] == "d":
        assert mixes_work or not prefill, "decode nodes compute where there is no prefill node"
    else:
        decode = [n for n in answering if n[0] == "d"]
        assert not decode or (mixes_work and all(num_running[n] >= 8 for n in decode)), (
            "prefill nodes answer where decode nodes are full or gone"
        )
    if chosen.fetch_from is not None:
        assert chosen.fetch_from.name in room and chosen.fetch_from != chosen.computes
