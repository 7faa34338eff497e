"""Which GPUs a launcher sees, and which nodes of a cluster it puts on them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.cluster import ClusterPlan, LocalCluster
from infra.gpus import visible
from infra.gpus.assignment import assign_gpus, told
from infra.gpus.visible import installed_gpus, listed_gpus, num_visible_gpus, visible_of
from infra.up import plan
from protocol.config import ConfigError

CARDS = ["GPU-5c8f", "GPU-9a01", "GPU-9b77"]
LISTED = """\
GPU 0: NVIDIA H200 (UUID: GPU-5c8f)
  MIG 1g.18gb     Device  0: (UUID: MIG-77)
GPU 1: NVIDIA H200 (UUID: GPU-9a01)
GPU 2: NVIDIA H200 (UUID: GPU-9b77)
"""


def flags_by_node(flags: Mapping[str, str], num_gpus: int) -> dict[str, tuple[str, str]]:
    """Device and share of memory that `kvrelay up` tells each node; "" if it tells none."""
    planned = plan(flags, {}, lambda _: num_gpus)
    cluster, started = LocalCluster(planned), {}

    def start_process(role: str, name: str, flags: Mapping[str, str]) -> None:
        started[name] = flags.get("device", ""), flags.get("memory_share", "")

    cluster.start_process = start_process  # type: ignore[assignment, method-assign]
    for name in planned.node_names:
        cluster.start_node("prefill" if name.startswith("p") else "decode", name)
    return started


@pytest.mark.parametrize(
    ("num_gpus", "size", "events"),
    [
        (4, 4, ["p0", "wait", "d0", "wait", "wait"]),
        (8, 4, ["p0", "d0", "wait"]),
        (1, 1, ["p0", "d0", "wait"]),
    ],
)
def test_nodes_whose_ranks_share_gpus_start_in_turn(
    num_gpus: int, size: int, events: list[str]
) -> None:
    places = assign_gpus(num_gpus, {"p0": size, "d0": size})
    cluster = LocalCluster(ClusterPlan(1, 1, "127.0.0.1", 30000, assignments=places))
    seen: list[str] = []
    cluster.start_process = lambda role, name, flags: seen.append(name)  # type: ignore[assignment, method-assign]
    cluster.wait_for_nodes = lambda: seen.append("wait")  # type: ignore[method-assign]
    cluster.start_planned_nodes()
    assert seen == events


def test_what_nvidia_smi_lists_are_cards_and_their_parts_are_none() -> None:
    assert listed_gpus(LISTED) == CARDS
    assert listed_gpus("No devices were found\n") == []


@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        (None, CARDS),
        ("", []),
        ("2,0", ["GPU-9b77", "GPU-5c8f"]),
        ("GPU-9b, GPU-5c8f", ["GPU-9b77", "GPU-5c8f"]),
        ("0,7,1", ["GPU-5c8f"]),
        ("-1,0", []),
        ("0,0,1", ["GPU-5c8f"]),
        ("MIG-77", ["MIG-77"]),
    ],
)
def test_the_variable_is_read_as_cuda_reads_it(variable: str | None, seen: list[str]) -> None:
    assert visible_of(CARDS, variable) == seen
    if variable:
        assert visible_of([], variable) == [], "a variable makes no cards"


def test_the_driver_s_own_lists_are_read_where_its_program_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<END\n{LISTED}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert installed_gpus() == CARDS
    program.write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.setattr(visible, "DRIVER_TABLE", tmp_path / "table")
    monkeypatch.setattr(visible, "DEVICES", tmp_path)
    assert installed_gpus() == []
    for name in ("nvidia1", "nvidia0", "nvidiactl"):
        (tmp_path / name).touch()
    assert installed_gpus() == ["nvidia0", "nvidia1"]
    (tmp_path / "table/0000:41:00.0").mkdir(parents=True)
    assert installed_gpus() == ["0000:41:00.0"]
    monkeypatch.setattr(visible, "torch_uses_gpus", lambda: True)
    assert num_visible_gpus({}) == 1
    assert num_visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0
    monkeypatch.setattr(visible, "torch_uses_gpus", lambda: False)
    assert num_visible_gpus({}) == 0, "a torch for CPUs sees no GPU"


def test_nodes_go_round_the_gpus_and_ranks_get_neighbours() -> None:
    """For all clusters of up to three nodes of each kind: no GPU has two nodes while one that could
    have been taken has none, and every rank has a GPU of its own."""
    sizes_of_roles = itertools.product(range(4), range(1, 4), (1, 2), (1, 2, 4))
    for num_prefill, num_decode, prefill_size, decode_size in sizes_of_roles:
        sizes = {f"p{i}": prefill_size for i in range(num_prefill)}
        sizes |= {f"d{i}": decode_size for i in range(num_decode)}
        for num_gpus in (4, 8):
            places = assign_gpus(num_gpus, sizes)
            used = [gpu for place in places.values() for gpu in place.gpus]
            assert set(used) <= set(range(num_gpus))
            assert all(len(places[name].gpus) == size for name, size in sizes.items())
            if len(used) <= num_gpus:
                assert len(set(used)) == len(used) and used[0] == 0
            shares = [place.num_sharing for place in places.values()]
            assert max(shares) == max(used.count(gpu) for gpu in used)


@pytest.mark.parametrize(
    ("num_gpus", "prefill", "decode"),
    [(n, p, d) for n in (2, 4, 8) for p in (1, 2, 4, 8) for d in (1, 2, 4, 8) if max(p, d) <= n],
)
def test_ranks_that_exchange_pages_are_on_two_gpus(
    num_gpus: int, prefill: int, decode: int
) -> None:
    """Unless the only rank of one node has heads in common with all, on every GPU, of the other."""
    places = assign_gpus(num_gpus, {"p0": prefill, "d0": decode})
    meetings = [
        (sender, receiver)
        for sender, gpu in enumerate(places["p0"].gpus)
        for receiver, other in enumerate(places["d0"].gpus)
        if gpu == other
        and not {*range(sender * 8 // prefill, (sender + 1) * 8 // prefill)}.isdisjoint(
            range(receiver * 8 // decode, (receiver + 1) * 8 // decode)
        )
    ]
    is_hopeless = 1 in (prefill, decode) and num_gpus in (prefill, decode)
    assert len(meetings) == is_hopeless
    if prefill + decode > num_gpus:
        assert places["d0"].flags["memory_share"] == "0.5000"


def test_behind_the_last_gpu_comes_the_first() -> None:
    places = assign_gpus(4, {"p0": 4, "d0": 4})
    assert (places["p0"].gpus, places["d0"].gpus) == ((0, 1, 2, 3), (1, 2, 3, 0))
    assert assign_gpus(4, {"p0": 4, "d0": 2})["d0"].gpus == (3, 0)
    assert "p0 on cuda:0 to cuda:3, d0 on cuda:1 round to cuda:0" in told(places)


def test_a_node_with_more_ranks_than_gpus_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"node d0 .* 4, .* 2 are visible; choose a smaller size"):
        assign_gpus(2, {"p0": 1, "d0": 4})


def test_up_spreads_its_nodes_over_the_visible_gpus() -> None:
    two = {"prefill": "1", "decode": "1"}
    own = {"p0": ("cuda:0", "1.0000"), "d0": ("cuda:1", "1.0000")}
    assert flags_by_node(two, 2) == own
    assert flags_by_node(two | {"device": "cuda"}, 2) == own
    halves = {"p0": ("cuda:0", "0.5000"), "d0": ("cuda:0", "0.5000")}
    assert flags_by_node(two, 1) == halves
    shared_out = {"p0": ("", "0.5000"), "d0": ("", "0.5000")}
    assert flags_by_node(two, 0) == shared_out, "on a CPU"
    named = flags_by_node(two | {"device": "cuda:1"}, 2)
    assert named == {"p0": ("cuda:1", "0.5000"), "d0": ("cuda:1", "0.5000")}
    sized = two | {"decode_tensor_parallel_size": "2"}
    assert flags_by_node(sized, 4) == {"p0": ("cuda:0", "1.0000"), "d0": ("cuda:1", "1.0000")}


def test_up_says_where_nodes_compute_and_what_sharing_means() -> None:
    (note,) = plan({}, {}, lambda _: 2).notes
    assert note == "no two nodes share a GPU: p0 on cuda:0, d0 on cuda:1"
    (note,) = plan({"decode": "2"}, {}, lambda _: 2).notes
    assert "3 nodes share the visible GPUs, up to 2 on one" in note
    assert "start fewer nodes or let CUDA_VISIBLE_DEVICES show more" in note
    assert "d0 on cuda:1 to cuda:2" in told(assign_gpus(4, {"p0": 1, "d0": 2}))
    assert plan({}, {}, lambda _: 0).notes == ()
