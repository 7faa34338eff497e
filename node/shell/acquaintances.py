"""Which nodes this one should make links to before a request needs them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.ids import Node
from protocol.messages import NodeInfo

MAX_MET = 8
"""Nodes that are met ahead of need: over NCCL each link takes a quarter of a gigabyte of a GPU."""


class Acquaintances:
    """Remembers which nodes were met, each incarnation once."""

    def __init__(self, own: NodeInfo) -> None:
        self._own = own
        self._met: set[Node] = set()

    def strangers(self, listed: Sequence[NodeInfo]) -> list[NodeInfo]:
        """Takes all nodes that live now. Returns those to be met, which count as met from now on:
        nodes of the same model, as many as there may be."""
        self._met &= {info.node for info in listed}
        found = [
            info
            for info in sorted(listed, key=lambda info: info.node.name)
            if info.node.name != self._own.node.name
            and info.node not in self._met
            and info.layout == self._own.layout
            and info.model_fingerprint == self._own.model_fingerprint
        ][: max(0, MAX_MET - len(self._met))]
        self._met.update(info.node for info in found)
        return found
