"""Decides which node of a cluster computes on which GPUs of its host. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.config import ConfigError


@dataclass(frozen=True)
class GpuAssignment:
    """The GPUs of one node: `num_ranks` neighbours, from `first` on."""

    first: int
    num_ranks: int
    num_sharing: int
    """The most nodes that any of these GPUs has, this one among them."""

    @property
    def flags(self) -> dict[str, str]:
        """The settings of the node, as `kvrelay prefill` and `kvrelay decode` take them."""
        return {"device": f"cuda:{self.first}", "memory_share": f"{1 / self.num_sharing:.4f}"}

    @property
    def gpus(self) -> range:
        """The numbers of the GPUs, among those that are visible."""
        return range(self.first, self.first + self.num_ranks)


def assign_gpus(num_gpus: int, sizes: Mapping[str, int]) -> dict[str, GpuAssignment]:
    """Returns the GPUs of every node. `sizes` are their tensor-parallel sizes by name, in the
    order in which they choose.

    Each takes the first neighbours that have the fewest nodes so far: nodes go round the GPUs, and
    share them only when none is free. Raises ConfigError if a node has more ranks than there are
    GPUs.
    """
    nodes_on = [0] * num_gpus
    first_of: dict[str, int] = {}
    for name, size in sizes.items():
        if size > num_gpus:
            raise ConfigError(
                f"node {name} has --tensor-parallel-size {size}, which needs as many GPUs, and "
                f"{num_gpus} {'is' if num_gpus == 1 else 'are'} visible; choose a smaller size, "
                "or let CUDA_VISIBLE_DEVICES show more"
            )
        first = min(
            range(num_gpus - size + 1),
            key=lambda first: (max(nodes_on[first : first + size]), sum(nodes_on[first:][:size])),
        )
        for gpu in range(first, first + size):
            nodes_on[gpu] += 1
        first_of[name] = first
    return {
        name: GpuAssignment(first, sizes[name], max(nodes_on[first : first + sizes[name]]))
        for name, first in first_of.items()
    }


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
    last = f" to cuda:{gpus[-1]}" if len(gpus) > 1 else ""
    return f"cuda:{gpus[0]}{last}"
