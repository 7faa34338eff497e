"""What is known of an answer whose coordinator has died, by what the nodes say. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from coordinator.answers.answer import Answer, NewTokens
from protocol.hashing import tokens_from_bytes
from protocol.messages import TakenOver


@dataclass(frozen=True)
class AnsweredBefore:
    """What was answered of a request before it came to this coordinator."""

    tokens: list[int]
    finish: str = ""
    """Why the answer has ended with them; "" if it goes on."""
    cached_tokens: int = 0


def begin_with(answer: Answer, before: AnsweredBefore, now: float) -> bool:
    """Lets an answer begin with what was answered of it before. Returns True if it has ended with
    that."""
    limit = answer.request.max_new_tokens
    tokens = before.tokens[:limit]
    if tokens and answer.grow(NewTokens(tokens, [], before.cached_tokens, 0, 0), None, 0, now):
        return True
    if before.finish and len(tokens) == len(before.tokens):
        answer.finish(before.finish, now)
    elif len(tokens) == limit:
        answer.finish("length", now)
    return answer.is_done


NOTHING_ANSWERED = AnsweredBefore([])


def answered_before(replies: Collection[TakenOver]) -> AnsweredBefore | None:
    """Returns the longest answer that a node has kept; an empty one if none has any: the same
    tokens are then computed again. None: a node has just heard the coordinator that has the
    request, which may not be taken from it."""
    if any(reply.owner_lives for reply in replies):
        return None
    kept = [reply for reply in replies if reply.tokens is not None]
    if not kept:
        return NOTHING_ANSWERED
    longest = max(kept, key=lambda reply: (len(reply.tokens or b""), reply.finish != ""))
    tokens = tokens_from_bytes(longest.tokens or b"")
    return AnsweredBefore(tokens, longest.finish, longest.cached_tokens)
