"""`RenamedSource`: a checkpoint whose modules have other names than Llama's, under Llama's."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from engine.weights.source import Part, TensorInfo, TensorSource

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class RenamedSource:
    """Implements `TensorSource` over another one, in the same order."""

    def __init__(self, inner: TensorSource, names: Mapping[str, str]) -> None:
        """`names` are those of `Family.names`; a tensor of another module keeps its name."""
        self.name = f"{inner.name}, under Llama's names,"
        self._inner = inner
        self._names = {renamed(name, names): name for name in inner.tensors}
        self.tensors: dict[str, TensorInfo] = {
            new: inner.tensors[old] for new, old in self._names.items()
        }

    def read(self, name: str, part: Part = ()) -> Tensor:
        """Returns a part of a tensor, as `TensorSource.read` says. Raises ModelDirectoryError."""
        return self._inner.read(self._names[name], part)


def renamed(name: str, names: Mapping[str, str]) -> str:
    """Returns Llama's name of a tensor or module; `name` itself if `names` do not have it."""
    number = NUMBER.search(name)
    layer = number.group() if number else ""
    general = NUMBER.sub("*", name, count=1)
    module, _, tensor = general.rpartition(".")
    if general in names:
        return names[general].replace("*", layer)
    if module in names:
        return f"{names[module].replace('*', layer)}.{tensor}"
    return name
