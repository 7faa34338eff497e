"""`Job`: one prompt at a node, whatever it is for; `Sink`: who is told what becomes of it. Pure.

A node computes a prompt in the same way for an answer of its own as for another node: it waits, is
admitted, fetches pages, and is computed chunk by chunk. Only the sink knows what for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from engine.batches.sequence import Sampled, Sequence, Slice
from engine.cache.prefix_cache import HeldPages
from node.core.instructions import Instruction
from node.core.prompt_logprobs import PromptLogprobsSoFar
from protocol.admission import reusable_tokens
from protocol.hashing import PageHash
from protocol.ids import Attempt, Node
from protocol.messages import FailureKind, Generate, Prefill
from protocol.namespace import Namespace
from protocol.sampling import Sampling
from protocol.timelines.node_spans import NodeSpanName, NodeTimes, SpanRecorder

Purpose = TypeVar("Purpose")
"""What a sink remembers of one job."""


@dataclass(frozen=True)
class FetchOrder:
    """Says from which node the first `num_pages` pages of a prompt are to be fetched."""

    owner: Node
    address: str
    num_pages: int

    @classmethod
    def of(cls, request: Generate | Prefill) -> FetchOrder | None:
        """Returns the order in `request`; None if there is nothing to fetch."""
        if request.fetch_node is None or not request.fetch_address:
            return None
        return cls(request.fetch_node, request.fetch_address, request.fetch_pages)


class Sink(Protocol[Purpose]):
    """Is told what becomes of the jobs of one kind of work, and takes what is computed of them."""

    @property
    def refusal_kind(self) -> FailureKind:
        """How a job that is larger than this node's pool fails: whether another node might take
        it."""

    @property
    def waits_for_received(self) -> bool:
        """True if its jobs wait for pages which they share with a prompt that another node computes
        for an answer here. Jobs for other nodes must not wait: that node may wait for this one."""

    def may_begin(self, job: Job[Purpose]) -> bool:
        """Returns whether a waiting job may be admitted now. If not, those behind it go first."""

    def admitted(self, job: Job[Purpose], now: float) -> list[Instruction]:
        """Is told that the job has its pages, for the first time or again after it gave way."""

    def fetched(self, job: Job[Purpose]) -> list[Instruction]:
        """Is told that more of the job's leading pages have come from their owner."""

    def before_chunk(self, job: Job[Purpose], part: Slice) -> list[Instruction]:
        """Is told that a step is about to be started which computes this part of the job."""

    def sampled(self, job: Job[Purpose], sampled: Sampled, now: float) -> list[Instruction]:
        """Takes the tokens that follow those of the job."""

    def left(self, job: Job[Purpose], held: HeldPages) -> list[Instruction]:
        """Takes back the pages of a job that is over or gives way, and releases them, now or when
        it is done with them. What it returns is carried out before anybody else uses the pages."""


@dataclass(eq=False)
class Job(Generic[Purpose]):
    """One prompt at a node. It has a `sequence`, and so pages, while it is admitted."""

    attempt: Attempt
    tokens: list[int]
    """The prompt, and behind it what was answered so far."""
    max_tokens: int
    """The most tokens whose KV may be needed: of the prompt, and of an answer given here."""
    namespace: Namespace
    sampling: Sampling
    reply_address: str
    """The address of whoever asked for the job, who is told if it fails."""
    sink: Sink[Purpose]
    purpose: Purpose
    fetch: FetchOrder | None = None
    is_computed_here: bool = True
    """False if another node computes the prompt, and its pages are received."""
    hashes: list[PageHash] = field(default_factory=list)
    """Hashes of the full pages of the prompt at least; each is computed once."""
    arrival: int = 0
    """The number of the job in the order of arrival; the youngest has the highest."""
    sequence: Sequence | None = None
    gave_way: bool = False
    """True once it had pages and gave way: what was cached of it is counted already."""
    cached_tokens: int = 0
    """How many leading tokens nobody computed for this attempt, fetched ones included."""
    fetched_tokens: int = 0
    recorder: SpanRecorder | None = None
    """Notes where its time goes until its first tokens; None once these are told, until it gives
    way."""
    prompt_logprobs: PromptLogprobsSoFar = field(init=False)
    """Those that are wanted of its prompt, as far as they were computed here."""

    def __post_init__(self) -> None:
        self.prompt_logprobs = PromptLogprobsSoFar(self.sampling)

    def spent(self, name: NodeSpanName, now: float) -> None:
        """Notes that what it waited for until now is called `name`, unless nobody asks."""
        if self.recorder is not None:
            self.recorder.end(name, now)

    def take_times(self) -> NodeTimes | None:
        """Returns where its time went, once: with the tokens that it was spent for."""
        if self.recorder is None:
            return None
        times, self.recorder = self.recorder.times(), None
        return times

    @property
    def num_reusable(self) -> int:
        """The leading tokens whose KV may come from a cache, to the token. Who
        receives them all from another node needs no logits: that one computes what has to be
        computed."""
        if not self.is_computed_here:
            return reusable_tokens(len(self.tokens))
        return reusable_tokens(len(self.tokens), self.prompt_logprobs.lacking_from)

    @property
    def is_filling(self) -> bool:
        """True while tokens that it was admitted with are still to be computed here."""
        return self.is_computed_here and self.sequence is not None and self.sequence.is_filling

    @property
    def is_ending(self) -> bool:
        """True if a step under way samples its last token, whichever that is."""
        assert self.sequence is not None
        return self.sequence.is_sampling and self.sequence.num_planned >= self.max_tokens


class PlannedSlice(msgspec.Struct, frozen=True, eq=False):
    """A slice of a job in a step that is planned or under way."""

    job: Job[Any]
    sequence: Sequence
    part: Slice

    @classmethod
    def of(cls, job: Job[Any], max_tokens: int, position: int) -> PlannedSlice:
        """Plans the next slice of the job, as `Sequence.next_slice` does."""
        assert job.sequence is not None
        return cls(job, job.sequence, job.sequence.next_slice(max_tokens, position))

    @property
    def is_wanted(self) -> bool:
        """False if the job has left or given way since, so that nobody wants what is sampled."""
        return self.job.sequence is self.sequence

    @property
    def is_given(self) -> bool:
        """True if it computes tokens that the job was admitted with, rather than one sampled
        since."""
        return self.part.start < self.sequence.num_given
