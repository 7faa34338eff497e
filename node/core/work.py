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
from node.core.kept_answers import KeptAnswers
from node.core.prompts import Prompts
from node.load.counters import Counters
from protocol.hashing import PageHash, PageHasher
from protocol.ids import Addresses, Attempt, Node


@dataclass(frozen=True)
class NodeParts:
    """What the kinds of work of one node have in common."""

    node: Node
    addresses: Addresses
    """This node's own addresses, which it tells other nodes."""
    cache: PrefixCache
    hasher: PageHasher
    counters: Counters
    prompts: Prompts
    receive_timeout_s: float
    kept_answers: KeptAnswers


class KindOfWork(Protocol):
    """What the scheduler asks of a kind of work, besides what jobs ask of it as their `Sink`."""

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Takes an event; ignores those that concern jobs of other kinds. Older attempts of a new
        request were given up before its message comes here."""

    def cancelled(self, attempt: Attempt) -> list[Instruction]:
        """Is told that nobody wants this attempt any more, nor older ones of its request. The jobs
        themselves have left before."""

    def before_step(self, now: float) -> list[Instruction]:
        """Gives up jobs that are late, and finds pages for answers that grow."""

    def add_tokens(self, step: list[PlannedSlice]) -> None:
        """Adds to a step the tokens with which answers go on. Chunks of prompts come from
        `Prompts`."""

    def after_step(self) -> list[Instruction]:
        """Reports what the step has sampled; `Sink.sampled` was called for all of its slices."""

    def chains_coming(self, now: float) -> Iterable[Sequence[PageHash]]:
        """Returns the chains of page hashes, each from the first page of a prompt on, whose pages
        other nodes are sending here."""


WorkFactory = Callable[[NodeParts], KindOfWork]
