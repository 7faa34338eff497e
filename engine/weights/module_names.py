"""What the modules of checkpoints are called: Hugging Face's names, and the canonical ones by which
the model asks for their forms."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

STEMS = ("model", "language_model.model", "model.language_model")
"""What names of layers begin with. Models that see have their text part under one of the others."""
EXPERT = re.compile(r"(layers\.\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")
MIXTRAL = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
PROJECTION = re.compile(
    r"layers\.\d+\.(?:self_attn|mlp|block_sparse_moe\.experts\.\d+|mlp\.experts\.\d+)"
    r"\.(?:[a-z_]+_proj|w[123])"
)


class CanonicalName(NamedTuple):
    """The canonical name of a module, and which of the experts it belongs to that share it."""

    name: str
    expert: int | None = None


def stem_of(names: Collection[str]) -> str:
    """Returns what the names of layers begin with in a checkpoint that has these tensors."""
    present = {name.partition(".embed_tokens.")[0] for name in names if ".embed_tokens." in name}
    return next((one for one in STEMS if one in present), STEMS[0])


def canonical(module: str, stem: str) -> CanonicalName:
    """Returns the canonical name of a module of a checkpoint whose layers begin with `stem`."""
    rest = module.removeprefix(f"{stem}.")
    if rest == module:
        return CanonicalName(module)
    if match := EXPERT.fullmatch(rest):
        layer, expert, name = match.groups()
        name = MIXTRAL.get(name, name)
        return CanonicalName(f"model.{layer}.mlp.experts.{name}", int(expert))
    return CanonicalName(f"model.{rest}")


def is_projection(module: str, stem: str) -> bool:
    """Says whether a module is a projection of a layer, or of an expert in it."""
    return PROJECTION.fullmatch(module.removeprefix(f"{stem}.")) is not None
