"""`ParallelRunner`: the model runners of all ranks of a node, which look like one to its shell."""

from __future__ import annotations

from collections.abc import Sequence

from engine.batches.sequence import Slice
from engine.batches.step import OnLayer, Step
from engine.errors import DeviceBroken
from engine.steps.runner import ModelRunner
from node.ranks.history import StepHistory
from node.ranks.operations import Operations
from node.ranks.wire import commands
from node.ranks.wire.slices import SliceEncoder
from node.ranks.workers import Workers


class ParallelRunner:
    """Tells the workers of each step, then computes rank 0's share of it.

    If a step fails on every rank, at the same collective operation, it fails here with rank 0's own
    exception, and the next step may go well: that is so when a request is at fault. If only some
    ranks fail, or at different operations, nobody knows what the next collective operation would
    match, and the node ends.
    """

    def __init__(self, own: ModelRunner, workers: Workers, operations: Operations) -> None:
        """`operations` counts the collective operations of `own`, rank 0's runner."""
        self._own = own
        self._workers = workers
        self._operations = operations
        self._encoder = SliceEncoder()
        self._history = StepHistory()
        self._number = 0

    @property
    def runs_ahead(self) -> bool:
        return self._own.runs_ahead

    @property
    def num_compiles(self) -> int:
        """How many rank 0 has compiled; the other ranks compute the same steps."""
        return self._own.num_compiles

    def start(
        self,
        slices: Sequence[Slice],
        on_layer: OnLayer | None = None,
        after: Step | None = None,
    ) -> Step:
        """Starts the step on every rank, as `ModelRunner.start` does. Raises RankLost when this
        node is about to end."""
        self._number += 1
        follows = self._history.number_of(after)
        self._history.follow(follows)
        self._workers.raise_if_lost()
        self._workers.tell(
            commands.StepCommand(
                number=self._number,
                slices=self._encoder.encode(slices),
                feeds_streams=on_layer is not None,
                after=follows,
            )
        )
        try:
            step = self._own.start(slices, on_layer, after)
        except DeviceBroken:
            raise
        except Exception as error:
            self._workers.failed_here(self._number, self._operations.num_begun, error)
            raise
        self._workers.went_well_here(self._number)
        self._history.add(self._number, step)
        return step

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Every rank copies its heads of the pages."""
        self._workers.tell(commands.CopyCommand(list(sources), list(destinations)))
        self._own.copy_pages(sources, destinations)

    def end_sequence(self, sequence_id: int) -> None:
        """Forgets the state of a sequence on every rank: every rank samples, so each has the
        state."""
        self._encoder.end_sequence(sequence_id)
        self._workers.tell(commands.EndSequenceCommand(sequence_id))
        self._own.end_sequence(sequence_id)
