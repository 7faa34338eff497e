"""kvrelay's layouts: how many nodes of each kind, and whether prompts and answers are kept apart.

1p1d     one prefill and one decode node, each doing its own work only (--policy disaggregate)
2d       two decode nodes, which do everything
mixed    half of the GPUs prefill nodes, half decode nodes, any of which does any work
tp2+2    one prefill and one decode node, of two ranks each
tp4      one decode node of four ranks, which does everything
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from protocol.config import ConfigError


@dataclass(frozen=True)
class Layout:
    """A kvrelay cluster."""

    name: str
    num_prefill: int
    num_decode: int
    policy: str
    prefill_ranks: int = 1
    decode_ranks: int = 1

    @classmethod
    def parse(cls, name: str, num_gpus: int) -> Layout:
        """Reads the name of a layout. Raises ConfigError."""
        if name == "mixed":
            half = max(1, num_gpus // 2)
            return cls(name, half, max(1, num_gpus - half), "cost")
        if found := re.fullmatch(r"tp([1-9]\d?)", name):
            return cls(name, 0, 1, "cost", decode_ranks=int(found[1]))
        if found := re.fullmatch(r"tp([1-9]\d?)\+([1-9]\d?)", name):
            return cls(name, 1, 1, "disaggregate", int(found[1]), int(found[2]))
        if found := re.fullmatch(r"(?:([1-9]\d?)p)?([1-9]\d?)d", name):
            prefill = int(found[1] or 0)
            return cls(name, prefill, int(found[2]), "disaggregate" if prefill else "cost")
        raise ConfigError(
            f"--layouts has {name!r}; write 1p1d (prefill and decode nodes), 2d (decode nodes that "
            "do everything), mixed, tp2+2 (ranks of a prefill and of a decode node), or tp4 (ranks "
            "of one node)"
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The tensor-parallel size of each node, by its name."""
        prefill = {f"p{i}": self.prefill_ranks for i in range(self.num_prefill)}
        return prefill | {f"d{i}": self.decode_ranks for i in range(self.num_decode)}


def default_layouts(num_gpus: int) -> tuple[str, ...]:
    """Returns the layouts that are measured on so many GPUs unless told otherwise."""
    if num_gpus == 1:
        return ("1d", "1p1d")
    half = num_gpus // 2
    layouts = (f"{half}p{half}d", f"{num_gpus}d", "mixed")
    if num_gpus < 4:
        return layouts
    quarter = num_gpus // 4
    skewed = (f"{quarter}p{num_gpus - quarter}d",) if num_gpus >= 8 else ()
    return (*layouts, *skewed, f"tp{half}+{half}")
