"""The answers that a node computes, and which tokens of them each step computes. Pure.

An answer takes pages as it grows. Where there are none left, the youngest give way to the oldest,
which so always goes on; an answer that finds no younger one waits for pages, and keeps its own.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from decode.own_answer import AnswerJob
from engine.batches.sequence import Sequence
from engine.cache.prefix_cache import PrefixCache
from node.core.job import PlannedSlice
from protocol.hashing import PageHasher


class RunningAnswers:
    """The answers whose prompts are computed, or are being computed here, from the oldest to the
    youngest."""

    def __init__(self, cache: PrefixCache, hasher: PageHasher) -> None:
        self._cache = cache
        self._hasher = hasher
        self._jobs: list[AnswerJob] = []

    def add(self, job: AnswerJob) -> None:
        """Adds an answer at its place in the order of arrival."""
        insort(self._jobs, job, key=lambda j: j.arrival)

    def discard(self, job: AnswerJob) -> None:
        """Forgets an answer that is over or gives way. Steps under way may still compute parts of
        it: whatever uses its pages next comes after them on the device."""
        if job in self._jobs:
            self._jobs.remove(job)

    def who_gives_way(self) -> Iterator[AnswerJob]:
        """Gives every answer the pages that its next tokens need, the oldest first. If there are
        none left it yields the youngest answer, which the caller must make give way before it asks
        for the next one."""
        for job in list(self._jobs):
            while job.sequence is not None and self._lacks_pages(job):
                num_pages = self._hasher.num_pages(_num_next_tokens(job.sequence))
                if self._cache.extend(job.sequence.held, num_pages):
                    break
                # The oldest answer always goes on, so that some answer ends and frees its pages.
                youngest = self._jobs[-1]
                if youngest is job:
                    return
                yield youngest

    def add_tokens(self, step: list[PlannedSlice]) -> None:
        """Adds to a step the newest tokens of every answer that has pages for them: one token, or
        several where the last step sampled so many."""
        for job in self._jobs:
            assert job.sequence is not None
            # While tokens that it began with are left, `Prompts.add_chunks` plans its slices.
            goes_on = not job.sequence.has_chunk and not job.is_ending
            if goes_on and not self._lacks_pages(job):
                num_tokens = max(1, job.sequence.num_unplanned)
                step.append(PlannedSlice.of(job, num_tokens, position=len(step)))

    def _lacks_pages(self, job: AnswerJob) -> bool:
        """Returns True if the answer will have more tokens and lacks the pages for their KV."""
        sequence = job.sequence
        assert sequence is not None
        room = len(sequence.held.pages) * self._hasher.page_size
        return room < _num_next_tokens(sequence) and not job.is_ending


def _num_next_tokens(sequence: Sequence) -> int:
    """Returns how many tokens have their KV when the next ones of the sequence are computed."""
    return max(sequence.num_planned + 1, len(sequence.tokens))
