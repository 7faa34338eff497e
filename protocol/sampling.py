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
