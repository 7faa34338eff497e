"""The answers that a decode node computes, and what each step computes of them. Pure.

An answer takes pages as it grows. Where there are none left, the youngest give way to the oldest,
which so always goes on; an answer that finds no younger one waits for pages, and keeps its own.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator

from decode.answer import Answer, Planned
from engine.cache.prefix_cache import PrefixCache
from node.core.fetching import Fetching
from protocol.hashing import PageHasher


class Running:
    """Iterates over the answers, the oldest first."""

    def __init__(self, cache: PrefixCache, hasher: PageHasher, fetching: Fetching) -> None:
        self._cache = cache
        self._hasher = hasher
        self._fetching = fetching
        self._answers: list[Answer] = []
        self._steps: deque[list[Planned]] = deque()
        """Under way, the oldest first."""

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._answers)

    def add(self, answer: Answer) -> None:
        insort(self._answers, answer, key=lambda a: a.arrival)

    def end(self, answer: Answer) -> None:
        """It gives its pages back. Steps under way may still compute parts of it: whatever uses
        these pages next comes behind them on the device."""
        assert answer.sequence is not None
        self._answers.remove(answer)
        self._cache.release(answer.sequence.lease)
        answer.sequence = None

    def who_gives_way(self) -> Iterator[Answer]:
        """Gives every answer the page that its next token needs, the oldest first; yields whoever
        has to `end` for that, before it goes on."""
        for answer in list(self._answers):
            while answer.sequence is not None and self._lacks_page(answer):
                lease = answer.sequence.lease
                if self._cache.extend(lease, len(lease.pages) + 1):
                    break
                youngest = self._answers[-1]
                if youngest is answer:
                    return
                yield youngest

    def plan(self, max_prompt_tokens: int) -> list[Planned]:
        """The next step: one token of every answer that has a page for it, then chunks of prompts.

        It may be planned while one step is under way.
        """
        assert len(self._steps) < 2, "two steps are under way"
        step: list[Planned] = []
        prompts = []
        for answer in self._answers:
            assert answer.sequence is not None
            if answer.sequence.has_chunk:
                prompts.append(answer)
            elif not answer.is_ending and not self._lacks_page(answer):
                self._add(step, answer, answer.sequence.num_unplanned)
        for answer in prompts:
            if max_prompt_tokens == 0:
                break
            if answer.attempt not in self._fetching:
                max_prompt_tokens -= self._add(step, answer, max_prompt_tokens)
        if step:
            self._steps.append(step)
        return step

    @property
    def oldest_step(self) -> list[Planned]:
        return self._steps[0]

    def take_step(self) -> list[Planned]:
        """The oldest step is over."""
        return self._steps.popleft()

    def _add(self, step: list[Planned], answer: Answer, max_tokens: int) -> int:
        """Returns how many tokens of the answer the step computes."""
        assert answer.sequence is not None
        part = answer.sequence.next_slice(max_tokens, position=len(step))
        step.append(Planned(answer, answer.sequence, part))
        return len(part.token_ids)

    def _lacks_page(self, answer: Answer) -> bool:
        """It will have another token, and no page for that one's KV."""
        sequence = answer.sequence
        assert sequence is not None
        num_tokens = len(sequence.lease.pages) * self._hasher.page_size
        return sequence.num_planned == num_tokens and not answer.is_ending
