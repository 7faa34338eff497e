"""`Answer`: one request at a decode node, from its arrival to its last token. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.steps.sequence import Sequence, Slice
from protocol.admission import most_tokens
from protocol.hashing import PageHash
from protocol.ids import Attempt
from protocol.messages import Generate, PrefillDone


@dataclass(eq=False)
class Answer:
    """One request. `sequence` is None while it waits for pages, and when it is over."""

    request: Generate
    prompt: list[int]
    hashes: list[PageHash]
    """Of the full pages of the prompt at least."""
    arrival: int = 0
    """Grows from request to request: the higher, the younger."""
    sequence: Sequence | None = None
    cached_tokens: int = 0
    fetched_tokens: int = 0
    num_expected_pages: int = 0
    """To be received from a prefill node."""
    prefilled: PrefillDone | None = None
    """What that node said at the end."""
    generated: list[int] = field(default_factory=list)
    is_preempted: bool = False
    """It ran before. What it has so far is computed here, whoever computed its prompt at first."""
    max_tokens: int = field(init=False)
    """Of prompt and answer whose KV may be needed."""

    def __post_init__(self) -> None:
        self.max_tokens = most_tokens(len(self.prompt), self.request.max_new_tokens)

    @property
    def attempt(self) -> Attempt:
        return self.request.attempt

    @property
    def tokens(self) -> list[int]:
        """Of the prompt and, so far, of the answer."""
        return self.prompt + self.generated

    @property
    def is_computed_here(self) -> bool:
        """Its next admission begins with tokens that this node computes."""
        return self.is_preempted or not self.request.prefill_address

    @property
    def is_ending(self) -> bool:
        """A step under way samples its last token, whatever that is."""
        assert self.sequence is not None
        return self.sequence.is_sampling and self.sequence.num_planned >= self.max_tokens


@dataclass(frozen=True, eq=False)
class Planned:
    """A part of an answer in a step under way."""

    answer: Answer
    sequence: Sequence
    part: Slice

    @property
    def is_wanted(self) -> bool:
        """False: the answer ended or gave way meanwhile, and what is sampled is nobody's."""
        return self.answer.sequence is self.sequence

    @property
    def is_given(self) -> bool:
        """It computes nothing that this admission of the answer sampled."""
        return self.part.start < self.sequence.num_given
