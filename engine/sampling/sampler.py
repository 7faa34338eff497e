"""Chooses the next tokens of a batch.

A token is a pure function of its own row: of its logits, sampling, position and the tokens before
it. Every decision is made by comparing, or by adding whole numbers, which neighbours and devices
cannot round in another order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from engine.batches.sequence import Sampled
from engine.rows import column, on_rows, upload
from engine.sampling.grammar_masks import TokenMasks
from engine.sampling.logprobs import LogprobTable, measure, temperatures
from engine.sampling.noise import gumbel
from engine.sampling.penalties import adjust
from engine.sampling.token_counts import SeenTokens
from protocol.sampling import Sampling, TokenLogprobs

MASS_OF_ONE = 1 << 40
"""The likeliest token's probability as a whole number; sums of 2^22 of these fit into 64 bits."""
NO_TOKEN = -1
"""Told to the host in place of a token of a row whose logits are no numbers."""
NO_NUMBERS = "the model's logits are not numbers: they hold NaN or infinity"
FEW = 1024
"""A CPU looks at so many of the likeliest tokens first: they nearly always decide."""
MOST_KEPT = 0.5
"""Where a grammar allows a smaller part of the vocabulary, a CPU makes noise for that alone."""


@dataclass(frozen=True)
class Choices:
    """What `sample` chose. It is on the device until `read` is given `packed` on the host."""

    tokens: Tensor
    """[n] int64, each of them an id: the next step may be computing with it already."""
    logprobs: LogprobTable | None
    packed: Tensor
    """Tokens, or NO_TOKEN, and logprobs in one flat tensor, for one transfer to the host."""

    @classmethod
    def of(cls, tokens: Tensor, is_broken: Tensor, logprobs: LogprobTable | None) -> Choices:
        """Packs chosen tokens [n] and their logprobs, if any. `is_broken` [n] says which rows have
        no numbers to choose by."""
        told = tokens.masked_fill(is_broken, NO_TOKEN)
        if logprobs is None:
            return cls(tokens, None, told)
        packed = torch.cat([told.double(), logprobs.values.flatten()])
        return cls(tokens, logprobs, packed)

    def read(self, packed: Tensor) -> list[Sampled]:
        """Returns what each row chose. `packed` is on the host."""
        count, host = len(self.tokens), packed.numpy()
        tokens = [int(token) for token in host[:count].tolist()]
        tables: dict[int, TokenLogprobs] = {}
        if self.logprobs is not None:
            tables = self.logprobs.read(host[count:].reshape(self.logprobs.values.shape))
        return [
            Sampled((), error=NO_NUMBERS)
            if token == NO_TOKEN
            else Sampled((token,), (tables[row],) if row in tables else ())
            for row, token in enumerate(tokens)
        ]


def sample(
    logits: Tensor,
    samplings: Sequence[Sampling],
    positions: Sequence[int],
    seen: SeenTokens | None = None,
    masks: TokenMasks | None = None,
) -> Choices:
    """Chooses a token for each row of `logits` [n, vocab] float32. Never waits for the device.

    `positions[i]` is the position that the token will have in its sequence. `seen`: the tokens
    before it, of those rows whose sampling has penalties. `masks`: what grammars allow; on a CPU
    they are written into `logits`.
    """
    # The maximum of a row is NaN if anything in it is. Before masks: these put -inf in.
    is_broken = ~logits.amax(-1).isfinite()
    logits = adjust(logits, samplings, positions, seen)
    narrow: Set[int] = frozenset()
    if masks is not None:
        logits = masks.apply(logits)
        if logits.device.type == "cpu":
            narrow = masks.rows_below(MOST_KEPT * logits.shape[1])
    tokens = _choose(logits, samplings, positions, narrow)
    return Choices.of(tokens, is_broken, measure(logits, samplings, tokens))


def _choose(
    logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int], narrow: Set[int]
) -> Tensor:
    """Returns the chosen tokens, [n] int64. Of the rows in `narrow`, many logits are -inf."""
    drawn = [row for row, s in enumerate(samplings) if s.temperature > 0 and s.top_k != 1]
    if len(drawn) == len(samplings):
        return _draw(logits, samplings, positions, narrow)
    tokens = logits.argmax(dim=-1)
    if not drawn:
        return tokens
    index = upload(np.array(drawn, dtype=np.int64), logits.device)
    some = [samplings[row] for row in drawn], [positions[row] for row in drawn]
    narrow = {i for i, row in enumerate(drawn) if row in narrow}
    return tokens.index_copy(0, index, _draw(logits.index_select(0, index), *some, narrow))


def _draw(
    logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int], narrow: Set[int]
) -> Tensor:
    """Draws tokens for rows that are not greedy; returns [n] int64."""
    device, vocab_size = logits.device, logits.shape[1]
    # Logarithms of probabilities relative to the likeliest token's, which is 0.
    relative = (logits - logits.amax(-1, keepdim=True)) / temperatures(samplings, device)
    narrowed = [row for row, s in enumerate(samplings) if 0 < s.top_k < vocab_size or s.top_p < 1]
    if narrowed:
        some = [samplings[row] for row in narrowed]
        relative = on_rows(relative, narrowed, lambda rows: _keep_top(rows, some))
    if any(s.min_p > 0 for s in samplings):
        floors = [math.log(s.min_p) if s.min_p > 0 else -math.inf for s in samplings]
        floor = column(floors, np.float32, device)
        relative = relative.masked_fill(relative < floor, -torch.inf)
    counters = upload(np.array([[s.seed for s in samplings], positions], dtype=np.int64), device)
    # The argmax of logits plus Gumbel noise is a sample of their softmax.
    if device.type != "cpu":  # only a CPU knows how many are kept without waiting
        return _noisy(relative, counters).argmax(dim=-1)
    floored = [row for row, s in enumerate(samplings) if s.min_p > 0]
    some_kept = sorted({*narrow, *narrowed, *floored})
    all_kept = [row for row in range(len(samplings)) if row not in some_kept]
    for rows, add_noise in ((some_kept, _noisy_where_kept), (all_kept, _noisy)):
        if rows:
            relative = on_rows(relative, rows, partial(add_noise, counters=counters[:, rows]))
    return relative.argmax(dim=-1)


def _noisy(relative: Tensor, counters: Tensor) -> Tensor:
    """Returns `relative` [n, vocab] with noise added. `counters` [2, n]: seeds and positions."""
    tokens = torch.arange(relative.shape[1], device=relative.device)
    return relative + gumbel(counters[0, :, None], counters[1, :, None], tokens)


def _noisy_where_kept(relative: Tensor, counters: Tensor) -> Tensor:
    """Returns the same as `_noisy`, quicker if much of `relative` is -inf: most of the time goes
    into making noise, and that of a token which cannot be chosen is not needed."""
    row, token = (relative > -torch.inf).nonzero(as_tuple=True)
    noise = gumbel(counters[0, row], counters[1, row], token)
    return relative.index_put((row, token), relative[row, token] + noise)


def _keep_top(relative: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Puts -inf in the place of all but the `top_k` likeliest tokens, and of those keeps the fewest
    whose probability (renormalised over them) reaches `top_p`.

    A token as likely as the last one that stays, stays too: so what stays depends on values alone,
    and not on how a sort orders equals.
    """
    vocab_size = relative.shape[1]
    counts = [min(s.top_k or vocab_size, vocab_size) for s in samplings]
    top_k = column(counts, np.int64, relative.device)
    top_p = column([s.top_p for s in samplings], np.float64, relative.device)
    ordered, total = _largest(relative, counts, top_k, top_p)
    mass = _mass(ordered)
    before = mass.cumsum(-1) - mass
    needed = ((before < top_p * total) | (top_p >= 1)).sum(-1, keepdim=True)
    # At least one, also of a row of NaN, whose masses are whatever the device makes of them.
    last = ordered.gather(-1, torch.minimum(needed.clamp(min=1), top_k) - 1)
    return relative.masked_fill(relative < last, -torch.inf)


def _largest(
    relative: Tensor, counts: Sequence[int], top_k: Tensor, top_p: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the largest values of each row, [rows, …], descending, as many as `_keep_top` needs,
    and the mass of the `top_k` largest, [rows, 1]. `counts` is `top_k` on the host."""
    vocab_size = relative.shape[1]
    few = min(FEW, vocab_size)
    if relative.device.type == "cpu" and all(c <= few or c == vocab_size for c in counts):
        ordered = relative.topk(few).values
        total = first = _mass_of_first(ordered, top_k)
        if max(counts) > few:
            total = torch.where(top_k <= few, first, _mass(relative).sum(-1, keepdim=True))
        if (first >= top_p * total).all():
            return ordered, total
    if max(counts) < vocab_size // 4:
        ordered = relative.topk(max(counts)).values
    else:
        ordered = relative.sort(-1, descending=True).values
    return ordered, _mass_of_first(ordered, top_k)


def _mass_of_first(ordered: Tensor, count: Tensor) -> Tensor:
    """Returns the mass of the first `count` [rows, 1] values of each row, [rows, 1] int64."""
    ranks = torch.arange(ordered.shape[1], device=ordered.device)
    return _mass(ordered).masked_fill(ranks >= count, 0).sum(-1, keepdim=True)


def _mass(relative: Tensor) -> Tensor:
    """Returns probabilities as whole numbers, whose sums no order of adding changes."""
    return (relative.double().exp() * MASS_OF_ONE).long()
