"""The model that simulated nodes compute, and what it must answer. Pure.

The KV of a token is a number that depends on the token and on all before it, as a real one does;
so a page that was sent, reused or overwritten wrongly is recognised by its numbers, and the next
token, which depends on the last of them, comes out wrong.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from zlib import crc32

from protocol.prompt_logprobs import PromptLogprobs, first_position, num_positions
from protocol.sampling import Sampling, TokenLogprobs
from tests.sim.checks import Wrong

KV = int
"""What stands in a slot of a page."""
EMPTY: KV = 0
"""The KV before the first token."""
VOCABULARY = 97
STOP = 5
"""The token that ends an answer."""
MAX_FORCED = 3
NUM_PLACES = 4
"""Places of the one grammar that there is. At each it allows every fourth token."""


@dataclass(frozen=True)
class TokensSeen:
    """What a runner remembers of a sequence whose sampling has state."""

    num_tokens: int = 0
    total: int = 0
    """The sum of all tokens, which stands in for the counts of penalties."""
    place: int = 0
    """Where the answer, without the prompt, is in the grammar."""

    def and_then(self, tokens: Iterable[int], sampling: Sampling) -> TokensSeen:
        """Returns the state behind more tokens. Raises Wrong for one that the grammar forbids."""
        num_tokens, total, place = self.num_tokens, self.total, self.place
        for token in tokens:
            if sampling.grammar and num_tokens >= sampling.prompt_length:
                if (token - 1) % NUM_PLACES != place:
                    raise Wrong(f"the grammar forbids {token} at its place {place}")
                place = (place + 1 + token // NUM_PLACES) % NUM_PLACES
            num_tokens += 1
            total += token
        return TokensSeen(num_tokens, total, place)


def kv_after(before: KV, token: int) -> KV:
    """Returns the KV of `token` behind a prefix whose last KV is `before`."""
    return crc32(token.to_bytes(4, "little"), before) or 1


def kv_of(tokens: Iterable[int], before: KV = EMPTY) -> list[KV]:
    """Returns the KV of every token."""
    values = []
    for token in tokens:
        before = kv_after(before, token)
        values.append(before)
    return values


def next_token(last: KV, sampling: Sampling, seen: TokensSeen) -> int:
    """Returns the token behind the KV `last`. If the sampling has state, it is `seen`."""
    counts = seen.total if sampling.has_penalties else 0
    token = 1 + (last ^ (sampling.seed * 2654435761) ^ counts) % VOCABULARY
    if not sampling.grammar:
        return token
    return 1 + (token // NUM_PLACES * NUM_PLACES + seen.place) % (VOCABULARY - 1)


def logprobs_of(token: int) -> TokenLogprobs:
    """Returns the logprobs that come with a sampled token."""
    return TokenLogprobs(-float(token))


def logprobs_after(first: int, before: Sequence[KV], tokens: Sequence[int]) -> PromptLogprobs:
    """Returns the logprobs of tokens of a prompt from position `first` on; `before[i]` is the KV
    right before `tokens[i]`."""
    values = [-(kv_after(kv, token) % 4096) / 64 for kv, token in zip(before, tokens, strict=True)]
    return PromptLogprobs(first, len(values), 0, 0, array("f", values).tobytes(), b"")


def prompt_logprobs_of(prompt: Sequence[int], sampling: Sampling) -> PromptLogprobs | None:
    """Returns the logprobs that `sampling` asks for; None if it asks for none."""
    if num_positions(sampling) == 0:
        return None
    first = first_position(sampling)
    return logprobs_after(first, kv_of(prompt)[first - 1 : -1], prompt[first:])


def is_forced(token: int) -> bool:
    """Tells whether what follows `token` is given together with it, as a grammar may force it."""
    return token % 8 == 3


def answer_of(
    prompt: Sequence[int], sampling: Sampling, max_new_tokens: int, ends: Iterable[int]
) -> list[int]:
    """Returns all tokens of the answer, the one that ends it included."""
    ends = frozenset(ends)
    last = kv_of(prompt)[-1]
    seen = TokensSeen().and_then(prompt, sampling)
    answer: list[int] = []
    while len(answer) < max_new_tokens:
        token = next_token(last, sampling, seen)
        answer.append(token)
        if token in ends:
            break
        last = kv_after(last, token)
        seen = seen.and_then([token], sampling)
    return answer
