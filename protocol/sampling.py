"""`Sampling`: how the next token of one request is chosen; travels with the request. Pure."""

from __future__ import annotations

import msgspec


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling parameters of one request, already validated.

    temperature 0 is greedy. top_k 0 keeps all tokens. `seed` is always set (made up at admission
    when the client gave none), so that a retry continues with the very same tokens.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit)."""
    prompt_length: int = 0
    """Tokens that the client sent; those behind them are the answer so far, whoever computed it."""
    min_new_tokens: int = 0
    """Until the answer has so many tokens, `end_token_ids` are not chosen."""
    end_token_ids: tuple[int, ...] = ()
    """Given if `min_new_tokens` or `grammar` is."""
    num_top_logprobs: int = -1
    """-1: no logprobs are wanted; 0: the chosen token's; n: the n likeliest tokens' as well."""
    logprob_token_ids: tuple[int, ...] = ()
    """Tokens whose logprobs are wanted at every position, if any are."""
    grammar: str = ""
    """What the whole answer must follow, as `llguidance.LLMatcher` takes it; "" for nothing. Then
    `end_token_ids` end the answer where the grammar may end, and nowhere else."""
    max_new_tokens: int = 0
    """The most tokens that the answer has, given with `grammar`: within them its end is found. 0:
    not known."""

    @property
    def wants_logprobs(self) -> bool:
        return self.num_top_logprobs >= 0

    @property
    def has_state(self) -> bool:
        """The choice depends on the ids of the tokens before it, of which the runner keeps a state
        for each sequence."""
        return self.has_penalties or bool(self.grammar)

    @property
    def has_penalties(self) -> bool:
        """Tokens that came before are more or less likely than others."""
        return (
            self.frequency_penalty != 0
            or self.presence_penalty != 0
            or self.repetition_penalty != 1
        )


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities at one position."""

    chosen: float
    top: list[tuple[int, float]] = []
    """(token id, logprob), the likeliest first."""
    wanted: list[float] = []
    """Logprobs of `Sampling.logprob_token_ids`, in their order."""
