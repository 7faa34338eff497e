"""Reads the rotary positions of a GGUF model, under the keys of config.json."""

from __future__ import annotations

from typing import Any

from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.parts import GgufParts
from protocol.model.gguf.settings import Settings

FREQUENCY_DIVISORS = "rope_freqs.weight"
"""The tensor with a divisor for each rotary frequency, which models with Llama 3.1's scaling have:
its parameters are not in the file."""
LONG_DIVISORS, SHORT_DIVISORS = "rope_factors_long.weight", "rope_factors_short.weight"
"""The same for the two ranges of longrope."""
ROPE_TENSORS = (FREQUENCY_DIVISORS, LONG_DIVISORS, SHORT_DIVISORS)


def rope_keys(parts: GgufParts, settings: Settings, head_dim: int) -> dict[str, Any]:
    """Returns rope_theta and what else config.json says of positions. Raises ModelDirectoryError
    for a scaling that is not supported."""
    keys: dict[str, Any] = {"rope_theta": settings.get("rope.freq_base", 10_000.0)}
    if settings.prefix == "gemma3":
        keys["rope_local_base_freq"] = settings.get("rope.freq_base_swa", 10_000.0)
    rotary_dim = settings.whole("rope.dimension_count", head_dim)
    if rotary_dim != head_dim and head_dim:
        keys["partial_rotary_factor"] = rotary_dim / head_dim
    original = settings.get("rope.scaling.original_context_length")
    if settings.prefix == "phi3" and original is not None:
        keys["original_max_position_embeddings"] = original
    scaling = _scaling(parts, settings)
    return keys if scaling is None else {**keys, "rope_scaling": scaling}


def _scaling(parts: GgufParts, settings: Settings) -> dict[str, Any] | None:
    divisors = parts.numbers(FREQUENCY_DIVISORS)
    if divisors is not None and any(divisor != 1 for divisor in divisors):
        # The same divisors for every length.
        return {
            "rope_type": "longrope",
            "long_factor": divisors,
            "short_factor": divisors,
            "attention_factor": 1.0,
        }
    long, short = parts.numbers(LONG_DIVISORS), parts.numbers(SHORT_DIVISORS)
    if long is not None and short is not None:
        factor = settings.get("rope.scaling.attn_factor")
        scaling = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        return scaling if factor is None else {**scaling, "attention_factor": factor}
    return _scaling_by_keys(parts, settings)


def _scaling_by_keys(parts: GgufParts, settings: Settings) -> dict[str, Any] | None:
    """Returns linear scaling and Yarn's, which are in the metadata. A factor without a kind, or
    under its older name, is linear."""
    kind = settings.get("rope.scaling.type", "linear")
    factor = settings.get("rope.scaling.factor") or settings.get("rope.scale_linear") or 1.0
    if kind in ("none", "longrope") or factor == 1.0:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ModelDirectoryError(
            f"{parts.file} has {kind} rope scaling; of GGUF this engine supports linear, yarn, and "
            "tables of divisors"
        )
    if settings.get("rope.scaling.yarn_ext_factor", 1.0) != 1.0:
        raise ModelDirectoryError(
            f"{parts.file} has yarn rope scaling with an extrapolation factor of "
            f"{settings.get('rope.scaling.yarn_ext_factor')}; this engine computes it with 1"
        )
    optional = {
        "beta_fast": settings.get("rope.scaling.yarn_beta_fast"),
        "beta_slow": settings.get("rope.scaling.yarn_beta_slow"),
        "attention_factor": settings.get("rope.scaling.yarn_attn_factor"),
    }
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": settings.whole("rope.scaling.original_context_length"),
        **{key: value for key, value in optional.items() if value is not None},
    }
