"""Reads the metadata of a GGUF model that belongs to its architecture."""

from __future__ import annotations

from typing import Any

from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.header import ArrayPlace
from protocol.model.gguf.parts import GgufParts

TEXTS = ("rope.scaling.type",)
"""The keys whose values are no numbers."""


class Settings:
    """The metadata under the prefix of a model's architecture."""

    def __init__(self, parts: GgufParts) -> None:
        self._parts = parts
        self.prefix: str = parts.metadata["general.architecture"]

    def get(self, key: str, default: Any = None) -> Any:
        """Returns the number or the text `key`. An array, which has a value for each layer, is that
        value if all are the same. Raises ModelDirectoryError if they are not, and for a text in
        place of a number."""
        full = f"{self.prefix}.{key}"
        value = self._parts.metadata.get(full)
        if isinstance(value, ArrayPlace):
            values = set(self._parts.array(full) or ())
            if len(values) != 1:
                raise ModelDirectoryError(
                    f"{self._parts.file} has {full} {sorted(values)}, which differs from layer to "
                    "layer; this engine computes models whose layers are alike"
                )
            (value,) = values
        if isinstance(value, str) and key not in TEXTS:
            raise ModelDirectoryError(
                f"{self._parts.file} has {full} {value!r}, which must be a number; fetch it again"
            )
        return default if value is None else value

    def present(self, key: str) -> Any:
        """Returns the value of `key`. Raises ModelDirectoryError if there is none."""
        value = self.get(key)
        if value is None:
            raise missing(self._parts, f"{self.prefix}.{key}")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """Returns the whole number `key`. Raises ModelDirectoryError if it is something else, or
        missing where there is no default."""
        value = self.present(key) if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelDirectoryError(
                f"{self._parts.file} has {self.prefix}.{key} {value!r}, which must be a whole "
                "number; fetch it again"
            )
        return value


def missing(parts: GgufParts, key: str) -> ModelDirectoryError:
    """Returns the error for metadata without a key that every model needs."""
    return ModelDirectoryError(
        f"the metadata of {parts.file} has no {key}; convert the model again, or fetch another file"
    )
