"""Nodes of up to four ranks exchange pages and lose ranks, with the very checks that `tests/gpu`
makes over NCCL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.processes.rank_nodes import (
    RankNodes,
    Sized,
    check_lost_ranks,
    check_pages_travel,
    rank_nodes,
)

pytestmark = pytest.mark.verify


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankNodes]:
    with rank_nodes(tmp_path_factory, num_gpus=0) as nodes:
        yield nodes


@pytest.fixture(
    scope="module",
    params=[(4, 4), (2, 4), (4, 2), (1, 4)],
    ids=lambda sizes: f"{sizes[0]}-{sizes[1]}",
)
def sized(request: pytest.FixtureRequest, nodes: RankNodes) -> Sized:
    """After the first sizes, nodes are started anew under the names of those that lost ranks."""
    return nodes.start(*request.param)


def test_pages_travel_between_ranks(nodes: RankNodes, sized: Sized) -> None:
    check_pages_travel(nodes, sized)


def test_lost_ranks_cost_their_nodes_and_no_answer(nodes: RankNodes, sized: Sized) -> None:
    check_lost_ranks(nodes, sized)
