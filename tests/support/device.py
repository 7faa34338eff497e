"""A device without tensors, for tests of schedulers: it remembers whose KV each page holds."""

from __future__ import annotations

import zlib
from array import array
from collections import deque
from collections.abc import Sequence

from engine.steps.sequence import UNKNOWN, Sampled, Slice

Pool = dict[tuple[int, int], int]
"""(page, slot) → the token whose KV is there."""


def next_token(tokens: list[int]) -> int:
    """Stands in for the model: decided by everything before."""
    return 1 + zlib.crc32(array("i", tokens)) % 99


class Device:
    """Computes steps in the order in which they were started, and no earlier than it has to."""

    def __init__(self, page_size: int) -> None:
        self.pool: Pool = {}
        self.num_started = 0
        self._page_size = page_size
        self._queue: deque[Sequence[Slice]] = deque()
        """Started, and not computed."""
        self._results: deque[list[Sampled | None]] = deque()
        """Computed, and nobody has asked for them."""
        self._newest: list[Sampled | None] = []

    @property
    def num_under_way(self) -> int:
        return len(self._queue) + len(self._results)

    def start(self, slices: Sequence[Slice]) -> None:
        self._queue.append(slices)
        self.num_started += 1

    def compute_until(self, num_steps: int) -> None:
        """The first `num_steps` steps are done when this returns."""
        while self.num_started - len(self._queue) < num_steps:
            slices = self._queue.popleft()
            for part in slices:
                self._write(part)
            self._newest = [self._sample(part) for part in slices]
            self._results.append(self._newest)

    def finish(self) -> list[Sampled | None]:
        """Of the oldest step under way."""
        if not self._results:
            self.compute_until(self.num_started - len(self._queue) + 1)
        return self._results.popleft()

    def contents(self, page: int) -> dict[int, int]:
        return {slot: token for (p, slot), token in self.pool.items() if p == page}

    def replace(self, page: int, content: dict[int, int]) -> None:
        for slot in range(self._page_size):
            self.pool.pop((page, slot), None)
        for slot, token in content.items():
            self.pool[page, slot] = token

    def _write(self, part: Slice) -> None:
        tokens = list(part.token_ids)
        if part.follows is not None:
            assert tokens == [UNKNOWN]
            before = self._newest[part.follows]
            assert before is not None, "it follows what samples nothing"
            tokens = [before.tokens[0]]
        assert UNKNOWN not in tokens
        for position, token in enumerate(tokens, part.start):
            self.pool[self._slot(part, position)] = token

    def _sample(self, part: Slice) -> Sampled | None:
        if part.sampling is None:
            return None
        end = part.start + len(part.token_ids)
        context = [self.pool.get(self._slot(part, i), -1) for i in range(end)]
        return Sampled((next_token(context),))

    def _slot(self, part: Slice, position: int) -> tuple[int, int]:
        return int(part.pages[position // self._page_size]), position % self._page_size
