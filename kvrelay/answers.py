"""What the cluster answers, as frozen values: those of /generate and of /v1/chat/completions. Pure.

Keys that a server sends besides are ignored, and those that an SGLang server lacks have defaults.
"""

from __future__ import annotations

from typing import Any

import msgspec


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One token and how likely it was."""

    logprob: float | None
    """None at the first position of a prompt, where nothing comes before."""
    token_id: int
    text: str | None = None
    """None unless `return_text_in_logprobs` asks for it."""


Logprobs = tuple[TokenLogprob, ...]


class GenerationEnd(msgspec.Struct, frozen=True):
    """Why an answer has ended: `type` is stop, length or abort."""

    type: str
    matched: int | str | None = None
    """The end token or the stop string that ended it."""
    length: int | None = None
    message: str | None = None
    """Why it was aborted."""


class GeneratedMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What the cluster tells of an answer."""

    id: str = ""
    finish_reason: GenerationEnd | None = None
    """None while the answer grows."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """How many tokens of the prompt were not computed, as their pages were there."""
    e2e_latency: float = 0.0
    """Seconds from the request to this moment of the answer."""
    ttft: float | None = None
    """Seconds to the first token."""
    attempts: int = 1
    resume_token: str | None = None
    """In the first event of a stream: with it another coordinator goes on when this one has
    died."""
    prefill_node: str | None = None
    decode_node: str | None = None
    route_reason: str | None = None
    route_runner_up: str | None = None
    fetched_from: str | None = None
    fetched_tokens: int = 0
    transferred_pages: int = 0
    input_token_logprobs: Logprobs | None = None
    output_token_logprobs: Logprobs | None = None
    input_top_logprobs: tuple[Logprobs | None, ...] | None = None
    output_top_logprobs: tuple[Logprobs | None, ...] | None = None
    input_token_ids_logprobs: tuple[Logprobs | None, ...] | None = None
    output_token_ids_logprobs: tuple[Logprobs | None, ...] | None = None


class Generated(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of /generate, or all of it so far."""

    text: str
    output_ids: tuple[int, ...] = ()
    meta_info: GeneratedMeta = GeneratedMeta()
    prompt_token_ids: tuple[int, ...] | None = None
    """The ids of the prompt, if `return_prompt_token_ids` asks for them."""


class CalledFunction(msgspec.Struct, frozen=True):
    """The function of a tool call."""

    name: str | None = None
    arguments: str = ""
    """JSON, or in a stream a part of it."""


class AnsweredToolCall(msgspec.Struct, frozen=True):
    """A tool that the model wants to be called."""

    function: CalledFunction
    id: str | None = None
    index: int = 0
    type: str | None = "function"


class AnsweredMessage(msgspec.Struct, frozen=True):
    """What the model says, or in a stream what is new of it."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[AnsweredToolCall, ...] | None = None


class AnsweredChoice(msgspec.Struct, frozen=True):
    """One of the `n` answers to a chat."""

    message: AnsweredMessage
    index: int = 0
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How many tokens of a chat were not computed."""

    cached_tokens: int | None = 0


class TokenUsage(msgspec.Struct, frozen=True):
    """How many tokens a chat took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None

    @property
    def cached_tokens(self) -> int:
        """How many tokens of the prompt were not computed."""
        return (self.prompt_tokens_details or PromptTokensDetails()).cached_tokens or 0


class ChatResult(msgspec.Struct, frozen=True):
    """An answer of /v1/chat/completions."""

    choices: tuple[AnsweredChoice, ...]
    id: str = ""
    model: str = ""
    usage: TokenUsage | None = None

    @property
    def message(self) -> AnsweredMessage:
        """The first answer."""
        return self.choices[0].message if self.choices else AnsweredMessage()

    @property
    def text(self) -> str:
        """The text of the first answer; "" if it only calls tools."""
        return self.message.content or ""

    @property
    def tool_calls(self) -> tuple[AnsweredToolCall, ...]:
        """The tools that the first answer calls."""
        return self.message.tool_calls or ()


class ChangedChoice(msgspec.Struct, frozen=True):
    """What is new in one of the `n` answers to a chat."""

    delta: AnsweredMessage
    index: int = 0
    finish_reason: str | None = None


class ChatUpdate(msgspec.Struct, frozen=True):
    """What is new in the stream of a chat."""

    choices: tuple[ChangedChoice, ...]
    id: str = ""
    model: str = ""
    usage: TokenUsage | None = None
    """In the last update, if `stream_options` asks for it."""

    @property
    def delta(self) -> AnsweredMessage:
        """What is new in the first answer."""
        return next((one.delta for one in self.choices if one.index == 0), AnsweredMessage())

    @property
    def text(self) -> str:
        """The new text of the first answer."""
        return self.delta.content or ""
