"""A device without tensors, for tests of schedulers: it remembers whose KV each page holds."""

from __future__ import annotations

import zlib
from array import array
from collections import deque
from collections.abc import Callable, Sequence

from engine.batches.sequence import UNKNOWN, Sampled, Slice

Pool = dict[tuple[int, int], int]
"""(page, slot) → the token whose KV is there."""


def next_token(tokens: list[int]) -> int:
    """Stands in for the model: decided by everything before."""
    return 1 + zlib.crc32(array("i", tokens)) % 99


class Device:
    """Computes steps in the order in which they were started, and no earlier than it has to."""

    def __init__(self, page_size: int, num_tokens: Callable[[], int] = lambda: 1) -> None:
        """`num_tokens`: how many tokens the next sample has."""
        self.pool: Pool = {}
        self.states: dict[int, list[int]] = {}
        """The tokens that the state of each sequence was fed."""
        self.num_started = 0
        self._page_size = page_size
        self._num_tokens = num_tokens
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
            tokens = [self._tokens_of(part) for part in slices]
            for part, ids in zip(slices, tokens, strict=True):
                for position, token in enumerate(ids, part.start):
                    self.pool[self._slot(part, position)] = token
            self._newest = [self._sample(*each) for each in zip(slices, tokens, strict=True)]
            self._results.append(self._newest)

    def finish(self) -> list[Sampled | None]:
        """Of the oldest step under way."""
        if not self._results:
            self.compute_until(self.num_started - len(self._queue) + 1)
        return self._results.popleft()

    def end_sequence(self, sequence_id: int) -> None:
        self.states.pop(sequence_id, None)

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Behind all that was started."""
        self.compute_until(self.num_started)
        for source, destination in zip(sources, destinations, strict=True):
            self.replace(destination, self.contents(source))

    def contents(self, page: int) -> dict[int, int]:
        return {slot: token for (p, slot), token in self.pool.items() if p == page}

    def replace(self, page: int, content: dict[int, int]) -> None:
        for slot in range(self._page_size):
            self.pool.pop((page, slot), None)
        for slot, token in content.items():
            self.pool[page, slot] = token

    def _tokens_of(self, part: Slice) -> list[int]:
        tokens = list(part.token_ids)
        if part.follows is not None:
            assert tokens == [UNKNOWN]
            before = self._newest[part.follows]
            assert before is not None, "it follows what samples nothing"
            tokens = [before.tokens[0]]
        assert UNKNOWN not in tokens
        return tokens

    def _sample(self, part: Slice, token_ids: list[int]) -> Sampled | None:
        if part.sampling is None:
            return None
        context = [self.pool.get(self._slot(part, i), -1) for i in range(part.end)]
        if part.sampling.has_state:
            fed = self.states.setdefault(part.sequence_id, [])
            fed += [*part.replay, *token_ids]
            assert fed == context, "its state is not that of its tokens"
        for _ in range(self._num_tokens()):
            context.append(next_token(context))
        return Sampled(tuple(context[part.end :]))

    def _slot(self, part: Slice, position: int) -> tuple[int, int]:
        return int(part.pages[position // self._page_size]), position % self._page_size
