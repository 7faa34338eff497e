"""`RepackedSource`: a checkpoint with packed weights, read as the tensors of their forms."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from engine.weights.formats.module import PackedModule, as_slice, ranges
from engine.weights.source import Part, TensorInfo, TensorSource

ALONG_INPUTS = ("order", "input_scale")
"""Tensors that say the same of all outputs."""


class RepackedSource:
    """Implements `TensorSource`: packed modules appear as their forms' tensors, everything else as
    it is stored."""

    def __init__(
        self,
        stored: TensorSource,
        modules: Mapping[str, PackedModule],
        hidden: Collection[str] = (),
    ) -> None:
        """`modules` are the packed ones of `stored`, by name; tensors that are `hidden` are left
        out."""
        self.name = stored.name
        self._stored, self._modules = stored, modules
        owners = {tensor: name for name, one in modules.items() for tensor in one.stored}
        self.tensors: dict[str, TensorInfo] = {}
        for tensor, info in stored.tensors.items():  # where a module's first tensor is, all are
            owner = owners.get(tensor)
            if owner is None:
                self.tensors[tensor] = info
            else:
                of_module = {f"{owner}.{name}": i for name, i in modules[owner].tensors.items()}
                self.tensors |= {name: i for name, i in of_module.items() if name not in hidden}

    def read(self, name: str, part: Part = ()) -> Tensor:
        """Returns a part of a tensor, as `TensorSource.read` does. Raises ModelDirectoryError."""
        owner, _, tensor = name.rpartition(".")
        module = self._modules.get(owner)
        if module is None or tensor not in module.tensors:
            return self._stored.read(name, part)
        return module.read(tensor, part)


class ReorderedSource:
    """Implements `TensorSource`: some modules have their outputs in another order."""

    def __init__(self, inner: TensorSource, outputs: Mapping[str, Tensor]) -> None:
        """`outputs` tells, for a module, which output of `inner` each of its outputs is."""
        self.name, self.tensors = inner.name, inner.tensors
        self._inner, self._outputs = inner, outputs

    def read(self, name: str, part: Part = ()) -> Tensor:
        """Returns a part of a tensor; reads all outputs of a module that is reordered."""
        owner, _, tensor = name.rpartition(".")
        order = self._outputs.get(owner)
        if order is None or tensor in ALONG_INPUTS:
            return self._inner.read(name, part)
        outputs, *others = ranges(part, self.tensors[name].shape)
        whole = self._inner.read(name, (slice(None), *map(as_slice, others)))
        return whole[order[as_slice(outputs)]]
