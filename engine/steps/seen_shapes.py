"""`SeenShapes`: tells from its shape whether a step may have compiled something.

A kernel is compiled by Triton or flash-attn in the first step that needs a new variant of it, and
the first use of an operation loads its code. Both take from milliseconds to seconds, and neither
library has a public way to tell that it happened. But a variant depends on nothing but the path
that a step takes and the class of its sizes, so the first step of each such class is suspected.
That is more often than compiling happens, and a node computes a few hundred such steps in its life.
CUDA graphs are recorded before the first step, so replaying one compiles nothing.
"""

from __future__ import annotations

from engine.batches.batch import StepArrays


class SeenShapes:
    """Remembers the classes of shapes that were computed before."""

    def __init__(self) -> None:
        self._seen: set[tuple[bool, int, int, int]] = set()

    def add(self, arrays: StepArrays, is_replayed: bool) -> bool:
        """Adds the class of a step. Returns whether it is new. `is_replayed` says that a CUDA graph
        computes the step."""
        shape = _class_of(arrays, is_replayed)
        is_new = shape not in self._seen
        self._seen.add(shape)
        return is_new


def _class_of(arrays: StepArrays, is_replayed: bool) -> tuple[bool, int, int, int]:
    """Returns the class of a step. Sizes that choose a kernel, or how it splits its work, do so by
    powers of two, and Triton has variants for strides of 1 and for multiples of 16."""
    num_singles = arrays.num_slices - arrays.num_prompts
    num_prompt_rows = len(arrays.input_ids) - num_singles
    width = arrays.page_tables.shape[1]
    divisor = 1 if width == 1 else 16 if width % 16 == 0 else 0
    if is_replayed:
        return True, 0, num_singles.bit_length(), 0
    return False, num_prompt_rows.bit_length(), num_singles.bit_length(), divisor
