"""The steps that a node computes before it serves, so that none of those that it serves compiles.

What a library compiles or loads for a step depends on the path that the step takes and on classes
of its sizes (see `SeenShapes`): so there is a step for each path and each class. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from engine.batches.sequence import UNKNOWN, ScoredTokens, Slice
from protocol.sampling import Sampling

GREEDY = Sampling(temperature=0.0)
TOKEN = 1
"""The id of every token here."""
FEW_SINGLES = 3
SAMPLINGS: dict[str, Sampling] = {
    "greedy": GREEDY,
    "temperature": Sampling(),
    "top-k": Sampling(top_k=5),
    "top-p": Sampling(top_p=0.5),
    "top-k and top-p": Sampling(top_k=5, top_p=0.5),
    "min-p": Sampling(min_p=0.1),
    "penalties": Sampling(
        frequency_penalty=0.5, presence_penalty=0.5, repetition_penalty=1.2, prompt_length=1
    ),
    "bias": Sampling(temperature=0.0, logit_bias=((TOKEN, 1.0),)),
    "a least length": Sampling(min_new_tokens=9, end_token_ids=(TOKEN,), prompt_length=1),
    "logprobs": Sampling(num_top_logprobs=5),
    "wanted logprobs": Sampling(num_top_logprobs=0, logprob_token_ids=(TOKEN,)),
}
GRAMMAR = '{"grammars":[{"lark_grammar":"start: /[ab]+/"}]}'


@dataclass(frozen=True)
class WarmUpLimits:
    """How large the steps of a node may become."""

    chunk_tokens: int
    max_running: int
    page_size: int
    num_pages: int
    context_length: int

    @property
    def longest(self) -> int:
        """The most tokens of a sequence."""
        return min(self.context_length, self.num_pages * self.page_size)

    def at_most(self, num_tokens: int) -> WarmUpLimits:
        """Returns these limits with no more than `num_tokens` tokens in a sequence, and no more
        sequences than FEW_SINGLES side by side."""
        return replace(
            self,
            chunk_tokens=min(self.chunk_tokens, num_tokens),
            context_length=min(self.context_length, num_tokens),
            max_running=min(self.max_running, FEW_SINGLES),
        )


@dataclass(frozen=True)
class WarmUpStep:
    """One step, and what it is there for."""

    topic: str
    slices: Sequence[Slice]
    follows: bool = False
    """It takes tokens that the step before it has sampled."""


def warm_up_steps(limits: WarmUpLimits) -> Iterator[WarmUpStep]:
    """Yields steps of all forms that fit into the limits. They all use the first pages of the pool,
    and write into them: nothing may be cached yet."""
    make = _Slices(limits)
    for length in powers_of_two(limits.chunk_tokens):
        for start in make.starts(length):
            yield WarmUpStep("prompts", [make.prompt(start, length)])
            yield WarmUpStep("prompts", [make.prompt(start, length, samples=False)])
    for length in powers_of_two(limits.chunk_tokens // 2):
        both = [make.prompt(start, length) for start in make.starts(length)[:2]]
        yield WarmUpStep("several prompts", both)
    for length in powers_of_two(limits.chunk_tokens // 2):
        for num_singles in (1, min(FEW_SINGLES, limits.max_running), limits.max_running):
            singles = [make.single(2)] * num_singles
            yield WarmUpStep("prompts beside answers", [make.prompt(0, length), *singles])
    for size in batch_sizes(limits.max_running):
        for context in make.contexts():
            yield WarmUpStep("answers", [make.single(context)] * size)
    yield WarmUpStep("answers", [make.single(2)])
    yield WarmUpStep("answers", [make.follower(3)], follows=True)
    yield from _sampling_steps(make)


def powers_of_two(limit: int) -> list[int]:
    """Returns the powers of two from 2 on that are less than `limit`, and then `limit`."""
    powers = [2 << i for i in range(limit.bit_length()) if 2 << i < limit]
    return [*powers, limit] if limit > 1 else []


def batch_sizes(max_running: int) -> list[int]:
    """Returns numbers of single tokens, at least one of each class, and every size up to 8: those
    are replayed, or computed, in ways of their own."""
    return sorted({*range(1, min(8, max_running) + 1), *powers_of_two(max_running), max_running})


def _sampling_steps(make: _Slices) -> Iterator[WarmUpStep]:
    for number, sampling in enumerate(SAMPLINGS.values()):
        yield WarmUpStep("sampling", [make.single(2, sampling, number)])
    mixed = [make.single(2, s, number) for number, s in enumerate(SAMPLINGS.values())]
    yield WarmUpStep("sampling", mixed[: make.limits.max_running])
    scored = ScoredTokens(0, [TOKEN, TOKEN], Sampling(temperature=0.0, num_top_logprobs=5))
    yield WarmUpStep("logprobs of prompts", [make.prompt(0, 2, scored=scored)])
    grammar = Sampling(
        temperature=0.0, grammar=GRAMMAR, end_token_ids=(TOKEN,), prompt_length=2, max_new_tokens=9
    )
    yield WarmUpStep("grammars", [make.single(2, grammar, len(SAMPLINGS))])


@dataclass(frozen=True)
class _Slices:
    """Makes slices, all on the first pages of the pool."""

    limits: WarmUpLimits

    def prompt(
        self, start: int, length: int, samples: bool = True, scored: ScoredTokens | None = None
    ) -> Slice:
        return Slice(
            token_ids=[TOKEN] * length,
            start=start,
            pages=self._pages(start + length),
            sampling=GREEDY if samples else None,
            scored=scored,
        )

    def single(self, context: int, sampling: Sampling = GREEDY, sequence_id: int = 0) -> Slice:
        """Returns the last token of a sequence of `context` tokens."""
        replay = [TOKEN] * (context - 1) if sampling.has_state else ()
        return Slice(
            [TOKEN],
            context - 1,
            self._pages(context),
            sampling,
            sequence_id=sequence_id,
            replay=replay,
        )

    def follower(self, context: int) -> Slice:
        return Slice([UNKNOWN], context - 1, self._pages(context), GREEDY, follows=0)

    def starts(self, length: int) -> list[int]:
        """Returns how many tokens are computed before a chunk of `length`: none, few, and as many
        as there can be; in whole pages."""
        size = self.limits.page_size
        room = (self.limits.longest - length) // size * size
        return sorted({start for start in (0, size, 15 * size, room) if 0 <= start <= room})

    def contexts(self) -> list[int]:
        """Returns lengths of sequences: one page, some, a multiple of 16 pages, the longest."""
        size, longest = self.limits.page_size, self.limits.longest
        return sorted({min(longest, max(2, n)) for n in (size, 3 * size, 16 * size, longest)})

    def _pages(self, num_tokens: int) -> range:
        return range(-(-num_tokens // self.limits.page_size))
