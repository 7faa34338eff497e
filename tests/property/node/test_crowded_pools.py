"""Answers that together exceed the pool of their node are the model's, whatever happens to them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.sampling import Sampling
from tests.sim.faults import Cut
from tests.sim.world.oracle import STOP
from tests.support.node.lone_nodes import GREEDY, PAGE, LoneNodes

PENALTY = Sampling(temperature=0.0, frequency_penalty=0.5)
LEAST_PAGES = 13
"""One of the longest answers fits, and a page."""

long_answers = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 36), st.integers(0, 130) | st.just(130)),
    min_size=2,
    max_size=8,
)


@given(long_answers, st.integers(0, 1 << 30), st.booleans())
def test_whatever_happens_every_request_ends_once_with_the_models_tokens(
    asked: list[tuple[str, int, int]], seed: int, breaks: bool
) -> None:
    """Cancelled at any moment, stopped early, with penalties, from a prefill node that cannot be
    reached, or with none; steps may run ahead. `LoneNodes` checks tokens and pages."""
    nodes = LoneNodes(seed, num_pages=LEAST_PAGES + seed % 5, max_running=8)
    chance = nodes.chance
    texts = {"a": [chance.randrange(1, 50) for _ in range(200)], "b": list(range(1, 201))}
    if breaks:
        nodes.cluster.clock.after(chance.random(), nodes.cluster.apply, some_cut(chance.random()))
    for number, (text, length, count) in enumerate(asked):
        after_s = chance.choice([0.0, 0.0, 0.3 * chance.random()])
        is_fetched = chance.random() < 0.3
        nodes.ask(
            "d0",
            f"r{number}",
            texts[text][:length],
            count,
            prefill=chance.choice(["p0", ""]),
            owner="p0" if is_fetched else "",
            owned_pages=length // PAGE if is_fetched else 0,
            sampling=PENALTY if chance.random() < 0.2 else GREEDY,
            stops=[STOP] if chance.random() < 0.15 else [],
            after_s=after_s,
        )
        if chance.random() < 0.2:
            nodes.cancel("d0", f"r{number}", after_s + 2.0 * chance.random())
    nodes.run()
    for answer in nodes.answers.values():
        assert answer.end in ("length", "stop") or answer.is_cancelled or breaks


def some_cut(chance: float) -> Cut:
    return Cut("p0", "d0", 0.0, for_s=0.1 + 3.0 * chance, loses=True)


def test_answers_of_such_nodes_do_give_way() -> None:
    """Otherwise the property above would say nothing of them."""
    nodes = LoneNodes(num_pages=LEAST_PAGES, max_running=8)
    for number in range(4):
        nodes.ask("d0", f"r{number}", [number + 1] * 20, 130)
    nodes.run()
    assert nodes.load("d0").counters.preemptions > 0
