"""What every response object of this dialect begins with, and what it says of tokens. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.answers.answer import Answer
from coordinator.http.chat.usage import ChatUsage


@dataclass(frozen=True)
class ResponseHead:
    """What the events of a stream, or the one object of a response, have in common."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str
    fingerprint: str

    def fields(self, kind: str) -> dict[str, Any]:
        """Returns the first fields of an object of the kind `kind`."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "service_tier": None,
        }


def usage_of(answers: Sequence[ChatUsage], num_prompts: int = 1) -> dict[str, Any]:
    """Returns the usage of a response with the same number of answers to each of its prompts. A
    prompt counts once, however many answers it has."""
    per_prompt = max(1, len(answers) // num_prompts)
    firsts = answers[::per_prompt]
    prompt = sum(one.prompt for one in firsts)
    completion = sum(one.completion for one in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached for one in firsts)},
        "completion_tokens_details": {"reasoning_tokens": sum(one.reasoning for one in answers)},
    }


def why_it_stopped(answer: Answer) -> dict[str, Any]:
    """Returns what SGLang and vLLM say of the stop string or the end token."""
    reason = answer.finish_reason
    matched = reason.matched if reason is not None else None
    return {"matched_stop": matched, "stop_reason": matched}
