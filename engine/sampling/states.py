"""`SequenceStates`: what the runner remembers of sequences whose sampling has penalties.

A state is fed each token once, in order, by the slices that sample. The first of them brings all
tokens before it (`Slice.replay`), so a sequence that was preempted or moved is rebuilt by that.
A slice may come twice, when its step failed and is computed again: a state knows how many tokens
it was fed, and skips those. Only `end` frees a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.batches.sequence import NO_SEQUENCE, UNKNOWN, Slice
from engine.sampling.token_counts import SeenTokens, TokenCounts
from protocol.sampling import Sampling


@dataclass(eq=False)
class SequenceState:
    """The state of one sequence."""

    row: int
    """Its row of `TokenCounts`."""
    num_fed: int = 0
    newest: Tensor | None = None
    """[] int64 on the device: the last token that was fed, if the host did not know it at that
    time."""


class SequenceStates:
    """Keeps the states of sequences by their ids. Not thread-safe; never waits for the device."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._counts = TokenCounts(vocab_size, device)
        self._states: dict[int, SequenceState] = {}

    def __len__(self) -> int:
        return len(self._states)

    @property
    def num_rows(self) -> int:
        """The number of states that the tensors on the device have room for."""
        return self._counts.num_rows

    def feed(
        self,
        slices: Sequence[Slice],
        sources: Sequence[int] | np.ndarray = (),
        previous_tokens: Tensor | None = None,
    ) -> SeenTokens | None:
        """Feeds the states of these slices, all of which sample. Returns what the sequences whose
        sampling has penalties have seen up to the end of their slices, in order; None if there are
        no such sequences.

        `sources[i]` is the row of `previous_tokens` that has the token of `slices[i]`, if that
        slice follows one.
        """
        asked = [(i, s) for i, s in enumerate(slices) if s.sampling and s.sampling.has_penalties]
        if not asked:
            return None
        new = _TokensToFeed()
        fed = []
        for i, part in asked:
            source = int(sources[i]) if part.follows is not None else UNKNOWN
            fed.append((self._state_of(part), part, source))
        for state, part, source in fed:
            new.collect(state, part, source)
        new.add_to(self._counts, previous_tokens)
        for state, part, source in fed:  # last: what failed above has to be fed again
            if part.end > state.num_fed:
                state.num_fed = part.end
                state.newest = None if previous_tokens is None else _token(previous_tokens, source)
        return self._seen([(state, part) for state, part, _ in fed])

    def end(self, sequence_id: int) -> None:
        """Forgets the state of a sequence. Does nothing if it has none."""
        state = self._states.pop(sequence_id, None)
        if state is not None:
            self._counts.close(state.row)

    def _state_of(self, part: Slice) -> SequenceState:
        assert part.sequence_id != NO_SEQUENCE, "a slice whose sampling has state names no sequence"
        state = self._states.get(part.sequence_id)
        first = part.start - len(part.replay)
        assert (state.num_fed if state else 0) >= first, "tokens of the sequence were left out"
        if state is None:
            state = self._states[part.sequence_id] = SequenceState(self._counts.open())
        return state

    def _seen(self, asked: Sequence[tuple[SequenceState, Slice]]) -> SeenTokens:
        seen = self._counts.read([state.row for state, _ in asked])
        for position, (state, part) in enumerate(asked):
            # This step is computed again, after the one behind it was started: that one fed the
            # state the token to be sampled here, which must not count.
            if state.num_fed == part.end + 1 and state.newest is not None:
                seen.num_in_answer[position].index_add_(
                    0, state.newest[None], seen.num_in_answer.new_full((1,), -1.0)
                )
        return seen


class _TokensToFeed:
    """Collects tokens that states were not fed yet, in the form in which `TokenCounts` takes
    them."""

    def __init__(self) -> None:
        self._prompt: tuple[list[int], list[int]] = [], []  # rows, tokens
        self._answer: tuple[list[int], list[int], list[int]] = [], [], []  # rows, tokens, sources

    def collect(self, state: SequenceState, part: Slice, source: int) -> None:
        """Adds what is new of `part`. Only the repetition penalty looks at the prompt, so the
        prompt is left out without one."""
        assert part.sampling is not None
        first = part.start - len(part.replay)
        new = [*part.replay, *part.token_ids][max(0, state.num_fed - first) :]
        num_prompt = min(max(0, part.sampling.prompt_length - (part.end - len(new))), len(new))
        if _looks_at_prompt(part.sampling):
            self._prompt[0].extend([state.row] * num_prompt)
            self._prompt[1].extend(new[:num_prompt])
        answer = new[num_prompt:]
        self._answer[0].extend([state.row] * len(answer))
        self._answer[1].extend(answer)
        self._answer[2].extend(source if token == UNKNOWN else UNKNOWN for token in answer)

    def add_to(self, counts: TokenCounts, previous_tokens: Tensor | None) -> None:
        if self._prompt[0]:
            counts.add_prompt(*self._prompt)
        if self._answer[0]:
            counts.add_answer(*self._answer, previous_tokens)


def _looks_at_prompt(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1


def _token(previous_tokens: Tensor, source: int) -> Tensor | None:
    return None if source == UNKNOWN else previous_tokens[source]
