"""How the prompt of a turn follows from the turns before it. Pure.

The semantics are SGLang's: a turn continues an earlier one, which any number of turns may do (a
fork), from its end or from some token of it (a rollback).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TurnRequest:
    """What a client asks of a session for one prompt: SGLang's `session_params`."""

    session_id: str
    rid: str = ""
    """The turn to go on from; "" begins anew."""
    offset: int = 0
    """How many tokens of that turn are kept, counted from its end if negative; 0 keeps all."""
    replace: bool = False
    """Removes the turns that follow that turn; all turns if there is none."""
    drop_previous_output: bool = False
    """Leaves out that turn's answer."""


@dataclass(frozen=True)
class TurnRecord:
    """What is kept of one turn."""

    kept: int
    """Its prompt begins with so many tokens of the turn before it: of prompt and answer."""
    new: Sequence[int]
    """The rest of its prompt."""
    answer: Sequence[int] | None
    """None as long as it has not ended."""


def tokens_of(chain: Sequence[TurnRecord]) -> tuple[list[int], list[int]]:
    """Returns prompt and answer of the last turn of a chain that begins with a turn that follows
    none. All turns of it must have ended."""
    tokens: list[int] = []
    prompt_length = 0
    for turn in chain:
        assert turn.answer is not None
        # In place: copying the whole for every turn takes time that grows with its square.
        del tokens[turn.kept :]
        tokens += turn.new
        prompt_length = len(tokens)
        tokens += turn.answer
    return tokens[:prompt_length], tokens[prompt_length:]


def kept_tokens(chain: Sequence[TurnRecord], asked: TurnRequest) -> list[int]:
    """Returns those tokens of the last turn of `chain` with which the next prompt begins."""
    prompt, answer = tokens_of(chain)
    whole = prompt if asked.drop_previous_output else prompt + answer
    return whole[: asked.offset] if asked.offset else whole


def without_bos(tokens: list[int], bos_token_id: int | None) -> list[int]:
    """Returns the tokens of a text that goes on, without the token that stands before a text that
    begins."""
    return tokens[1:] if tokens and tokens[0] == bos_token_id else tokens
