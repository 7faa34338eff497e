"""Where prompts leave what nodes own, and which do so early."""

from __future__ import annotations

import random

import pytest

from coordinator.answers.request import Request
from coordinator.core.core import CoordinatorCore
from coordinator.core.instructions import AnswerStarted
from coordinator.core.shared_path import EARLY_TOKENS, diverges_early, shared_path
from coordinator.ownership.index import PrefixIndex
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Node
from protocol.namespace import Namespace
from protocol.sampling import Sampling
from tests.support.coordinator.cores import core_of

NODES = [Node(name, 1) for name in ("p0", "p1", "d0")]
D0 = NODES[-1]


@pytest.mark.parametrize("seed", range(20))
def test_the_path_is_the_longest_that_a_node_owns(seed: int) -> None:
    chance, index = random.Random(seed), PrefixIndex()
    page_size = chance.choice([16, 64, 128, 512])
    hashes = [PageHash(bytes([i]) * 16) for i in range(chance.randint(0, 40))]
    depths = {node: chance.randint(0, len(hashes)) for node in NODES}
    for node, depth in depths.items():
        index.stored(node, hashes[:depth])
    path, longest = shared_path(hashes, page_size, index), max(depths.values())
    assert path.num_tokens == longest * page_size
    owners = {node for node, depth in depths.items() if depth == longest > 0}
    assert set(path.owners) == owners
    assert path.is_left == (longest < len(hashes))
    is_early = longest > 0 and path.num_tokens < EARLY_TOKENS and path.is_left
    assert diverges_early(hashes, page_size, index) == is_early


def asked(tokens: list[int]) -> Request:
    return Request(tokens, Sampling(seed=7), 8)


def count(core: CoordinatorCore, tokens: list[int]) -> int:
    """What one request adds to the counter, and to that of all requests."""
    totals = core.statistics.totals.lifetime
    before = totals.early_divergences, totals.requests
    started, *_ = core.submit(asked(tokens), 0.0)
    assert isinstance(started, AnswerStarted)
    core.cancel(started.answer.request_id, 0.0)
    assert totals.requests == before[1] + 1
    return totals.early_divergences - before[0]


def test_prompts_that_soon_go_their_own_way_are_counted() -> None:
    core = core_of("p0", "d0")
    model = core.registry.model
    assert model is not None
    cached = list(range(1, 401))
    hasher = PageHasher(model.fingerprint, model.layout)
    core.index.stored(D0, hasher.hashes(cached, Namespace()))
    page, other = model.layout.page_size, [7] * 400
    assert count(core, cached[:40] + other) == 1
    assert count(core, cached[: EARLY_TOKENS - 1] + other) == 1
    assert count(core, cached) == count(core, [*cached, *other]) == 0
    assert count(core, cached[:EARLY_TOKENS] + other) == 0
    assert count(core, cached[: 3 * page]) == 0, "it is cached as far as it goes"
    assert count(core, cached[: page - 1] + other) == count(core, other) == 0


def test_an_explanation_tells_where_a_prompt_leaves_the_path() -> None:
    core = core_of("p0", "d0")
    model = core.registry.model
    assert model is not None
    cached = list(range(1, 401))
    core.index.stored(D0, PageHasher(model.fingerprint, model.layout).hashes(cached, Namespace()))
    _, _, path = core.explain(asked(cached[:50] + [7] * 100), 0.0)
    page = model.layout.page_size
    assert (path.num_tokens, path.owners, path.is_left) == (50 // page * page, [D0], True)
    assert not core.explain(asked(cached), 0.0)[2].is_left
