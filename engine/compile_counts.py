"""Counts what is compiled in this process: by Triton, by flash-attn-4, as CUDA graphs, as C.

A node that compiles while it serves holds up every request that it has, for up to seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

Count = Callable[[], int]
"""Returns how many things of one kind were compiled so far."""


class CompileCounter:
    """The sum over all kinds."""

    def __init__(self, counts: Sequence[Count] = ()) -> None:
        self._counts = counts

    @property
    def total(self) -> int:
        """How many kernels and graphs were compiled, or loaded for the first time, so far."""
        return sum(count() for count in self._counts)


def hooked(runtime: Any) -> Count:
    """Has Triton report every kernel that is new to this process, and counts them: those loaded
    from its cache on disk too, which takes milliseconds. `runtime` is `triton.knobs.runtime`; a
    hook that it has already is called as before."""
    count = 0
    before = runtime.jit_post_compile_hook

    def hook(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        return before(*args, **kwargs) if before is not None else None

    runtime.jit_post_compile_hook = hook
    return lambda: count


def triton_compiles() -> Count:
    """Counts the kernels of Triton. It must be installed, in version 3.4 or newer."""
    import triton  # absent on machines without a GPU

    return hooked(triton.knobs.runtime)


def flash4_compiles() -> int:
    """Returns how many variants of flash-attn-4's forward kernel are compiled or loaded; 0 if it
    was not imported, or is another version that does not tell."""
    interface = sys.modules.get("flash_attn.cute.interface")
    kept = getattr(getattr(interface, "_flash_attn_fwd", None), "compile_cache", ())
    return len(getattr(kept, "cache", kept))
