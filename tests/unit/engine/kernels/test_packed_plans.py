"""`plan_product` cuts every product so that nothing is left out and no program is too small."""

from __future__ import annotations

from typing import get_args

import pytest

from engine.kernels.packed.plans import (
    LEAST_TILES_OF_A_SPLIT,
    MOST_ROWS,
    MOST_SPLITS,
    MULTIPROCESSORS,
    PlanKind,
    plan_product,
    prefetched_bytes,
)


@pytest.mark.parametrize("kind", get_args(PlanKind))
@pytest.mark.parametrize("num_out", [37, 4096, 28672])
@pytest.mark.parametrize("num_tiles", [1, 32, 112])
def test_a_plan_is_one_that_kernels_take(kind: PlanKind, num_out: int, num_tiles: int) -> None:
    for num_rows in (1, 8, 9, 16, 20, 33, 64, 100, 128, 500):
        plan = plan_product(kind, num_rows, num_out, num_tiles)
        for number in (plan.rows, plan.outputs, plan.slices, plan.splits, plan.num_warps):
            assert number.bit_count() == 1
        assert min(num_rows, MOST_ROWS) <= plan.rows <= max(8, 2 * num_rows - 1)
        assert plan.splits <= MOST_SPLITS
        assert plan.splits == 1 or num_tiles // plan.splits >= LEAST_TILES_OF_A_SPLIT


def test_few_outputs_share_their_inputs_among_more_programs() -> None:
    narrow, wide = plan_product("int4", 16, 4096, 32), plan_product("int4", 16, 28672, 32)
    assert narrow.splits > wide.splits
    assert plan_product("int4", 1, 4096, 32).splits == MOST_SPLITS


def test_a_wide_weight_has_as_many_programs_as_a_gpu_needs() -> None:
    for num_rows in (1, 16, 32, 64):
        for kind in get_args(PlanKind):
            plan = plan_product(kind, num_rows, 28672, 32)
            assert 28672 // plan.outputs * plan.splits >= MULTIPROCESSORS


def test_warps_share_long_inputs_only_where_rows_are_few() -> None:
    short, long = (plan_product("int8", 8, 4096, num_tiles) for num_tiles in (32, 112))
    assert short.slices < long.slices
    assert plan_product("int8", 32, 4096, 112) == plan_product("int8", 32, 4096, 32)


def test_a_program_prefetches_no_more_than_it_reads() -> None:
    plan = plan_product("int4", 1, 4096, 112)
    assert prefetched_bytes(plan, 7168) * plan.splits <= 7168
    assert prefetched_bytes(plan, 64) == 0
