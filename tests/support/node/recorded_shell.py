"""A shell between ports that note what they are told, and tell it what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from engine.cache.prefix_cache import CacheChange
from kvtransfer.transport import LinkStats, OnDone, OnProgress, PageStream
from node.core.core import NodeCore
from node.core.scheduler import Scheduler
from node.shell.shell import NodeShell
from protocol.ids import Attempt
from protocol.messages import AnyMessage, Load, Message
from tests.support.node.poisoned_runner import Runner
from tests.support.node.schedulers import D0, DECODE


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
        self.on_marked: list[Callable[[bool], None]] = []
        """Whom to tell what becomes of the mark of draining."""
        self.num_told_draining = 0
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

    def mark_draining(self, on_done: Callable[[bool], None]) -> None:
        self.on_marked.append(on_done)

    def tell_draining(self) -> None:
        self.num_told_draining += 1

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
    """Returns a shell whose time stands still, unless `clock` says otherwise."""
    peers = peers or Peers()
    core = NodeCore(D0, scheduler._cache, scheduler)
    return NodeShell(core, peers, peers, runner, peers, peers, clock)


def turn(shell: NodeShell) -> None:
    """Lets a shell plan a step, start it and wait for it."""
    shell.begin_turn()
    shell.end_turn()
