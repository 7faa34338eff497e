"""Requests that end the nodes which compute them. Pure.

A request that was on a node which died may be the reason, or have been there by chance. It is
suspected until it gets a token. One that was on two nodes which died, one after the other, while it
made no progress, is not tried again. Where several were, they are tried one at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import msgspec

from coordinator.answers.request import Request
from protocol.hashing import token_bytes

DEATHS_TO_REFUSE = 2
HOLD_S = 0.5
"""So long a suspected request waits before it is tried again: nodes that died with the first one,
as on a host that failed, are known by then."""
REFUSED_FOR_S = 3600.0
MAX_REFUSED = 1024
DIGEST_BYTES = 16


@dataclass(eq=False)
class Suspicion:
    """What speaks for one request being the reason why nodes have died."""

    dead_nodes: list[str] = field(default_factory=list)
    """The nodes that died with it since its last token."""
    _last_at: float = 0.0

    @property
    def is_strong(self) -> bool:
        """True if the request is to be refused, unless others are as suspect as it is."""
        return len(self.dead_nodes) >= DEATHS_TO_REFUSE

    def node_died(self, name: str, now: float) -> None:
        """Notes that a node died that had the request. Nodes that die at the same time do so for
        another reason, and count once."""
        if self.dead_nodes and now < self._last_at + HOLD_S:
            return
        self.dead_nodes.append(name)
        self._last_at = now

    def answered(self) -> None:
        """Notes that a token has come: what the nodes died of lies elsewhere."""
        if self.dead_nodes:
            self.dead_nodes.clear()

    def sentence(self) -> str:
        """Returns why the request is not tried again, for its client to read."""
        nodes = " and ".join(self.dead_nodes)
        return (
            f"the nodes {nodes} ended while they computed this request, so it is not tried again; "
            "for an hour, requests with this prompt and these parameters are refused"
        )


class Suspected(Protocol):
    """A request, as far as it matters here."""

    suspicion: Suspicion


S = TypeVar("S", bound=Suspected)


class Suspects(Generic[S]):
    """Finds the request of which nodes die among those that they had."""

    def __init__(self) -> None:
        self._on_trial: S | None = None
        """The one strongly suspected request that may be tried now."""

    def culprit(self, lost: Iterable[S], node_name: str, now: float) -> S | None:
        """Notes that a node died that had these requests. Returns the one that is the reason; None
        if none is, or one of several."""
        strong: list[S] = []
        for one in lost:
            one.suspicion.node_died(node_name, now)
            if one.suspicion.is_strong:
                strong.append(one)
        return strong[0] if len(strong) == 1 else None

    def may_be_tried(self, one: S) -> bool:
        """Returns False for a request that is strongly suspected while another such one is tried:
        if a node dies again, it must be known of which."""
        if not one.suspicion.is_strong:
            return True
        if self._on_trial is None or not self._on_trial.suspicion.is_strong:
            self._on_trial = one
        return self._on_trial is one

    def ended(self, one: S) -> None:
        """Notes that a request has ended."""
        if self._on_trial is one:
            self._on_trial = None


class RefusedContents:
    """The contents of requests that have ended nodes, for some time."""

    def __init__(self) -> None:
        self._until: dict[bytes, float] = {}
        """The oldest first."""

    def add(self, digest: bytes, now: float) -> None:
        """Refuses this content from now on."""
        self._until.pop(digest, None)
        self._until[digest] = now + REFUSED_FOR_S
        if len(self._until) > MAX_REFUSED:
            del self._until[next(iter(self._until))]

    def has(self, request: Request, now: float) -> bool:
        """Returns True if requests of this content are refused."""
        while self._until and now >= next(iter(self._until.values())):
            del self._until[next(iter(self._until))]
        return bool(self._until) and content_digest(request) in self._until


def content_digest(request: Request) -> bytes:
    """Returns what two requests have in common that ask nodes for the same computation, whoever
    sends them, and whatever their seeds."""
    sampling = msgspec.structs.replace(request.sampling, seed=0)
    asked = msgspec.msgpack.encode((sampling, request.max_new_tokens, list(request.end_token_ids)))
    digest = hashlib.blake2b(asked, digest_size=DIGEST_BYTES)
    digest.update(token_bytes(request.tokens))
    return digest.digest()
