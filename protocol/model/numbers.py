"""Reads single values of config.json, each checked, and what they say of the longest sequence.

A config.json is written by strangers: a value of the wrong kind is told with its key, before
anything is computed or allocated with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.model.directory import ModelDirectoryError

MOST = 1 << 24
"""No size of a model is larger; whatever is, would only end in an allocation that fails."""
MOST_TOKENS = 1 << 22
"""The largest vocabulary: the sampler adds that many probabilities in 64 bits."""
LEAST_NUMBER, MOST_NUMBER = 1e-30, 1e30
"""What float32 computes with, and leaves room for products of."""
MOST_FACTOR = 1 << 20
"""No rope scaling stretches the trained range further."""
LENGTH_IS_SCALED = "Gemma3"
"""Begins the names of architectures whose `max_position_embeddings` is the range after scaling."""


def whole(raw: Mapping[str, Any], key: str, least: int = 1, most: int = MOST) -> int:
    """Returns the whole number `key`. Raises KeyError if it is missing or null, and
    ModelDirectoryError if it is something else."""
    value = raw.get(key)
    if value is None:
        raise KeyError(key)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise wrong(key, value, f"a whole number from {least} to {most}")
    return value


def number(
    raw: Mapping[str, Any],
    key: str,
    default: float | None = None,
    least: float = LEAST_NUMBER,
    most: float = MOST_NUMBER,
) -> float:
    """Returns the number `key`; the default if it is missing or null. Raises KeyError without a
    default, and ModelDirectoryError if it is something else."""
    value = raw.get(key)
    if value is None:
        if default is None:
            raise KeyError(key)
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        is_any = (least, most) == (LEAST_NUMBER, MOST_NUMBER)
        wanted = "that float32 can hold" if is_any else f"from {least:g} to {most:g}"
        raise wrong(key, value, f"a number above 0 {wanted}")
    return float(value)


def switch(raw: Mapping[str, Any], key: str) -> bool:
    """Returns the boolean `key`; False if it is missing or null. Raises ModelDirectoryError."""
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong(key, value, "true or false")
    return bool(value)


def wrong(key: str, value: object, wanted: str) -> ModelDirectoryError:
    """Returns the error for a key whose value is not what is `wanted`."""
    return ModelDirectoryError(
        f"config.json has {key} {value!r:.200}; it must be {wanted}; correct it or fetch it again"
    )


def longest_sequence(raw: Mapping[str, Any]) -> int:
    """Returns how many tokens prompt and answer may have together: the trained range, stretched by
    linear or yarn rope scaling. Raises ModelDirectoryError."""
    trained = whole(raw, "max_position_embeddings", most=1 << 40)
    if any(str(name).startswith(LENGTH_IS_SCALED) for name in raw.get("architectures") or ()):
        return trained
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise wrong("rope_scaling", rope, "an object")
    if (rope.get("rope_type") or rope.get("type")) not in ("linear", "yarn"):
        return trained
    key = "original_max_position_embeddings"
    given = next((one for one in (raw, rope) if one.get(key) is not None), {})
    return max(trained, int(number(given, key, trained) * rope_factor(rope, 1.0)))


def rope_factor(rope: Mapping[str, Any], default: float | None = None) -> float:
    """Returns by how much rope scaling stretches the trained range. Raises as `number` does."""
    return number(rope, "factor", default, least=1.0, most=MOST_FACTOR)
