"""Decides which node of a cluster computes on which GPUs of its host. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from protocol.config import ConfigError


@dataclass(frozen=True)
class GpuAssignment:
    """The GPUs of one node: neighbours, and behind the last GPU of the host comes its first."""

    gpus: tuple[int, ...]
    """The GPU of each rank, by its number among those that are visible."""
    num_sharing: int
    """The most nodes that any of these GPUs has, this one among them."""

    @property
    def flags(self) -> dict[str, str]:
        """The settings of the node, as `kvrelay prefill` and `kvrelay decode` take them."""
        return {"device": f"cuda:{self.gpus[0]}", "memory_share": f"{1 / self.num_sharing:.4f}"}


def assign_gpus(num_gpus: int, sizes: Mapping[str, int]) -> dict[str, GpuAssignment]:
    """Returns the GPUs of every node. `sizes` are their tensor-parallel sizes by name, in the
    order in which they choose.

    Each takes the neighbours that have the fewest nodes so far: nodes go round the GPUs, and share
    them only when none is free. A node that must share begins where the fewest of its ranks meet
    one that has heads in common with them: those exchange pages, and NCCL joins two GPUs, not one
    with itself. Raises ConfigError if a node has more ranks than there are GPUs.
    """
    chosen: dict[str, tuple[int, ...]] = {}
    for name, size in sizes.items():
        if size > num_gpus:
            raise ConfigError(
                f"node {name} has --tensor-parallel-size {size}, which needs as many GPUs, and "
                f"{num_gpus} {'is' if num_gpus == 1 else 'are'} visible; choose a smaller size, "
                "or let CUDA_VISIBLE_DEVICES show more"
            )
        begins = range(num_gpus)
        places = [tuple((begin + rank) % num_gpus for rank in range(size)) for begin in begins]
        chosen[name] = min(places, key=lambda gpus: _crowding(gpus, chosen.values()))
    return {
        name: GpuAssignment(gpus, max(_loads(gpus, chosen.values())))
        for name, gpus in chosen.items()
    }


def _crowding(gpus: Sequence[int], others: Iterable[Sequence[int]]) -> tuple[int, int, int]:
    """Returns how bad it is for a node to compute on `gpus`, where the `others` are: the most nodes
    on one of them, the nodes on all, and the pairs of ranks that share a GPU and heads."""
    loads = _loads(gpus, others)
    return max(loads), sum(loads), sum(_num_meetings(gpus, other) for other in others)


def _loads(gpus: Sequence[int], nodes: Iterable[Sequence[int]]) -> list[int]:
    """Returns how many of the nodes are on each of `gpus`."""
    return [sum(gpu in node for node in nodes) for gpu in gpus]


def _num_meetings(one: Sequence[int], other: Sequence[int]) -> int:
    """Counts the pairs of ranks of two nodes that are on the same GPU and have heads in common:
    rank i of n has the i-th of n equal parts of all heads."""
    return sum(
        gpu == other_gpu
        and i * len(other) < (j + 1) * len(one)
        and j * len(one) < (i + 1) * len(other)
        for i, gpu in enumerate(one)
        for j, other_gpu in enumerate(other)
    )


def told(assignments: Mapping[str, GpuAssignment]) -> str:
    """Returns sentences that say who computes where, and what follows where GPUs are shared."""
    places = ", ".join(f"{name} on {_names(place.gpus)}" for name, place in assignments.items())
    most = max(place.num_sharing for place in assignments.values())
    if most == 1:
        return f"no two nodes share a GPU: {places}"
    return (
        f"{len(assignments)} nodes share the visible GPUs, up to {most} on one: {places}. Each "
        "gets its part of the memory, and they wait for each other's steps; for a GPU each, start "
        "fewer nodes or let CUDA_VISIBLE_DEVICES show more"
    )


def _names(gpus: Sequence[int]) -> str:
    if len(gpus) == 1:
        return f"cuda:{gpus[0]}"
    between = "to" if gpus[0] < gpus[-1] else "round to"
    return f"cuda:{gpus[0]} {between} cuda:{gpus[-1]}"
