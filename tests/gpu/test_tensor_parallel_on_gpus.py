"""Nodes of as many ranks as there are GPUs, up to eight, and of half as many: ranks reduce over
NCCL, eagerly and within recorded steps, and their pages travel over NCCL, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.support.processes.rank_nodes import (
    RankNodes,
    Sized,
    check_lost_ranks,
    check_pages_travel,
    rank_nodes,
)

NUM_GPUS = torch.cuda.device_count()
WHOLE = next((size for size in (8, 4, 2) if size <= NUM_GPUS), 2)
HALF = WHOLE // 2
SIZES = list(dict.fromkeys([(WHOLE, WHOLE), (HALF, WHOLE), (WHOLE, HALF), (1, WHOLE)]))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(NUM_GPUS < 2, reason="no two CUDA devices"),
]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankNodes]:
    with rank_nodes(tmp_path_factory, NUM_GPUS) as nodes:
        yield nodes


@pytest.fixture(scope="module", params=SIZES, ids=lambda sizes: f"{sizes[0]}-{sizes[1]}")
def sized(request: pytest.FixtureRequest, nodes: RankNodes) -> Sized:
    """After the first sizes, nodes are started anew under the names of those that lost ranks."""
    return nodes.start(*request.param)


def test_pages_travel_between_ranks(nodes: RankNodes, sized: Sized) -> None:
    check_pages_travel(nodes, sized)


def test_lost_ranks_cost_their_nodes_and_no_answer(nodes: RankNodes, sized: Sized) -> None:
    """A node ends although its rank 0 may wait on the device for a collective operation that never
    ends."""
    check_lost_ranks(nodes, sized)
