"""`Answer`: one request at a decode node, from its arrival to its last token. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.request import Sequence
from protocol.hashing import PageHash
from protocol.ids import Attempt
from protocol.messages import Generate


@dataclass(eq=False)
class Answer:
    """One request. `sequence` is None while it waits for pages."""

    request: Generate
    prompt: list[int]
    hashes: list[PageHash]
    sequence: Sequence | None = None
    cached_tokens: int = 0
    fetched_tokens: int = 0
    num_expected_pages: int = 0
    """To be received from a prefill node."""
    first_token: int | None = None
    """As that node sampled it."""
    generated: list[int] = field(default_factory=list)

    @property
    def attempt(self) -> Attempt:
        return self.request.attempt
