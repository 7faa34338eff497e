"""`Request`: one prompt to answer, in no dialect of HTTP. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coordinator.answers.token_pieces import NO_PIECES, TokenPieces
from coordinator.timelines.arrival import UNKNOWN_ARRIVAL, Arrival
from protocol.namespace import SHARED, Namespace
from protocol.sampling import Sampling

DecodeFunction = Callable[[Sequence[int]], str]
"""Token ids to text."""


@dataclass(frozen=True)
class Request:
    """One prompt to answer, validated and tokenized. Its sampling has a seed."""

    tokens: list[int]
    """Token ids of the prompt."""
    sampling: Sampling
    max_new_tokens: int
    end_token_ids: Sequence[int] = ()
    """Tokens that end the answer: the model's, and those that the client named."""
    namespace: Namespace = SHARED
    rid: str = ""
    """The client's name for it; "" if it gave none."""
    priority: int = 0
    """Of those of its tenant that wait, requests of a higher priority go first."""
    tenant: str = ""
    """Who shares the cluster with others, by a name that tells no secret; "" for all who show
    nothing that tells them apart."""
    arrival: Arrival = UNKNOWN_ARRIVAL
    """The HTTP request that it came with, for the log and the timeline."""
    stop_strings: Sequence[str] = ()
    """Texts that end the answer."""
    stop_patterns: Sequence[str] = ()
    """Regular expressions that end the answer where they match."""
    keeps_stop: bool = False
    """The text of the answer includes what ended it: the stop string or match, or the end token."""
    resume_key: str = ""
    """The secret by which another coordinator may take the answer over; "" if none may."""
    pieces: TokenPieces = NO_PIECES
    """What the text of the answer is made of."""
