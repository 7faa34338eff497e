"""Reads messages of other processes, and says what is wrong with those that make no sense. Pure.

A receiver takes for granted what is checked here: whole numbers of tokens and hashes, arrays of the
size that they announce, fields that only make sense together, incarnations that the clock allows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from protocol.hashing import PAGE_HASH_BYTES
from protocol.messages import (
    AnyMessage,
    AuditReply,
    Fetch,
    Generate,
    Goodbye,
    Heartbeat,
    Prefill,
    PrefillDone,
    TakenOver,
    TokensOut,
    decode,
)
from protocol.prompt_logprobs import PromptLogprobs
from protocol.trust.versions import why_unreadable

TOKEN_BYTES = 4
MAX_AHEAD_NS = 3600 * 10**9
"""How far an incarnation, which is the time of a start, may lie in the future: the clocks of hosts
differ. A later one would keep its name from every honest process for as long."""


def read_message(raw: bytes, now_ns: int) -> AnyMessage:
    """Returns the message that another process has encoded as `raw`. `now_ns` is the wall clock.
    Raises ValueError, with a sentence, if it is none or cannot be honest."""
    try:
        message = decode(raw)
    except ValueError as error:
        raise ValueError(why_unreadable(raw) or str(error)) from error
    if problem := problem_with(message, now_ns):
        raise ValueError(f"{type(message).__name__}: {problem}")
    return message


def problem_with(message: AnyMessage, now_ns: int) -> str:
    """Returns what is wrong with a message whose fields are in their bounds; "" if nothing is."""
    if isinstance(message, TokensOut):  # the most frequent one first
        return _first(_of_logprobs(out.prompt_logprobs) for out in message.outs)
    if isinstance(message, Heartbeat | Goodbye):
        node = message.info.node if isinstance(message, Heartbeat) else message.node
        return _of_incarnation(node.incarnation, now_ns)
    if isinstance(message, Generate):
        return _of_prompt(message) or _of_prefill_node(message)
    if isinstance(message, Prefill):
        return _of_prompt(message) or _of_receivers(message.data_addresses)
    if isinstance(message, Fetch):
        return _of_hashes(message.hashes) or _of_receivers(message.data_addresses)
    if isinstance(message, AuditReply):
        return _of_hashes(message.hashes)
    if isinstance(message, PrefillDone):
        return _of_logprobs(message.prompt_logprobs)
    if isinstance(message, TakenOver):
        return _of_tokens(message.tokens or b"")
    return ""


def _first(problems: Iterable[str]) -> str:
    return next(filter(None, problems), "")


def _of_prompt(message: Generate | Prefill) -> str:
    raw = message.tokens
    if not raw:
        return "a prompt has at least one token"
    if message.sampling.prompt_length * TOKEN_BYTES > len(raw):
        return "the client's part of the prompt is longer than the prompt"
    return _of_tokens(raw)


def _of_tokens(raw: bytes) -> str:
    if len(raw) % TOKEN_BYTES:
        return f"{len(raw)} bytes are no whole number of tokens"
    if not raw:
        return ""
    # A little-endian int32 is negative if the highest bit of its last byte is set.
    return "a token id is negative" if max(raw[TOKEN_BYTES - 1 :: TOKEN_BYTES]) > 0x7F else ""


def _of_hashes(raw: bytes) -> str:
    if len(raw) % PAGE_HASH_BYTES:
        return f"{len(raw)} bytes are no whole number of page hashes"
    return ""


def _of_receivers(data_addresses: Sequence[str]) -> str:
    return "" if data_addresses else "it names nobody who would receive the pages"


def _of_prefill_node(message: Generate) -> str:
    if (message.prefill_node is None) != (not message.prefill_address):
        return "a prefill node has a name and an address, or there is none"
    return ""


def _of_incarnation(incarnation: int, now_ns: int) -> str:
    ahead_ns = incarnation - now_ns
    if ahead_ns > MAX_AHEAD_NS:
        return f"its incarnation lies {ahead_ns / 3600e9:.0f} hours in the future"
    return ""


def _of_logprobs(logprobs: PromptLogprobs | None) -> str:
    if logprobs is None:
        return ""
    rows, width = logprobs.num_positions, 1 + logprobs.num_top + logprobs.num_wanted
    if len(logprobs.logprobs) != 4 * rows * width or len(logprobs.top_ids) != 4 * rows * (
        logprobs.num_top
    ):
        return "its logprobs of the prompt are not as many as it says"
    return ""
