"""How many collective operations a rank has begun: ranks whose steps failed go on together only if
they stopped at the same one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor
from torch.distributed import AllreduceOptions

from engine.parallel import TensorParallel


class Operations:
    """Counts the collective operations that this rank has begun. The count is -1 once one has
    failed: from then on nobody knows where the other ranks are."""

    def __init__(self) -> None:
        self.num_begun = 0

    def counted(self, parallel: TensorParallel) -> TensorParallel:
        """Returns the same group of ranks, whose operations are counted here."""
        return dataclasses.replace(parallel, group=_CountedGroup(parallel.group, self))

    def begin(self) -> None:
        """Counts one more operation."""
        if self.num_begun >= 0:
            self.num_begun += 1

    def failed(self) -> None:
        """Notes that an operation has failed."""
        self.num_begun = -1


class _CountedGroup:
    """A process group that counts its operations. It has the methods that `TensorParallel` uses."""

    def __init__(self, group: Any, operations: Operations) -> None:
        self._group = group
        self._operations = operations

    def allreduce(self, tensors: list[Tensor], *options: AllreduceOptions) -> Any:
        return self._begin(self._group.allreduce, tensors, *options)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor]) -> Any:
        return self._begin(self._group.allgather, outputs, inputs)

    def _begin(self, operation: Any, *arguments: Any) -> Any:
        self._operations.begin()
        try:
            return _CountedWork(operation(*arguments), self._operations)
        except RuntimeError:
            self._operations.failed()
            raise


class _CountedWork:
    def __init__(self, work: Any, operations: Operations) -> None:
        self._work = work
        self._operations = operations

    def wait(self) -> None:
        try:
            self._work.wait()
        except RuntimeError:
            self._operations.failed()
            raise
