"""A runner that computes nothing, and everybody else around a shell: for tests of shells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.batches.sequence import Sampled, Slice
from engine.batches.step import OnLayer
from engine.cache.prefix_cache import CacheChange
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream
from node.core.core import NodeCore
from node.core.scheduler import Scheduler
from node.shell.shell import NodeShell
from protocol.ids import Attempt
from protocol.messages import AnyMessage, Load, Message
from tests.support.world import D0, DECODE

POISON = 777


@dataclass(frozen=True, eq=False)
class Step:
    """Answers 5 to everything. Fails when it is asked, if it has an error."""

    number: int
    slices: Sequence[Slice]
    told: list[str]
    error: Exception | None = None
    has_compiled: bool = False

    def sampled(self) -> list[Sampled | None]:
        self.told.append(f"wait {self.number}")
        if self.error is not None:
            raise self.error
        return [Sampled((5,)) if part.sampling else None for part in self.slices]


class Runner:
    """Fails on one token, as a faulty kernel might."""

    def __init__(
        self, error: Exception, runs_ahead: bool = False, fails_late: bool = False
    ) -> None:
        """`fails_late`: not when a step is started, but when its tokens are asked for."""
        self.runs_ahead = runs_ahead
        self.told: list[str] = []
        self._error = error
        self._fails_late = fails_late
        self._num_started = 0

    def start(
        self, slices: Sequence[Slice], on_layer: OnLayer | None = None, after: Step | None = None
    ) -> Step:
        """Of two layers; the error comes after the first one."""
        self._num_started += 1
        self.told.append(f"start {self._num_started}")
        fails = any(POISON in part.token_ids for part in slices)
        if on_layer is not None:
            on_layer(1)
        if fails and not self._fails_late:
            raise self._error
        if on_layer is not None:
            on_layer(2)
        for part in slices:
            if part.follows is not None:
                assert after is not None and after.slices[part.follows].sampling is not None
        return Step(self._num_started, slices, self.told, self._error if fails else None)

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        self.told.append(f"copy {list(sources)} to {list(destinations)}")

    def end_sequence(self, sequence_id: int) -> None:
        self.told.append(f"end {sequence_id}")


class Peers:
    """Everybody else: stands in for all ports of a shell but its runner."""

    def __init__(self) -> None:
        self.said: list[Message] = []
        self.told: list[tuple[str, str]] = []
        """What the transport was told, and of which request."""
        self.on_progress: dict[Attempt, OnProgress] = {}
        self.on_done: dict[Attempt, OnDone] = {}
        self.inbox: list[AnyMessage] = []
        """What the node hears in its next turn."""
        self.changes: list[CacheChange] = []
        self.num_republished = 0
        self.loads: list[Load] = []

    # A channel

    def send(self, address: str, message: Message) -> None:  # type: ignore[override]
        self.said.append(message)

    def drain(self, timeout_s: float) -> list[AnyMessage]:
        messages, self.inbox = self.inbox, []
        return messages

    def wake(self) -> None:
        pass

    def forget(self, address: str) -> None:
        raise AssertionError("everybody can be reached")

    # A transport

    def stream(
        self,
        peer: Sequence[str],
        transfer: Attempt,
        pages: Sequence[int],
        offset: int,
        on_done: OnDone,
    ) -> PageStream:
        assert peer == (DECODE,)
        self.told.append(("stream", transfer.request_id))
        self.on_done[transfer] = on_done
        return Stream(transfer, self.told)

    def cancel(self, transfer: Attempt) -> None:
        self.told.append(("cancel", transfer.request_id))
        self.on_done[transfer]("cancelled")

    def expect(
        self,
        transfer: Attempt,
        pages: Sequence[int],
        on_progress: OnProgress,
        on_done: OnDone,
    ) -> None:
        self.on_progress[transfer], self.on_done[transfer] = on_progress, on_done

    def links(self) -> list[LinkStats]:
        return [
            LinkStats("p0", "in", "shm", True, 10, 1, 0.5, 0.0, 0),
            LinkStats("p1", "out", "shm", True, 4000, 2, 0.5, 2e6, 0),
            LinkStats("p2", "out", "shm", True, 8000, 4, 0.5, 4e6, 0),
            LinkStats("p3", "out", "shm", False, 7, 1, 0.5, 0.0, 3),
        ]

    def abort(self, transfer: Attempt) -> None:
        self.told.append(("abort", transfer.request_id))

    # A publisher and heartbeats

    def publish(self, changes: Iterable[CacheChange]) -> None:
        self.changes += changes

    def republish(self) -> None:
        self.num_republished += 1

    def update(self, load: Load) -> None:
        self.loads.append(load)


class Stream:
    def __init__(self, transfer: Attempt, told: list[tuple[str, str]]) -> None:
        self._name, self._told = transfer.request_id, told

    def layers_ready(self, num_layers: int) -> None:
        self._told.append((f"layers {num_layers}", self._name))

    def finish(self) -> None:
        self._told.append(("finish", self._name))


def shell_of(
    scheduler: Scheduler,
    runner: Runner,
    peers: Peers | None = None,
    clock: Callable[[], float] = lambda: 0.0,
) -> NodeShell:
    """A shell whose time stands still."""
    peers = peers or Peers()
    core = NodeCore(D0, scheduler._cache, scheduler)
    return NodeShell(core, peers, peers, runner, peers, peers, clock)


def turn(shell: NodeShell) -> None:
    """Plans a step, starts it and waits for it."""
    shell.begin_turn()
    shell.end_turn()
