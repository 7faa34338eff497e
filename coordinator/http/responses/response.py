"""`ResponseWriter`: the response object, at any time of it, and the items of its output."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.answers.answer import AnswerError
from coordinator.conversation.blocks import MessageBlock, blocks_of
from coordinator.http.chat.answer import ChatInProgress
from coordinator.http.responses.body import ParsedResponse
from coordinator.http.responses.items import FREE_TEXT, packed

ID_PREFIXES = {"text": "msg", "thought": "rs", "call": "fc"}
FREE_PREFIX = "ctc"
ERROR_CODES = {"bad_request": "invalid_prompt", "too_busy": "rate_limit_exceeded"}
"""The `code` of a failed response by the kind of its error; every other one is a server_error."""

Item = dict[str, Any]


class ResponseWriter:
    """Writes what is known of one response."""

    def __init__(
        self, parsed: ParsedResponse, one: ChatInProgress, created: int, model: str
    ) -> None:
        """`created` is the time in seconds since 1970."""
        self.one = one
        self._parsed = parsed
        self._created = created
        self._model = model

    def whole(self) -> dict[str, Any]:
        """Returns the response of an answer that has ended with success and is settled, none of
        whose parts were taken."""
        return self.final([self.item(block) for block in blocks_of(self.one.take())])

    def begun(self) -> dict[str, Any]:
        """Returns the response before there is anything of its output."""
        return self._object("in_progress", [])

    def final(self, output: list[Item]) -> dict[str, Any]:
        """Returns the response of an answer that has ended with success and is settled."""
        one = self.one
        response = self._object("completed", output) | {"usage": _usage_of(one)}
        if one.finish in ("length", "abort"):
            response["status"] = "incomplete" if one.finish == "length" else "cancelled"
        if one.finish == "length":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        return response

    def failed(self, error: AnswerError, output: list[Item]) -> dict[str, Any]:
        """Returns the response of an answer that has ended without success."""
        code = ERROR_CODES.get(error.kind, "server_error")
        failure = {"code": code, "message": error.message}
        return self._object("failed", output) | {"error": failure, "usage": _usage_of(self.one)}

    def item(self, block: MessageBlock) -> Item:
        """Returns the item of a block that is complete."""
        if block.kind == "text":
            return self.begun_item(block) | {
                "status": "completed",
                "content": [text_part(block.text)],
            }
        if block.kind == "thought":
            thoughts = [reasoning_part(block.text)] if block.text else []
            content = packed(block.text) if self._parsed.packs_thoughts else None
            return self.begun_item(block) | {
                "status": "completed",
                "content": thoughts,
                "encrypted_content": content,
            }
        key = "input" if self.is_free(block) else "arguments"
        text = free_text(block) if self.is_free(block) else block.text or "{}"
        status = "incomplete" if block.is_broken else "completed"
        return self.begun_item(block) | {"status": status, key: text}

    def begun_item(self, block: MessageBlock) -> Item:
        """Returns the item of a block of which nothing has come."""
        item: Item = {"id": self.item_id(block), "status": "in_progress"}
        if block.kind == "text":
            return item | {"type": "message", "role": "assistant", "content": []}
        if block.kind == "thought":
            item |= {"type": "reasoning", "summary": [], "content": []}
            return item | {"encrypted_content": None}
        item |= {"call_id": self.one.call_id(block.call_index), "name": block.name}
        if self.is_free(block):
            return item | {"type": "custom_tool_call", "input": ""}
        return item | {"type": "function_call", "arguments": ""}

    def item_id(self, block: MessageBlock) -> str:
        """Returns the id of an item, which is the same in every event and in the response."""
        prefix = FREE_PREFIX if self.is_free(block) else ID_PREFIXES[block.kind]
        return f"{prefix}_{self.one.answer.request_id[:24]}{block.index:04x}"

    def is_free(self, block: MessageBlock) -> bool:
        """Returns True for a call whose argument is a text of any form."""
        return block.kind == "call" and block.name in self._parsed.free_names

    def _object(self, status: str, output: list[Item]) -> dict[str, Any]:
        return {
            "id": self._parsed.request.rid,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": output,
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self._parsed.told,
        }


def text_part(text: str) -> Item:
    """Returns the one part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_part(text: str) -> Item:
    """Returns the one part of a thought."""
    return {"type": "reasoning_text", "text": text}


def free_text(block: MessageBlock) -> str:
    """Returns the text that a custom tool is called with. What has not its form, as the call is not
    whole or the model wrote it otherwise, stays as it is."""
    try:
        arguments = msgspec.json.decode(block.text)
    except msgspec.DecodeError:
        return block.text
    text = arguments.get(FREE_TEXT) if isinstance(arguments, dict) else None
    return text if isinstance(text, str) else block.text


def _usage_of(one: ChatInProgress) -> dict[str, Any]:
    usage = one.usage
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }
