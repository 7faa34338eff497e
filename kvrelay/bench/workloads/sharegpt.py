"""Chats in ShareGPT's form: a JSON array of objects with `conversations`, an array of
`{"from": "human" | "gpt", "value": text}`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kvrelay.bench.workloads.dialogue import Dialogue, UserTurn
from kvrelay.bench.workloads.trace import BadTrace

CHARACTERS_PER_TOKEN = 4
"""What the length of an answer is reckoned by where --output-tokens does not give it: the file has
texts only."""
USERS = ("human", "user")
ASSISTANTS = ("gpt", "chatgpt", "bing", "bard", "assistant")


def sharegpt_dialogues(path: Path, max_turns: int, num_output_tokens: int) -> list[Dialogue]:
    """Reads the chats of a file, each up to `max_turns` turns of its user.

    An answer is asked for with `num_output_tokens` tokens, or where that is 0 with about as many as
    the recorded one has; the recorded text itself is not sent. Raises BadTrace.
    """
    try:
        chats = json.loads(path.read_text(encoding="utf-8"))
        dialogues = [_dialogue(chat, max_turns, num_output_tokens) for chat in chats]
    except OSError as error:
        raise BadTrace(f"cannot read {path} ({error}); --dataset names the file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadTrace(
            f"{path} is no file in ShareGPT's form ({error!r}): an array of objects with "
            "`conversations`"
        ) from error
    found = [dialogue for dialogue in dialogues if dialogue.turns]
    if not found:
        raise BadTrace(f"{path} has no chat in which a user is answered")
    return found


def _dialogue(chat: dict[str, Any], max_turns: int, num_output_tokens: int) -> Dialogue:
    """Returns the turns that have an answer, from the beginning on."""
    messages = chat.get("conversations") or chat.get("conversation") or []
    if messages and messages[0]["from"] == "system":
        messages = messages[1:]
    turns = []
    for question, answer in zip(messages[::2], messages[1::2], strict=False):
        if question["from"] not in USERS or answer["from"] not in ASSISTANTS:
            break
        about = max(1, len(answer["value"]) // CHARACTERS_PER_TOKEN)
        if question["value"].strip():
            turns.append(UserTurn(question["value"], num_output_tokens or about))
    return Dialogue(tuple(turns[:max_turns]))
