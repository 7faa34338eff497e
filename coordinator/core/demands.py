"""`DemandMaker`: what requests ask of the nodes of the model that is served now. Pure."""

from __future__ import annotations

from collections.abc import Collection

from coordinator.core.tracked_request import TrackedRequest
from coordinator.routing.demand import Demand
from coordinator.routing.registry import ClusterModel, Registry
from coordinator.routing.route import NoRoute
from protocol.admission import admission_tokens, most_tokens
from protocol.hashing import PageHash, PageHasher


class DemandMaker:
    """Counts and hashes the pages of prompts. Each page of a request is hashed once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._hasher: tuple[ClusterModel, PageHasher] | None = None
        """The hasher of the model that was served last."""

    def model_has_changed(self) -> bool:
        """Returns True once after the cluster began to serve another model or layout."""
        model = self._registry.model
        if model is None or self._hasher is None or self._hasher[0] == model:
            return False
        self._hasher = model, PageHasher(model.fingerprint, model.layout)
        return True

    def demand_of(self, tracked: TrackedRequest) -> Demand:
        """Returns what the next attempt of a request asks of nodes. Raises NoRoute if there is no
        node."""
        model = self._registry.model
        if model is None:
            raise NoRoute("no node is alive")
        num_tokens = len(tracked.answer.request.tokens) + len(tracked.answered)
        most = most_tokens(num_tokens, tracked.num_tokens_left)
        return Demand(
            num_tokens=num_tokens,
            num_pages=model.layout.num_pages(most),
            admission_pages=model.layout.num_pages(admission_tokens(num_tokens, most)),
            hashes=self.hash_pages(tracked, num_tokens),
            avoid=_frozen(tracked.patience.avoid),
            logprobs_from=tracked.logprobs_from,
        )

    def hash_pages(self, tracked: TrackedRequest, num_tokens: int) -> list[PageHash]:
        """Returns the hashes of the full pages of the first `num_tokens` of prompt and answer.

        It continues where an earlier call for this request stopped, and stores the hashes in
        `tracked`.
        """
        model = self._registry.model
        if model is None:
            return []
        if self._hasher is None or self._hasher[0] != model:
            self._hasher = model, PageHasher(model.fingerprint, model.layout)
        hasher = self._hasher[1]
        known = tracked.hashes if tracked.hasher is hasher else []
        num_pages = num_tokens // hasher.page_size
        if num_pages > len(known):
            request = tracked.answer.request
            known = hasher.hashes(tracked.tokens[:num_tokens], request.namespace, known)
            tracked.hashes, tracked.hasher = known, hasher
        return known if len(known) == num_pages else known[:num_pages]


def _frozen(names: Collection[str]) -> Collection[str]:
    return frozenset(names) if names else ()
