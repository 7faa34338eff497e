"""`KindOfWork`: one kind of work that a node can do, and what all kinds share. Pure.

There are two kinds: answering requests (`decode/`) and computing prompts for other nodes
(`prefill/`). A node has one of them or both; its role only says which one it is meant for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.cache.prefix_cache import PrefixCache
from node.core.instructions import Event, Instruction
from node.core.job import PlannedSlice
from node.core.prompts import Prompts
from node.load.counters import Counters
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Addresses, Attempt, Node


@dataclass(frozen=True)
class NodeParts:
    """What the kinds of work of one node have in common."""

    node: Node
    addresses: Addresses
    """This node's own addresses, told to other nodes."""
    cache: PrefixCache
    hasher: PageHasher
    counters: Counters
    prompts: Prompts
    receive_timeout_s: float


class KindOfWork(Protocol):
    """What the scheduler asks of a kind of work, besides what it asks of it as a `Sink`."""

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes every event that concerns jobs of one kind; ignores those of other kinds. Older
        attempts of a new request are given up before its message comes here."""

    def cancelled(self, attempt: Attempt) -> list[Instruction]:
        """Nobody wants anything more of this attempt and of older ones of its request. The jobs
        themselves have left."""

    def before_step(self, now: float) -> list[Instruction]:
        """Gives up what is late, and finds pages for what grows."""

    def add_tokens(self, step: list[PlannedSlice]) -> None:
        """Adds to a step what goes on behind prompts."""

    def after_step(self) -> list[Instruction]:
        """Everything that a step sampled was told; reports it."""

    def chains_coming(self, now: float) -> Iterable[Sequence[PageHash]]:
        """Returns page hashes, each from the first page of a prompt on, of pages that other nodes
        are sending here."""


WorkFactory = Callable[[NodeParts], KindOfWork]
