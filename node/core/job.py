"""`Job`: one prompt at a node, whatever it is for; `Sink`: who is told what becomes of it. Pure.

A node computes a prompt in the same way for an answer of its own as for another node: it waits, is
admitted, fetches pages, and is computed chunk by chunk. Only the sink knows what for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

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

Purpose = TypeVar("Purpose")
"""What a sink remembers of one job."""


@dataclass(frozen=True)
class FetchOrder:
    """Says which node owns the first `num_pages` pages of a prompt, to be fetched from there."""

    owner: Node
    address: str
    num_pages: int

    @classmethod
    def of(cls, request: Generate | Prefill) -> FetchOrder | None:
        """Returns what `request` says; None if there is nothing to fetch."""
        if request.fetch_node is None or not request.fetch_address:
            return None
        return cls(request.fetch_node, request.fetch_address, request.fetch_pages)


class Sink(Protocol[Purpose]):
    """Takes what is computed of the jobs of one kind of work."""

    @property
    def refusal_kind(self) -> FailureKind:
        """What it means when a job is larger than this node's pool."""

    @property
    def waits_for_received(self) -> bool:
        """Its jobs wait for pages that another node computes for an answer here. Those for another
        node must not: that one may wait for this one."""

    def may_begin(self, job: Job[Purpose]) -> bool:
        """Returns whether a waiting job may be admitted now. Others do not wait for it."""

    def admitted(self, job: Job[Purpose], now: float) -> list[Instruction]:
        """The job has its pages, for the first time or again."""

    def fetched(self, job: Job[Purpose]) -> list[Instruction]:
        """More of its leading pages came from their owner."""

    def before_chunk(self, job: Job[Purpose], part: Slice) -> list[Instruction]:
        """A step is about to be started that computes this part of the job."""

    def sampled(self, job: Job[Purpose], sampled: Sampled, now: float) -> list[Instruction]:
        """These tokens follow those that the job has."""

    def left(self, job: Job[Purpose], held: HeldPages) -> list[Instruction]:
        """The job is over or gave way: the sink gives its pages back, now or when it is done with
        them. What it returns is carried out before anybody else uses the pages."""


@dataclass(eq=False)
class Job(Generic[Purpose]):
    """One prompt. It has a `sequence`, and so pages, while it is admitted."""

    attempt: Attempt
    tokens: list[int]
    """The prompt, and behind it what was answered so far."""
    max_tokens: int
    """The most tokens whose KV may be needed: of the prompt, and of an answer given here."""
    namespace: Namespace
    sampling: Sampling
    reply_address: str
    """Who asked for it, and hears when it fails."""
    sink: Sink[Purpose]
    purpose: Purpose
    fetch: FetchOrder | None = None
    is_computed_here: bool = True
    """False: another node computes it, and its pages are received."""
    hashes: list[PageHash] = field(default_factory=list)
    """Hashes of the full pages of the prompt at least; each is computed once."""
    arrival: int = 0
    """Grows from job to job: the higher, the younger."""
    sequence: Sequence | None = None
    was_admitted: bool = False
    """It had pages before, and gave way; it is counted already."""
    cached_tokens: int = 0
    """Leading tokens that nobody computed for this attempt, fetched ones included."""
    fetched_tokens: int = 0
    prompt_logprobs: PromptLogprobsSoFar = field(init=False)
    """Those that are wanted of its prompt, as far as they were computed here."""

    def __post_init__(self) -> None:
        self.prompt_logprobs = PromptLogprobsSoFar(self.sampling)

    @property
    def num_reusable(self) -> int:
        """The leading tokens whose KV may come from a cache. Who receives them all from another
        node needs no logits: that one computes what has to be computed."""
        if not self.is_computed_here:
            return reusable_tokens(len(self.tokens))
        return reusable_tokens(len(self.tokens), self.prompt_logprobs.lacking_from)

    @property
    def is_filling(self) -> bool:
        """Tokens that it began with are still to be computed here."""
        return self.is_computed_here and self.sequence is not None and self.sequence.is_filling

    @property
    def is_ending(self) -> bool:
        """A step under way samples its last token, whatever that is."""
        assert self.sequence is not None
        return self.sequence.is_sampling and self.sequence.num_planned >= self.max_tokens


@dataclass(frozen=True, eq=False)
class PlannedSlice:
    """A part of a job in a step under way."""

    job: Job[Any]
    sequence: Sequence
    part: Slice

    @classmethod
    def of(cls, job: Job[Any], max_tokens: int, position: int) -> PlannedSlice:
        """Plans the next part of the job, as `Sequence.next_slice`."""
        assert job.sequence is not None
        return cls(job, job.sequence, job.sequence.next_slice(max_tokens, position))

    @property
    def is_wanted(self) -> bool:
        """False: the job left or gave way meanwhile, and what is sampled is nobody's."""
        return self.job.sequence is self.sequence

    @property
    def is_given(self) -> bool:
        """It computes tokens that the job was admitted with, none that were sampled since."""
        return self.part.start < self.sequence.num_given
