"""What the sampler should choose, one row and one token at a time, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

from protocol.sampling import Sampling


def adjusted(
    logits: Sequence[float], sampling: Sampling, position: int, history: Sequence[int]
) -> list[float]:
    """Logits with penalties, biases and the mask of stops that come too early."""
    answer, biases = history[sampling.prompt_length :], dict(sampling.logit_bias)
    changed = []
    for token, logit in enumerate(logits):
        if token in answer:
            logit -= sampling.frequency_penalty * answer.count(token)
            logit -= sampling.presence_penalty
        if token in history:
            factor = sampling.repetition_penalty
            logit = logit / factor if logit > 0 else logit * factor
        logit += biases.get(token, 0.0)
        is_early = position - sampling.prompt_length < sampling.min_new_tokens
        changed.append(-math.inf if is_early and token in sampling.end_token_ids else logit)
    return changed


def logprobs_of(logits: Sequence[float], sampling: Sampling) -> list[float]:
    """After the temperature."""
    scaled = [logit / (sampling.temperature or 1.0) for logit in logits]
    total = math.fsum(math.exp(value - max(scaled)) for value in scaled)
    return [value - max(scaled) - math.log(total) for value in scaled]


def kept(logprobs: Sequence[float], sampling: Sampling) -> set[int]:
    """Tokens that top_k, top_p and min_p leave. No two logprobs are equal."""
    ordered = sorted(range(len(logprobs)), key=lambda token: -logprobs[token])
    ordered = ordered[: sampling.top_k or len(ordered)]
    share = math.fsum(math.exp(logprobs[token]) for token in ordered)
    left: list[int] = []
    reached = 0.0
    for token in ordered:
        if reached < sampling.top_p or sampling.top_p == 1:
            left.append(token)
        reached += math.exp(logprobs[token]) / share
    floor = math.exp(logprobs[ordered[0]]) * sampling.min_p
    return {token for token in left if math.exp(logprobs[token]) >= floor}


def chosen(logits: Sequence[float], sampling: Sampling, position: int) -> int:
    """From adjusted logits."""
    logprobs = logprobs_of(logits, sampling)
    if sampling.temperature == 0:
        return logprobs.index(max(logprobs))
    return max(
        kept(logprobs, sampling),
        key=lambda token: logprobs[token] + gumbel(sampling.seed, position, token),
    )


def splitmix64(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def gumbel(seed: int, position: int, token: int) -> float:
    golden = 0x9E3779B97F4A7C15
    key = splitmix64((splitmix64((seed + golden) % 2**64) + position * golden) % 2**64)
    uniform = ((splitmix64((key + token * golden) % 2**64) >> 12) + 0.5) / 2**52
    return -math.log(-math.log(uniform))
