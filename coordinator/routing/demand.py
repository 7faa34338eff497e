"""`Demand`: what one request asks of the nodes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from coordinator.ownership.index import PrefixIndex
from protocol.admission import reusable_tokens
from protocol.hashing import PageHash
from protocol.ids import Node

OwnersVersion = tuple[int, int, int]
"""While the index and the claims have these versions, the owners of all pages stay the same."""


@dataclass(eq=False)
class Demand:
    """A prompt to be placed, with the pages that it and its answer need.

    It remembers who owns its pages, as long as nothing changes about that: a request is looked at
    several times before it is sent.
    """

    num_tokens: int
    """The number of tokens of the prompt."""
    num_pages: int
    """The pages of prompt and answer together: a node with fewer could never answer."""
    admission_pages: int
    """How many of them a decode node needs to begin; it finds the others as the answer grows."""
    hashes: list[PageHash]
    """One for each full page of the prompt."""
    avoid: Collection[str] = ()
    """Names of nodes that failed this request. Such decode nodes are taken only when there is no
    other; such prefill nodes never, the decode node computes the prompt instead."""
    logprobs_from: int | None = None
    """The first position of the prompt whose logprob is to be computed; None: none is."""
    _owned: Mapping[Node, int] = field(default_factory=dict, init=False, repr=False)
    _index_version: int = field(default=-1, init=False, repr=False)
    owners: tuple[OwnersVersion, PageOwners] | None = field(default=None, init=False, repr=False)
    """The owners of its pages as they were last, with all claims; the placement keeps them here."""

    @property
    def num_reusable(self) -> int:
        """Leading tokens of the prompt that the node which computes it may take from caches."""
        return reusable_tokens(self.num_tokens, self.logprobs_from)

    def owned_pages(self, index: PrefixIndex) -> Mapping[Node, int]:
        """Returns how many leading pages of the prompt each node owns."""
        if self._index_version != index.version:
            self._owned = index.match(self.hashes)
            self._index_version = index.version
        return self._owned


class PageOwners(msgspec.Struct, frozen=True):
    """How many leading pages of one prompt each node has."""

    owned: Mapping[Node, int]
    """Pages that the node has now, so that it can send them to another one."""
    expected: Mapping[Node, int]
    """The same with the pages that it will have once what was sent there before is computed."""
