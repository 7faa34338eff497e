"""`ChatUsage`: what an answer took. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ChatUsage:
    """What an answer took, in tokens."""

    prompt: int
    completion: int
    cached: int
    """Tokens of the prompt that were not computed."""
    reasoning: int
    """How many the thoughts are; part of `completion`."""
