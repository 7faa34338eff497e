"""The types that a tensor of a GGUF file may have, by their numbers in the file."""

from __future__ import annotations

from typing import NamedTuple


class TensorType(NamedTuple):
    """How values lie in a tensor: in blocks, which never cross a row."""

    name: str
    values: int
    """The number of values in a block; 1 for plain numbers."""
    num_bytes: int
    """The size of a block."""

    @property
    def is_plain(self) -> bool:
        """True if the tensor is an array of numbers."""
        return self.values == 1


TENSOR_TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    30: TensorType("BF16", 1, 2),
}
"""The types that are supported."""
BLOCK_TYPES = {one.name: one for one in TENSOR_TYPES.values() if not one.is_plain}
"""Those of them that hold values in blocks, by name."""
OTHER_NAMES = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""The names of types that exist and are not supported."""
