"""`ChatInProgress`: one answer to a chat, which is taken apart into the parts of a message while it
grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from coordinator.answers.tokenizer import TextTooLong, Tokenizer
from coordinator.conversation.message import (
    AssistantMessage,
    MessageDelta,
    MessageForm,
    MessageParser,
    ReasoningDelta,
    ToolCallBegun,
    ToolCallBroken,
    message_of,
)
from coordinator.http.answering.submitting import submit_all
from coordinator.http.chat.prompts import prompt_of
from coordinator.http.chat.request import ChatRequest
from coordinator.http.chat.usage import ChatUsage
from coordinator.mailbox import Mailbox
from coordinator.service import Service
from coordinator.timelines.arrival import Arrival

WANTS_SHORT_IDS = "alphanumeric strings with length 9"
"""What templates say that refuse other ids of calls."""
Finish = Literal["stop", "length", "tool_calls", "abort"]


class ChatInProgress:
    """One answer to a chat, whose parts are taken as they come."""

    def __init__(
        self,
        mailbox: Mailbox,
        index: int,
        parser: MessageParser,
        tokenizer: Tokenizer,
        has_short_ids: bool = False,
    ) -> None:
        """`index` is the number of this answer among those of the same chat. `has_short_ids`: ids
        of calls are of the form that Mistral's templates ask for."""
        self.mailbox = mailbox
        self.index = index
        self.answer = mailbox.answer
        self._parser = parser
        self._tokenizer = tokenizer
        self._has_short_ids = has_short_ids
        self._num_characters = 0
        """How much of the text the parser has."""
        self._parts: list[MessageDelta] = []
        """Those that were found and not taken."""
        self._has_ended = False
        self._num_calls = 0
        """Calls that have begun and are not broken."""
        self._thoughts: list[str] = []
        self._num_reasoning_tokens = 0

    def take(self) -> Sequence[MessageDelta]:
        """Returns the parts that came since the last call. There may be none."""
        self._read()
        parts, self._parts = self._parts, []
        return parts

    async def settle(self) -> None:
        """Counts the thoughts of an answer that has ended. Its last parts stay to be taken."""
        self._read()
        if self._thoughts:
            self._num_reasoning_tokens = await self._count_thoughts()

    async def whole(self) -> AssistantMessage:
        """Returns the message of an answer that has ended with success, none of whose parts were
        taken."""
        assert self.answer.is_done
        await self.settle()
        return message_of(self.take())

    @property
    def finish(self) -> Finish | None:
        """How the answer ended; None while parts of it may come."""
        if not self._has_ended:
            return None
        reason = self.answer.finish_reason
        assert reason is not None
        return "tool_calls" if reason.kind == "stop" and self._num_calls else reason.kind

    @property
    def usage(self) -> ChatUsage:
        """What the answer took until now; its thoughts are counted when it is settled."""
        answer = self.answer
        return ChatUsage(
            prompt=len(answer.request.tokens),
            completion=len(answer.output_ids),
            cached=answer.cached_tokens,
            reasoning=self._num_reasoning_tokens,
        )

    def call_id(self, index: int) -> str:
        """Returns the id of a call of this message, which no other call of the chat has."""
        if self._has_short_ids:
            return f"{self.answer.request_id[:7]}{index % 256:02x}"
        return f"call_{self.answer.request_id[:24]}{index:04x}"

    def _read(self) -> None:
        """Gives the parser the text that is new."""
        text = self.answer.text
        new = text[self._num_characters :]
        self._num_characters = len(text)
        parts = list(self._parser.feed(new)) if new else []
        if self.answer.is_done and not self._has_ended:
            self._has_ended = True
            parts += self._parser.finish()
        for part in parts:
            if isinstance(part, ToolCallBegun):
                self._num_calls += 1
            elif isinstance(part, ToolCallBroken):
                self._num_calls -= 1
            elif isinstance(part, ReasoningDelta):
                self._thoughts.append(part.text)
        self._parts += parts

    async def _count_thoughts(self) -> int:
        """Returns how many tokens the thoughts are, as the tokenizer writes them: where tokens lie
        in the text is not kept."""
        most = len(self.answer.output_ids)
        thoughts = "".join(self._thoughts)
        try:
            tokens = await self._tokenizer.encode(thoughts, with_special_tokens=False)
        except TextTooLong:  # the model wrote it in fewer tokens than the tokenizer does
            return most
        return min(len(tokens), most)


async def submit_chat(
    service: Service, request: ChatRequest, form: MessageForm, arrival: Arrival
) -> list[ChatInProgress]:
    """Starts the n answers to a chat; if one is refused, none of them. Raises BadRequest and
    RequestRefused."""
    template = service.tokenizer.chat_template
    takes_out_headers = service.config.takes_out_agent_headers
    chat = await prompt_of(request, template, form, takes_out_headers)
    mailboxes = await submit_all(service, [chat.prompt], arrival, request.add_special_tokens)
    tools, choice = request.usable_tools, request.choice
    tokenizer = service.tokenizer
    has_short_ids = template is not None and template.mentions(WANTS_SHORT_IDS)
    return [
        ChatInProgress(
            mailbox, index, form.parser(tools, choice, chat.thinking), tokenizer, has_short_ids
        )
        for index, mailbox in enumerate(mailboxes)
    ]
