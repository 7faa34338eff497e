"""Products of float32 inputs with packed weights, by the C functions of packed_linear.c and
packed_int8.c in engine/kernels/native.

The C code is told where a weight lies by `NativeWeight`, which has the fields of its struct Weight.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from engine.kernels.packed_weights import (
    INPUTS_OF_A_BLOCK,
    INPUTS_OF_A_RUN,
    BlockWeight,
    Fp8Weight,
    IntegerWeight,
    PackedWeight,
)
from protocol.model.gguf.tensor_types import BLOCK_TYPES

KINDS = (
    *("int4", "int8", "fp8"),
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"),
)
"""The names of the kinds of packed.h, in the order of their numbers."""
SCALE_TYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What scales may be, in the order of the numbers of packed.h."""
SPAN, SPAN_BYTES = 256, 448
"""The inputs of a row that lie together once they are rounded to eight bits, and their size."""

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_ssize_t


class NativeWeight(ctypes.Structure):
    """The struct Weight of packed.h. It holds addresses only: the tensors must outlive it."""

    _fields_ = [
        ("values", _POINTER),
        ("num_out", _SIZE),
        ("num_in", _SIZE),
        ("row_bytes", _SIZE),
        ("kind", _SIZE),
        ("scales", _POINTER),
        ("zeros", _POINTER),
        ("scale_type", _SIZE),
        ("num_groups", _SIZE),
        ("group", _SIZE),
    ]


def native_weight(weight: PackedWeight) -> NativeWeight | None:
    """Returns `weight` [out, in] for the C functions, or None if they do not take it: where it is
    not on the CPU, or where its groups are no multiple of 32 inputs."""
    values = weight.blocks if isinstance(weight, BlockWeight) else weight.values
    if values.device.type != "cpu" or values.stride(-1) != 1:
        return None
    if isinstance(weight, BlockWeight):
        block = BLOCK_TYPES[weight.kind]
        num_in = values.shape[1] // block.num_bytes * block.values
        number = KINDS.index(weight.kind)
        return NativeWeight(values.data_ptr(), len(values), num_in, values.stride(0), number)
    num_in = values.shape[1] * (2 if values.dtype == torch.uint8 else 1)
    num_groups = weight.scales.shape[1]
    if isinstance(weight, Fp8Weight) and num_groups > 1:
        group = INPUTS_OF_A_BLOCK
    else:
        group = num_in // num_groups
    zeros = weight.zeros if isinstance(weight, IntegerWeight) else None
    is_contiguous = weight.scales.is_contiguous() and (zeros is None or zeros.is_contiguous())
    if num_in % INPUTS_OF_A_RUN or group % INPUTS_OF_A_RUN or not is_contiguous:
        return None
    kind = "fp8" if isinstance(weight, Fp8Weight) else f"int{weight.num_bits}"
    return NativeWeight(
        values.data_ptr(),
        len(values),
        num_in,
        values.stride(0),
        KINDS.index(kind),
        weight.scales.data_ptr(),
        None if zeros is None else zeros.data_ptr(),
        SCALE_TYPES.index(weight.scales.dtype),
        num_groups,
        group,
    )


def multiply(
    library: ctypes.CDLL, x: Tensor, weight: NativeWeight, bias: Tensor | None, rounds: bool
) -> Tensor:
    """Returns the product of `x` [rows, in], contiguous float32, and `weight`, plus `bias`.

    With `rounds` each 32 inputs of a row are rounded to eight bits with a scale of their own first.
    The bits of a row do not depend on how many rows are beside it.
    """
    num_rows, threads = x.shape[0], torch.get_num_threads()
    output = x.new_empty(num_rows, weight.num_out)
    added = None if bias is None else bias.data_ptr()
    place = ctypes.byref(weight)
    if not rounds:
        library.packed_linear(output.data_ptr(), x.data_ptr(), place, added, num_rows, threads)
        return output
    num_spans = -(-weight.num_in // SPAN)
    rounded = torch.empty(num_spans * num_rows * SPAN_BYTES, dtype=torch.uint8)
    library.round_inputs(rounded.data_ptr(), x.data_ptr(), num_rows, weight.num_in, threads)
    library.packed_linear_int8(
        output.data_ptr(), rounded.data_ptr(), place, added, num_rows, threads
    )
    return output
