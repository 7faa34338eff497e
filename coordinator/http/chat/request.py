"""`ChatRequest`: a chat to answer, in no dialect. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.conversation.message import Tool, ToolChoice
from coordinator.http.native.sampling_params import SamplingParams
from coordinator.http.native.schema import GrammarSource, LogprobParams

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""Variables by which chat templates let a model think, or do not."""


@dataclass(frozen=True)
class ChatRequest:
    """What a body of any chat dialect asks for. The parser of the dialect has checked the types of
    everything but the messages, which `normal_messages` looks at."""

    messages: Sequence[Mapping[str, Any]]
    """In OpenAI's form: `role`, `content` (a text or parts), `reasoning_content`, `tool_calls`,
    `tool_call_id`."""
    sampling: SamplingParams
    tools: Sequence[Tool] = ()
    choice: ToolChoice = field(default_factory=ToolChoice)
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """The chat template's own switches."""
    documents: Sequence[Mapping[str, Any]] | None = None
    """Texts that some templates show the model beside the messages."""
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    """The answer goes on with the last message in place of beginning one."""
    add_special_tokens: bool = False
    """Also those that stand around a plain text; templates write their own."""
    separates_reasoning: bool = True
    """Thoughts are told from the answer; without it they are part of its text."""
    grammar: GrammarSource | None = None
    """What the text of the answer must follow, if anything."""
    logprobs: LogprobParams | None = None
    ends_with_context: bool = False
    """An answer for which the context has no room gets what room there is."""
    rid: str | None = None
    cache_salt: str = ""
    priority: int = 0

    def named(self, made_up: str) -> ChatRequest:
        """Returns the same with a name, the client's or else the one made up, so that the client
        can abort what it sees the id of."""
        return replace(self, rid=self.rid or made_up)

    @property
    def thinks(self) -> bool:
        """True if thoughts are to be looked for: the chat does not forbid them."""
        switches = [self.template_variables.get(name) for name in THINKING_SWITCHES]
        return self.separates_reasoning and False not in switches

    @property
    def usable_tools(self) -> Sequence[Tool]:
        """The tools that the model is told of: none with the choice "none"."""
        return () if self.choice.kind == "none" else self.tools
