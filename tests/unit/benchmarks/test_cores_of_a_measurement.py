"""How a measurement divides the cores among its processes."""

from __future__ import annotations

import pytest

from benchmarks.clusters.cores import cores_for


@pytest.mark.parametrize("workers", (1, 2, 4))
@pytest.mark.parametrize("num_cores", range(2, 17))
def test_groups_share_no_core_and_coordinators_only_where_cores_are_few(
    workers: int, num_cores: int
) -> None:
    usable = list(range(10, 10 + num_cores))
    cores = cores_for(workers, usable)
    assert {*cores.coordinators, *cores.clients, cores.others} <= set(usable)
    assert not {*cores.clients, cores.others} & set(cores.coordinators)
    has_enough = num_cores >= workers + 2
    assert len(set(cores.coordinators)) == (workers if has_enough else 1)
    assert (cores.others not in cores.clients) == has_enough
    assert len(cores.clients) == max(1, min(workers, num_cores - workers - 1))


def test_one_core_is_not_enough() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        cores_for(1, [0])
