"""Nodes that answer requests and compute prompts for others: a role is a preference, not a wall."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.sampling import Sampling
from tests.support.node.lone_nodes import GREEDY, LoneNodes

NAMES = ("d0", "d1")
PENALTY = Sampling(temperature=0.0, frequency_penalty=0.5)

prompts = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(1, 120), st.integers(1, 40)),
    min_size=1,
    max_size=8,
)


@given(prompts, st.integers(0, 1 << 30))
def test_every_answer_is_the_models_whoever_computes_its_prompt(
    asked: list[tuple[str, int, int]], seed: int
) -> None:
    """Both nodes answer, and each computes prompts for the other, for itself, and for itself though
    it was told to ask itself; with fetches from each other, penalties and cancels. `LoneNodes`
    checks tokens and pages."""
    nodes = LoneNodes(seed, num_prefill=0, num_decode=2, num_pages=20)
    chance = nodes.chance
    texts = {"a": [chance.randrange(1, 50) for _ in range(200)], "b": list(range(1, 201))}
    for number, (text, length, count) in enumerate(asked):
        after_s = chance.choice([0.0, chance.random()])
        where = chance.choice(NAMES)
        nodes.ask(
            where,
            f"r{number}",
            texts[text][:length],
            count,
            prefill=chance.choice(["", *NAMES]),
            owner=chance.choice(["", *NAMES]),
            owned_pages=chance.randrange(8),
            sampling=chance.choice([GREEDY, PENALTY]),
            after_s=after_s,
        )
        if chance.random() < 0.2:
            nodes.cancel(where, f"r{number}", after_s + chance.random())
    nodes.run()
    for answer in nodes.answers.values():
        assert answer.end == "length" or answer.is_cancelled
