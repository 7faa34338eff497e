"""`Shadow`: which prefix every page really holds, held against what its owner believes.

All prompts and, through the oracle, all answers of a life are known beforehand, so the right
content of every page hash is known before anybody computes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.cache.prefix_cache import Beginning, HeldPages, PrefixCache
from protocol.hashing import PageHash, PageHasher
from protocol.namespace import SHARED, Namespace
from tests.sim.checks import Wrong
from tests.sim.world.device import SimDevice
from tests.sim.world.oracle import KV, kv_of


class Shadow:
    """Knows the right content of every page, by hash."""

    def __init__(self, hasher: PageHasher) -> None:
        self._hasher = hasher
        self._content: dict[PageHash, list[KV]] = {}

    def learn(self, tokens: Sequence[int], namespace: Namespace) -> None:
        """Learns a sequence, prompt and answer, that the cluster may compute."""
        size, kv = self._hasher.page_size, kv_of(tokens)
        for i, page_hash in enumerate(self._hasher.hashes(tokens, namespace)):
            self._content[page_hash] = kv[i * size : (i + 1) * size]

    def check(self, page_hash: PageHash, content: Sequence[KV], what: str) -> None:
        right = self._content.get(page_hash)
        if right is None:
            raise Wrong(f"{what} a page that nobody could have computed")
        if right != content:
            raise Wrong(f"{what} a page whose content is not its prefix")


class CheckedCache(PrefixCache):
    """A prefix cache that looks at its pages when they become findable and when they are hit, or
    their beginnings are to be copied."""

    def __init__(self, num_pages: int, page_size: int, device: SimDevice, shadow: Shadow) -> None:
        super().__init__(num_pages, page_size)
        self._namespaces: dict[int, Namespace] = {}
        """Whose tokens each page was made findable with."""
        self._device = device
        self._shadow = shadow

    def acquire(
        self,
        hashes: Sequence[PageHash],
        num_pages: int,
        now: float,
        namespace: Namespace = SHARED,
        num_spare_pages: int = 0,
        tokens: Sequence[int] = (),
    ) -> HeldPages | None:
        held = super().acquire(hashes, num_pages, now, namespace, num_spare_pages, tokens)
        if held is not None:
            for page, page_hash in zip(held.pages[: held.num_cached_pages], hashes, strict=False):
                self._shadow.check(page_hash, self._device.read(page), "a request hits")
        self.check_sum()
        return held

    def commit(self, held: HeldPages, hashes: Sequence[PageHash], now: float) -> None:
        for i in range(held.num_committed_pages, len(hashes)):
            content = self._device.read(held.pages[i])
            self._shadow.check(hashes[i], content, "a node commits")
            self._namespaces[held.pages[i]] = held.namespace
        super().commit(held, hashes, now)
        self.check_sum()

    def keep_tail(self, held: HeldPages, num_tokens: int, now: float) -> None:
        number = held.num_committed_pages
        first = number * self._page_size
        if first < num_tokens < first + self._page_size:
            self._check_begins(held, held.pages[number], num_tokens, "a node keeps")
            self._namespaces[held.pages[number]] = held.namespace
        super().keep_tail(held, num_tokens, now)
        self.check_sum()

    def closest(self, held: HeldPages, num_reusable: int, now: float) -> Beginning | None:
        beginning = super().closest(held, num_reusable, now)
        if beginning is not None:
            num_tokens = held.num_committed_pages * self._page_size + beginning.num_tokens
            if not num_tokens < len(held.tokens):
                raise Wrong("the last token of a prompt is not computed")
            self._check_begins(held, beginning.page, num_tokens, "a request copies")
            if self._namespaces[beginning.page] != held.namespace:
                raise Wrong("a request copies a page of another namespace")
        return beginning

    def _check_begins(self, held: HeldPages, page: int, num_tokens: int, what: str) -> None:
        """The page behind the committed ones holds the KV of the first `num_tokens` tokens."""
        right = kv_of(held.tokens[:num_tokens])[held.num_committed_pages * self._page_size :]
        if self._device.read(page)[: len(right)] != right:
            raise Wrong(f"{what} a page that begins otherwise than its prefix")

    def check_sum(self) -> None:
        if self.num_free_pages + self.num_held_pages + self.num_cached_pages != self.num_pages:
            raise Wrong("free + held + cached pages are not all pages")
