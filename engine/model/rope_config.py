"""`RopeConfig` holds what config.json says of rotary positions, in either of two dialects.

transformers 5 writes `rope_parameters`, for some families one per type of layer; earlier versions
wrote `rope_theta`, `rope_scaling` and, for the sliding layers of Gemma 3, `rope_local_base_freq`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from engine.model.families import Family, UnsupportedModel
from protocol.model.directory import ModelDirectoryError
from protocol.model.numbers import MOST_FACTOR, number, rope_factor, switch, whole, wrong

KINDS = ("default", "linear", "llama3", "yarn", "longrope")
SLIDING, FULL = "sliding_attention", "full_attention"
MOST_POSITIONS = 1 << 40
LEAST_THETA, LEAST_RANGE = 2.0, 2
"""Of both, logarithms are divisors."""


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
    family: Family, raw: dict[str, Any], head_dim: int, context_length: int
) -> dict[str, RopeConfig]:
    """Returns the rope of each type of layer. `context_length` is the longest sequence that is
    served.

    As in transformers, `rope_scaling` goes before `rope_parameters`, and what stands in either of
    them before keys beside them. Raises UnsupportedModel, ModelDirectoryError, and KeyError for a
    parameter that is missing.
    """
    theta = _theta(raw, 10_000.0)
    scaling, parameters = _object(raw, "rope_scaling"), _object(raw, "rope_parameters")
    if family.has_local_rope:
        local_theta = number(raw, "rope_local_base_freq", 10_000.0, LEAST_THETA)
        if parameters and not parameters.keys() & {FULL, SLIDING}:
            raise wrong("rope_parameters", parameters, f"an object with {FULL} and {SLIDING}")
        full = {**_object(parameters, FULL), **scaling}
        sliding = _object(parameters, SLIDING)
        return {
            FULL: _read(family, full, raw, head_dim, theta, context_length),
            SLIDING: _read(family, sliding, raw, head_dim, local_theta, context_length),
        }
    if parameters.keys() & {FULL, SLIDING}:
        raise UnsupportedModel(
            "config.json has rope_parameters for each type of layer, which only Gemma 3 has"
        )
    rope = scaling or parameters
    other = parameters.get("rope_theta")
    used = _theta(rope, theta)
    if other is not None and other != used:
        raise ModelDirectoryError(
            f"config.json has rope_scaling {scaling}, with which rope_theta would be {used:g}, and "
            f"rope_parameters with rope_theta {other}; move all of it into rope_parameters"
        )
    read = _read(family, rope, raw, head_dim, theta, context_length)
    return {FULL: read, SLIDING: read}


def _object(raw: dict[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    if value is not None and not isinstance(value, dict):
        raise wrong(key, value, "an object")
    return value or {}


def _read(
    family: Family,
    rope: dict[str, Any],
    raw: dict[str, Any],
    head_dim: int,
    theta: float,
    context_length: int,
) -> RopeConfig:
    kind = _kind(family, rope)
    partial = number(rope, "partial_rotary_factor", number(raw, "partial_rotary_factor", 1.0))
    if partial > 1 or (partial < 1 and not family.may_rotate_partly):
        raise UnsupportedModel(
            f"config.json has partial_rotary_factor {partial:g}; this engine rotates parts of "
            "heads for Phi-3 alone, as transformers does"
        )
    rotary_dim, theta = int(head_dim * partial), _theta(rope, theta)
    if rotary_dim % 2:
        raise UnsupportedModel(
            f"{rotary_dim} dimensions of a head of {head_dim} are rotated (partial_rotary_factor "
            f"{partial:g}); they must be even in number, to be rotated in pairs"
        )
    longest = whole(raw, "max_position_embeddings", LEAST_RANGE, MOST_POSITIONS)
    # Beside the rope's own parameters it goes before that within them, unlike the others.
    key = "original_max_position_embeddings"
    inner = number(rope, key, longest, LEAST_RANGE, MOST_POSITIONS)
    original = int(number(raw, key, inner, LEAST_RANGE, MOST_POSITIONS))
    if kind == "default":
        return RopeConfig(rotary_dim, theta)
    if kind == "linear":
        return RopeConfig(rotary_dim, theta, kind, rope_factor(rope))
    if kind == "llama3":
        low, high = _frequency_factors(rope)
        factor = rope_factor(rope)
        return RopeConfig(
            rotary_dim, theta, kind, factor, original, low_freq_factor=low, high_freq_factor=high
        )
    factor = rope_factor(rope, longest / original)
    if kind == "yarn":
        return RopeConfig(
            rotary_dim,
            theta,
            kind,
            factor,
            original,
            beta_fast=number(rope, "beta_fast", 32.0),
            beta_slow=number(rope, "beta_slow", 1.0),
            truncate=rope.get("truncate") is None or switch(rope, "truncate"),
            attention_factor=_yarn_attention_factor(rope, factor),
        )
    is_long = (context_length or longest) > original
    attention_factor = number(
        rope, "attention_factor", _longrope_attention_factor(factor, original), most=MOST_FACTOR
    )
    return RopeConfig(
        rotary_dim,
        theta,
        kind,
        original_max_position=original,
        divisors=_divisors(rope, "long_factor" if is_long else "short_factor", rotary_dim // 2),
        attention_factor=attention_factor,
    )


def _theta(raw: dict[str, Any], default: float) -> float:
    return number(raw, "rope_theta", default, LEAST_THETA)


def _frequency_factors(rope: dict[str, Any]) -> tuple[float, float]:
    """Returns Llama 3's low and high factor, whose difference is a divisor."""
    low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
    if low >= high:
        raise wrong("low_freq_factor", low, f"less than high_freq_factor, which is {high:g}")
    return low, high


def _kind(family: Family, rope: dict[str, Any]) -> str:
    """Returns one of KINDS. Raises UnsupportedModel."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if family.may_rotate_partly and kind in ("su", "yarn"):
        kind = "longrope"  # its names in the first Phi-3
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
    if family.may_rotate_partly and kind not in ("default", "longrope"):
        raise UnsupportedModel(f"the model uses {kind} rope scaling; a Phi-3 has longrope or none")
    return str(kind)


def _divisors(rope: dict[str, Any], key: str, count: int) -> tuple[float, ...]:
    values = rope[key]
    if not isinstance(values, list) or len(values) != count:
        found = len(values) if isinstance(values, list) else values
        raise ModelDirectoryError(
            f"config.json has {key} with {found} values; {count} pairs of dimensions are rotated, "
            "and each has one; fetch the model again"
        )
    return tuple(number({key: value}, key) for value in values)


def _longrope_attention_factor(factor: float, original: int) -> float:
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _yarn_attention_factor(rope: dict[str, Any], factor: float) -> float:
    """Returns Yarn's temperature of the scores (Peng et al., 2023, section 3.4), which multiplies q
    and k each."""

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor", most=MOST_FACTOR)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = [number(rope, key, most=MOST_FACTOR) for key in ("mscale", "mscale_all_dim")]
        return temperature(scales[0]) / temperature(scales[1])
    return temperature(1.0)
