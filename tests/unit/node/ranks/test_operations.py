"""Counted ranks compute what the ranks themselves do, whatever they do together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.parallel import TensorParallel
from node.ranks.operations import Operations
from tests.support.engine.ranks import on_ranks

Collective = Callable[[TensorParallel, Tensor], Tensor]


@pytest.mark.parametrize(
    "collective",
    [TensorParallel.all_reduce, TensorParallel.all_max, TensorParallel.all_gather],
    ids=lambda collective: collective.__name__,
)
def test_every_collective_operation_of_ranks_is_counted(collective: Collective) -> None:
    def both(parallel: TensorParallel) -> tuple[list[float], list[float], int]:
        operations = Operations()
        counted = operations.counted(parallel)
        alone, theirs = (
            collective(ranks, torch.tensor([parallel.rank + 1.0, -2.0])).tolist()
            for ranks in (parallel, counted)
        )
        return alone, theirs, operations.num_begun

    for alone, theirs, num_begun in on_ranks(2, both):
        assert alone == theirs and num_begun == 1
