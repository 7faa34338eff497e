"""`SimDevice`: a KV pool and a runner without tensors, on which the shadow is kept.

Every slot holds the KV of `tests.sim.world.oracle`; whoever reads a page sees whether its content
is the prefix that it should be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from engine.batches.sequence import UNKNOWN, Sampled, Slice
from protocol.prompt_logprobs import PromptLogprobs
from tests.sim.checks import Wrong
from tests.sim.world.oracle import (
    EMPTY,
    KV,
    MAX_FORCED,
    TokensSeen,
    is_forced,
    kv_after,
    logprobs_after,
    logprobs_of,
    next_token,
)


@dataclass(eq=False)
class SimStep:
    """One step that the device was given; computed no earlier than somebody needs it."""

    device: SimDevice
    slices: Sequence[Slice]
    results: list[Sampled | None] | None = None
    after: SimStep | None = None
    has_compiled: bool = False

    def sampled(self) -> list[Sampled | None]:
        self.device.compute_through(self)
        assert self.results is not None
        return self.results


@dataclass(frozen=True)
class SimCopy:
    """Copies that the device was given, behind steps and before others."""

    sources: Sequence[int]
    destinations: Sequence[int]


class SimDevice:
    """Computes steps in the order in which they were started. It is the `Runner` of a shell."""

    num_compiles = 0

    def __init__(self, page_size: int, num_pages: int, runs_ahead: bool) -> None:
        self.runs_ahead = runs_ahead
        self._page_size = page_size
        self._pool: list[list[KV]] = [[EMPTY] * page_size for _ in range(num_pages)]
        self._queue: deque[SimStep | SimCopy] = deque()
        self._states: dict[int, TokensSeen] = {}
        self.lengths: list[int] = []
        """The numbers of tokens in the slices of the newest step."""
        self.num_forced = 0
        self.num_copied_pages = 0

    @property
    def num_states(self) -> int:
        return len(self._states)

    def start(
        self,
        slices: Sequence[Slice],
        on_layer: Callable[[int], None] | None = None,
        after: SimStep | None = None,
    ) -> SimStep:
        step = SimStep(self, slices, after=after)
        self.lengths = [len(part.token_ids) for part in slices]
        self._queue.append(step)
        if not self.runs_ahead:
            self.compute_through(step)
        if on_layer is not None:
            on_layer(1)
        return step

    def copy_pages(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        self._queue.append(SimCopy(list(sources), list(destinations)))
        self.num_copied_pages += len(sources)
        if not self.runs_ahead:
            self.compute_through(None)

    def end_sequence(self, sequence_id: int) -> None:
        self._states.pop(sequence_id, None)

    def compute_through(self, step: SimStep | None) -> None:
        """Computes what was started up to `step`; None: everything."""
        while self._queue and (step is None or step.results is None):
            oldest = self._queue.popleft()
            if isinstance(oldest, SimCopy):
                self._copy(oldest)
                continue
            oldest.results = [self._compute(part, oldest) for part in oldest.slices]
            oldest.after = None

    def read(self, page: int) -> list[KV]:
        """Returns a copy of a page."""
        self.compute_through(None)
        return list(self._pool[page])

    def write(self, page: int, content: Sequence[KV]) -> None:
        """Replaces a page, as a transfer does; behind all that was started before."""
        self.compute_through(None)
        self._pool[page][:] = content

    def _copy(self, copy: SimCopy) -> None:
        for source, destination in zip(copy.sources, copy.destinations, strict=True):
            self._pool[destination][:] = self._pool[source]

    def _compute(self, part: Slice, step: SimStep) -> Sampled | None:
        tokens = list(part.token_ids)
        if part.follows is not None:
            assert tokens == [UNKNOWN] and step.after is not None
            assert step.after.results is not None
            before = step.after.results[part.follows]
            assert before is not None, "a slice follows one that samples nothing"
            tokens = [before.tokens[0]]
        assert UNKNOWN not in tokens
        pages, size = part.pages, self._page_size
        last = EMPTY
        if part.start:
            page, slot = divmod(part.start - 1, size)
            last = self._pool[pages[page]][slot]
            if last == EMPTY:
                raise Wrong("a step reads a slot that nobody has written")
        for position, token in enumerate(tokens, part.start):
            last = kv_after(last, token)
            self._pool[pages[position // size]][position % size] = last
        scored = self._score(part)
        if part.sampling is None:
            return Sampled((), prompt_logprobs=scored) if scored is not None else None
        seen = self._feed(part, tokens)
        return replace(self._sample(part, last, seen), prompt_logprobs=scored)

    def _score(self, part: Slice) -> PromptLogprobs | None:
        """Returns the logprobs of the prompt that are wanted of this slice, which is computed."""
        if part.scored is None:
            return None
        first = part.start + part.scored.first_row
        places = [divmod(first + i, self._page_size) for i in range(len(part.scored.token_ids))]
        before = [self._pool[part.pages[page]][slot] for page, slot in places]
        return logprobs_after(first + 1, before, part.scored.token_ids)

    def _feed(self, part: Slice, tokens: Sequence[int]) -> TokensSeen:
        """Feeds the state of the sequence, if it has one, and returns it."""
        sampling = part.sampling
        if sampling is None or not sampling.has_state:
            return TokensSeen()
        seen = self._states.get(part.sequence_id)
        if seen is None:
            if len(part.replay) != part.start:
                raise Wrong("the state of a sequence begins without the tokens before its slice")
            seen = TokensSeen().and_then(part.replay, sampling)
        if seen.num_tokens < part.start:
            raise Wrong("the state of a sequence has a gap")
        seen = seen.and_then(tokens[seen.num_tokens - part.start :], sampling)
        self._states[part.sequence_id] = seen
        return seen

    def _sample(self, part: Slice, last: KV, seen: TokensSeen) -> Sampled:
        sampling = part.sampling
        assert sampling is not None
        tokens = [next_token(last, sampling, seen)]
        while is_forced(tokens[-1]) and len(tokens) < MAX_FORCED and not sampling.wants_logprobs:
            last = kv_after(last, tokens[-1])
            seen = seen.and_then(tokens[-1:], sampling)
            tokens.append(next_token(last, sampling, seen))
        self.num_forced += len(tokens) - 1
        if not sampling.wants_logprobs:
            return Sampled(tuple(tokens))
        return Sampled(tuple(tokens), (logprobs_of(tokens[0]),))
