"""Takes out of a chat what an agent's program writes into it anew with every request. Pure.

Claude Code begins its first system text with a line such as
`x-anthropic-billing-header: cc_version=2.1.175.4f0; cc_entrypoint=cli; cch=eb6c6;`, of which two
values differ from request to request. It says nothing to a model, and no prompt would share more
with another one than what the chat template writes before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n*", re.IGNORECASE)
SYSTEM_ROLES = ("system", "developer")


def without_agent_header(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns messages in OpenAI's form without such a line at the very beginning; all others as
    they are. A part or a message that was nothing else is left out."""
    if not messages or not isinstance(messages[0], Mapping):
        return messages
    first = messages[0]
    content = first.get("content")
    if first.get("role") not in SYSTEM_ROLES or not content:
        return messages
    kept = _without_in_parts(content) if isinstance(content, list) else _without(content)
    if kept is content:
        return messages
    return [{**first, "content": kept}, *messages[1:]] if kept else messages[1:]


def _without(text: Any) -> Any:
    found = HEADER.match(text) if isinstance(text, str) else None
    return text[found.end() :] if found is not None else text


def _without_in_parts(parts: list[Any]) -> list[Any]:
    first = parts[0]
    text = first.get("text") if isinstance(first, Mapping) else first
    kept = _without(text)
    if kept is text:
        return parts
    if not kept:
        return parts[1:]
    return [{**first, "text": kept} if isinstance(first, Mapping) else kept, *parts[1:]]
