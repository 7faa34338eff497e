"""A node in a container counts on the memory that the container may have, not on the host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.resources import CGROUP_FILES, host_memory_bytes

MIB = 1 << 20


def written(directory: Path, version: int, limit: str, usage: int, cache: int) -> Path:
    """The files of a control group; a half of `cache` was used lately."""
    kinds = f"anon 5\nactive_file {cache // 2}\ninactive_file {cache // 2}\nslab 7"
    for name, text in zip(CGROUP_FILES[version], (limit, str(usage), kinds), strict=True):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text + "\n")
    return directory


@pytest.mark.parametrize("version", range(len(CGROUP_FILES)))
def test_the_limit_of_a_container_counts(tmp_path: Path, version: int) -> None:
    cgroups = written(tmp_path, version, str(64 * MIB), 40 * MIB, 16 * MIB)
    assert host_memory_bytes(cgroups) == ((64 - 40 + 16) * MIB, 64 * MIB)


@pytest.mark.parametrize("version", range(len(CGROUP_FILES)))
def test_a_container_that_has_more_than_it_may_has_none_left(tmp_path: Path, version: int) -> None:
    assert host_memory_bytes(written(tmp_path, version, str(MIB), 3 * MIB, 0))[0] == 0


@pytest.mark.parametrize(("version", "limit"), [(0, "max"), (1, str(1 << 62))])
def test_without_a_limit_it_is_the_hosts(tmp_path: Path, version: int, limit: str) -> None:
    free, total = host_memory_bytes(written(tmp_path, version, limit, 3 * MIB, 0))
    assert free > 3 * MIB and total == host_memory_bytes(tmp_path / "none")[1]
