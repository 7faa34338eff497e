"""`TensorSource`: where the tensors of a checkpoint come from, whatever files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Part = tuple[slice, ...]
"""A slice for each of the leading dimensions; the others, or all of them if it is empty, are taken
whole."""


@dataclass(frozen=True)
class TensorInfo:
    """What a source knows of a tensor before it is read."""

    shape: tuple[int, ...]
    """The shape as it is stored: packed tensors have fewer elements than the weights in them."""
    dtype: str
    """The format's own name of the type, equal in two sources if their bytes mean the same."""


class TensorSource(Protocol):
    """A checkpoint's tensors by name. Reading one leaves the others where they are."""

    @property
    def name(self) -> str:
        """What an error message calls it, in the plural: "the *.safetensors in models/tiny"."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor, in the order in which they are read fastest."""

    def read(self, name: str, part: Part = ()) -> Tensor:
        """Returns a part of a tensor on the host; reads little more than that part.

        Raises ModelDirectoryError if the bytes cannot be read.
        """
