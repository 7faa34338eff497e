"""What a format of packed weights offers: modules, which are read as the tensors of a form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from engine.model.linear_form import LinearForm
from engine.weights.source import Part, TensorInfo


class PackedModule(Protocol):
    """The weight of one linear layer. It reads of its checkpoint just the part that is asked
    for."""

    @property
    def form(self) -> LinearForm:
        """The form that it is read in."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The tensors of the form, whole, by the last part of their names."""

    @property
    def stored(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that it is made of."""

    def read(self, tensor: str, part: Part = ()) -> Tensor:
        """Returns a part of one of its tensors, as `TensorSource.read` does."""


DTYPES = {
    "uint8": "U8",
    "int8": "I8",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float8_e4m3fn": "F8_E4M3",
}
"""Names of dtypes in safetensors, by their names in torch."""


def tensors_of(form: LinearForm, num_out: int, num_in: int) -> dict[str, TensorInfo]:
    """Returns what there is to know of the tensors of a weight in this form."""
    return {
        tensor.name: TensorInfo(
            tensor.shape(num_out, num_in), DTYPES[str(tensor.dtype).removeprefix("torch.")]
        )
        for tensor in form.tensors
    }


def ranges(part: Part, shape: tuple[int, ...]) -> tuple[range, ...]:
    """Returns the range of each dimension that `part` takes of a tensor of this shape."""
    whole = part + (slice(None),) * (len(shape) - len(part))
    return tuple(range(size)[one] for size, one in zip(shape, whole, strict=True))


def as_slice(items: range) -> slice:
    """Returns the slice that takes `items`, which have a step of 1."""
    return slice(items.start, items.stop)
