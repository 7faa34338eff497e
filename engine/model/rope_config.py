"""`RopeConfig` holds what config.json says of rotary positions, in either of two dialects.

transformers 5 writes `rope_parameters`, for some families one per type of layer; earlier versions
wrote `rope_theta`, `rope_scaling` and, for the sliding layers of Gemma 3, `rope_local_base_freq`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from engine.model.families import UnsupportedModel

KINDS = ("default", "linear", "llama3", "yarn", "longrope")
SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class RopeConfig:
    """The rotary frequencies, and how they are stretched beyond the trained range."""

    rotary_dim: int
    """The number of leading dimensions of a head that are rotated."""
    theta: float
    kind: str = "default"
    """One of `KINDS`; those after the first use the fields below as far as they need them."""
    factor: float = 1.0
    original_max_position: int = 0
    """The trained range in tokens, for llama3, yarn and longrope."""
    low_freq_factor: float = 1.0
    """Read by llama3, like `high_freq_factor`."""
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    """Read by yarn, like `beta_slow` and `truncate`."""
    beta_slow: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()
    """Read by longrope: one for each frequency."""
    attention_factor: float = 1.0
    """A number by which cosines and sines are multiplied."""


def read_ropes(
    raw: dict[str, Any], head_dim: int, default_theta: float, context_length: int
) -> dict[str, RopeConfig]:
    """Returns the rope of each type of layer. `context_length` is the longest sequence that is
    served.

    Raises UnsupportedModel, and KeyError for a parameter that is missing.
    """
    parameters = raw.get("rope_parameters") or {}
    if SLIDING in parameters or FULL in parameters:
        full, sliding = parameters.get(FULL) or {}, parameters.get(SLIDING) or {}
    else:
        full = sliding = parameters or raw.get("rope_scaling") or {}
        if "rope_local_base_freq" in raw:
            sliding = {"rope_theta": raw["rope_local_base_freq"]}
    theta = float(raw.get("rope_theta") or default_theta)
    return {
        FULL: _read(full, raw, head_dim, theta, context_length),
        SLIDING: _read(sliding, raw, head_dim, theta, context_length),
    }


def _read(
    rope: dict[str, Any], raw: dict[str, Any], head_dim: int, theta: float, context_length: int
) -> RopeConfig:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = "longrope" if kind == "su" else kind  # its name in the first Phi-3
    if kind == "dynamic":
        raise UnsupportedModel(
            "the model uses dynamic rope scaling: its rotations change with the length of the "
            "prompt, so no page could be shared; set rope_scaling to yarn or linear in its "
            "config.json"
        )
    if kind not in KINDS:
        raise UnsupportedModel(
            f"the model uses {kind} rope scaling; this engine supports {', '.join(KINDS)}"
        )
    partial = rope.get("partial_rotary_factor") or raw.get("partial_rotary_factor") or 1.0
    rotary_dim, theta = int(head_dim * partial), float(rope.get("rope_theta") or theta)
    longest = int(raw["max_position_embeddings"])
    original = int(
        rope.get("original_max_position_embeddings")
        or raw.get("original_max_position_embeddings")
        or longest
    )
    if kind == "default":
        return RopeConfig(rotary_dim, theta)
    if kind == "linear":
        return RopeConfig(rotary_dim, theta, kind, float(rope["factor"]))
    if kind == "llama3":
        return RopeConfig(
            rotary_dim,
            theta,
            kind,
            float(rope["factor"]),
            original,
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
        )
    factor = float(rope.get("factor") or longest / original)
    if kind == "yarn":
        return RopeConfig(
            rotary_dim,
            theta,
            kind,
            factor,
            original,
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            truncate=bool(rope.get("truncate", True)),
            attention_factor=_yarn_attention_factor(rope, factor),
        )
    divisors = rope["long_factor" if (context_length or longest) > original else "short_factor"]
    attention_factor = rope.get("attention_factor")
    if attention_factor is None:
        stretch = math.log(factor) / math.log(original) if factor > 1 else 0.0
        attention_factor = math.sqrt(1 + stretch)
    return RopeConfig(
        rotary_dim,
        theta,
        kind,
        original_max_position=original,
        divisors=tuple(float(d) for d in divisors),
        attention_factor=float(attention_factor),
    )


def _yarn_attention_factor(rope: dict[str, Any], factor: float) -> float:
    """Returns Yarn's temperature of the scores (Peng et al., 2023, section 3.4), which multiplies q
    and k each."""

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return temperature(rope["mscale"]) / temperature(rope["mscale_all_dim"])
    return temperature(1.0)
