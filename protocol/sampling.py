"""`Sampling`: how the next token of one request is chosen; travels with the request. Pure."""

from __future__ import annotations

import msgspec

from protocol.trust.bounds import Count, Real, Seed, TokenId


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """The sampling parameters of one request, validated by the coordinator.

    A `temperature` of 0 takes the likeliest token, a `top_k` of 0 keeps all tokens. `seed` is
    always set (the coordinator makes one up if the client gave none), so that a retry goes on with
    the very same tokens.
    """

    temperature: Real = 1.0
    top_k: Count = 0
    top_p: Real = 1.0
    min_p: Real = 0.0
    seed: Seed = 0
    frequency_penalty: Real = 0.0
    presence_penalty: Real = 0.0
    repetition_penalty: Real = 1.0
    logit_bias: tuple[tuple[TokenId, Real], ...] = ()
    """Pairs of a token id and what is added to its logit."""
    prompt_length: Count = 0
    """How many tokens the client sent. Those behind them are the answer so far, whoever computed
    it."""
    min_new_tokens: Count = 0
    """As long as the answer has fewer tokens, none of `end_token_ids` is chosen."""
    end_token_ids: tuple[TokenId, ...] = ()
    """Given if `min_new_tokens` or `grammar` is."""
    num_top_logprobs: int = -1
    """-1: no logprobs are wanted; 0: those of chosen tokens; n: those of the n likeliest tokens
    too."""
    logprob_token_ids: tuple[TokenId, ...] = ()
    """Tokens whose logprobs are wanted at every position too, if logprobs are wanted at all."""

    prompt_logprobs_from: int = -1
    """The first position of the prompt whose logprob is wanted, as for the tokens of the answer
    with the likeliest and the wanted ones; -1: none is. Only with `wants_logprobs`."""
    grammar: str = ""
    """What the whole answer must follow, as `llguidance.LLMatcher` takes it; "" for nothing. Then
    `end_token_ids` end the answer where the grammar may end, and nowhere else."""
    max_new_tokens: Count = 0
    """The most tokens that the answer has, given with `grammar`: within them its end is found. 0:
    not known."""

    @property
    def wants_logprobs(self) -> bool:
        """True if the client asked for logprobs."""
        return self.num_top_logprobs >= 0

    @property
    def has_state(self) -> bool:
        """True if the choice depends on which tokens came before, so that the runner has to keep a
        state of the sequence."""
        return self.has_penalties or bool(self.grammar)

    @property
    def has_penalties(self) -> bool:
        """True if tokens that came before are more or less likely than others."""
        return (
            self.frequency_penalty != 0
            or self.presence_penalty != 0
            or self.repetition_penalty != 1
        )


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs at one position: natural logarithms of probabilities."""

    chosen: float
    top: list[tuple[int, float]] = []
    """Pairs of a token id and its logprob, the likeliest first."""
    wanted: list[float] = []
    """The logprobs of `Sampling.logprob_token_ids`, in the order of those."""
