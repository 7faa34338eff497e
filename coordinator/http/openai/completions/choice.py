"""`Completion`: one answer of /v1/completions, as a choice or as the events of a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.answers.answer import Answer
from coordinator.answers.tokenizer import Tokenizer
from coordinator.http.chat.usage import ChatUsage
from coordinator.http.openai.completions.body import ParsedCompletions
from coordinator.http.openai.completions.logprobs import CompletionLogprobs
from coordinator.http.openai.heads import ResponseHead, usage_of, why_it_stopped
from coordinator.mailbox import Mailbox

KIND = "text_completion"


class Completion:
    """One answer, of which each call takes what is new: text, logprobs, ids."""

    def __init__(
        self, mailbox: Mailbox, index: int, parsed: ParsedCompletions, tokenizer: Tokenizer
    ) -> None:
        """`index` counts the answers of the response from 0."""
        self.mailbox = mailbox
        self.answer: Answer = mailbox.answer
        self.index = index
        self._parsed = parsed
        self._tokenizer = tokenizer
        prompt = parsed.prompts[index // parsed.num_answers_each]
        self._prompt = prompt
        self._logprobs = None
        if prompt.logprobs is not None:
            pieces = tokenizer.pieces(skip_special_tokens=False)
            shown = tokenizer.pieces(prompt.sampling.skip_special_tokens)
            self._logprobs = CompletionLogprobs(self.answer, pieces, shown)
        self._has_begun = False
        self._num_characters = 0
        self._num_ids = 0

    def choice(self) -> dict[str, Any]:
        """Returns the choice with what is new, all of it at the first call."""
        answer, reason = self.answer, self.answer.finish_reason
        is_first, self._has_begun = not self._has_begun, True
        choice: dict[str, Any] = {
            "index": self.index,
            "text": self._text(is_first),
            "logprobs": None,
            "finish_reason": reason and reason.kind,
        }
        if self._logprobs is not None:
            choice["logprobs"] = self._logprobs.take(is_first and self._parsed.echo)
        if self._parsed.with_token_ids:
            choice["token_ids"] = answer.output_ids[self._num_ids :]
            if is_first:
                choice["prompt_token_ids"] = answer.request.tokens
        self._num_ids = len(answer.output_ids)
        if reason is not None:
            choice |= why_it_stopped(answer)
        return choice

    @property
    def has_news(self) -> bool:
        """True if there is something to show since the last call of `choice`."""
        answer = self.answer
        is_new = not self._has_begun or len(answer.text) > self._num_characters
        return is_new or answer.is_done

    @property
    def usage(self) -> ChatUsage:
        """What the answer took until now."""
        answer = self.answer
        return ChatUsage(
            prompt=len(answer.request.tokens),
            completion=len(answer.output_ids),
            cached=answer.cached_tokens,
            reasoning=0,
        )

    def _text(self, is_first: bool) -> str:
        text = self.answer.text
        new = text[self._num_characters :]
        self._num_characters = len(text)
        return self._echo() + new if is_first and self._parsed.echo else new

    def _echo(self) -> str:
        if self._prompt.text is not None:
            return self._prompt.text
        return self._tokenizer.decode(self.answer.request.tokens, skip_special_tokens=True)


class CompletionEvents:
    """Makes the events of one answer's stream. What they have in common is encoded once."""

    def __init__(self, head: ResponseHead, parsed: ParsedCompletions, one: Completion) -> None:
        self._one = one
        fields = msgspec.json.encode(head.fields(KIND))[:-1]
        self._begin = b'data: %b,"choices":[' % fields
        options = parsed.stream_options
        self._has_usage = bool(options.continuous_usage_stats)
        self._usage = b',"usage":null' if options.include_usage else b""

    def next(self) -> bytes:
        """Returns the event with what is new; b"" if nothing is."""
        if not self._one.has_news:
            return b""
        choice = msgspec.json.encode(self._one.choice())
        usage = self._usage
        if self._has_usage:
            usage = b',"usage":' + msgspec.json.encode(usage_of([self._one.usage]))
        return b"%b%b]%b}\n\n" % (self._begin, choice, usage)
