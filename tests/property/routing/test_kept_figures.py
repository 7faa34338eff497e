"""The figures of nodes that a placement keeps are right, whatever happened to the nodes."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.routing.demand import PageOwners
from coordinator.routing.policies import POLICIES
from coordinator.routing.prices.figures import NodeFigures
from coordinator.routing.prices.planned import NOTHING_PLANNED
from coordinator.routing.prices.pricing import Cluster
from coordinator.routing.route import NoRoute
from coordinator.routing.router import Router
from protocol.ids import Node
from protocol.messages import Load
from tests.support.coordinator.nodes import Nodes, demand_of, load_of

names = st.sampled_from(("p0", "p1", "d0", "d1"))
loads = st.builds(
    Load,
    role=st.just("decode"),
    num_running=st.integers(0, 9),
    queued_tokens=st.sampled_from((0, 300, 4000)),
    free_pages=st.sampled_from((10, 1000)),
    prefill_tokens_per_s=st.sampled_from((0.0, 500.0, 1000.0)),
    step_s=st.sampled_from((0.0, 0.01)),
)
acts = st.one_of(
    st.tuples(st.just("told"), names, loads),
    st.tuples(st.just("heard"), names, loads),
    st.tuples(st.just("restarts"), names, loads),
    st.tuples(st.just("leaves"), names),
    st.tuples(st.just("drains"), st.frozensets(names)),
    st.tuples(st.just("sends"), st.integers(16, 1600)),
    st.tuples(st.sampled_from(("computes", "ends")), st.integers(0, 2)),
)
BUSY = load_of(queued_tokens=4000)
FIRST = [("told", name, load_of()) for name in ("p0", "d0")]
DEMAND = demand_of(800)


@example("disaggregate", [("heard", "p0", BUSY), ("sends", 160), ("computes", 0), ("ends", 0)])
@given(st.sampled_from(("cost", "disaggregate")), st.lists(acts, max_size=25))
def test_kept_figures_are_those_of_the_nodes_as_they_are(
    policy: str, done: list[tuple[object, ...]]
) -> None:
    nodes, incarnations, num_sent = Nodes(policy=policy), {}, 0
    for step, (act, *given_with) in enumerate([*FIRST, *done]):
        now = step / 100
        match act, given_with:
            case "told", [str(name), Load() as load]:
                nodes.join(name, load, now, incarnations.get(name, 1))
            case "heard", [str(name), Load() as load]:
                live = nodes.join(name, load, now, incarnations.get(name, 1))
                assert_kept(nodes, policy, now)
                nodes.placement.heard(live, now)
            case "restarts", [str(name), Load() as load]:
                incarnations[name] = incarnations.get(name, 1) + 1
                nodes.join(name, load, now, incarnations[name])
                nodes.placement.forget(Node(name, incarnations[name] - 1))
            case "leaves", [str(name)]:
                nodes.placement.forget(nodes.leave(name, incarnations.get(name, 1)))
                incarnations[name] = incarnations.get(name, 1) + 1
            case "drains", [frozenset() as draining]:
                nodes.placement.draining = draining
            case "sends", [int(num_tokens)]:
                num_sent += send(nodes, str(num_sent), num_tokens, now)
            case "computes", [int(number)] if number < num_sent:
                nodes.computed(str(number), now)
            case "ends", [int(number)] if number < num_sent:
                nodes.ended(str(number), now)
        assert_kept(nodes, policy, now)


def send(nodes: Nodes, name: str, num_tokens: int, now: float) -> bool:
    """Sends a request if there is a node for it, and returns whether there was."""
    demand = demand_of(num_tokens)
    try:
        nodes.book(name, demand, nodes.placement.route(demand, now), now)
    except NoRoute:
        return False
    return True


def assert_kept(nodes: Nodes, policy: str, now: float) -> None:
    placement, registry = nodes.placement, nodes.registry
    anew = Cluster(
        prefill=NodeFigures(placement.open("prefill"), placement.queues),
        decode=NodeFigures(placement.open("decode"), placement.queues),
        find=registry.get,
        link_bytes_per_s=registry.link_bytes_per_s,
        hit_share=placement.hit_share,
        planned=NOTHING_PLANNED,
        now=now,
    )
    try:
        kept, _ = placement.explain(DEMAND, now)
    except NoRoute:
        assert not placement.open()
        return
    router = Router(POLICIES[policy](lambda: 0.0))
    priced = router.candidates(DEMAND, PageOwners({}, {}), anew)
    for task in ("prefill", "decode", "both"):
        assert list(getattr(kept, task)) == list(getattr(priced, task))
