"""What clients ask while processes die, each with the tokens that it must get."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvrelay.answers import Generated
from kvrelay.async_client import AsyncClient
from kvrelay.calls import ApiCall
from tests.support.engine.driving import prompt_of

Kind = Literal["greedy", "seeded", "grammar", "long prompt", "several answers", "session"]
KINDS: tuple[Kind, ...] = (
    "greedy",
    "greedy",
    "seeded",
    "seeded",
    "grammar",
    "long prompt",
    "several answers",
    "session",
)
"""In the shares in which they are asked."""
RESUMABLE: tuple[Kind, ...] = ("greedy", "seeded", "grammar", "long prompt")
"""Of these, another coordinator goes on with the stream when the first one dies."""
VOCABULARY = 199
LETTERS = "[a-h]{40}"
Tokens = tuple[int, ...]
Saw = Callable[[str, int, int], None]
"""Told of each update of a stream: its rid, its number of tokens, its attempts."""


@dataclass(frozen=True)
class Question:
    """One request, or the two turns of a session."""

    kind: Kind
    prompt: tuple[int, ...]
    sampling: Mapping[str, Any]


def questions_of(seed: int, count: int) -> tuple[Question, ...]:
    """Returns `count` questions, the same ones for the same seed."""
    chance = random.Random(seed)
    return tuple(_question(KINDS[i % len(KINDS)], chance) for i in range(count))


def _question(kind: Kind, chance: random.Random) -> Question:
    length = chance.randrange(600, 1500) if kind == "long prompt" else chance.randrange(8, 120)
    prompt = tuple(prompt_of(length, VOCABULARY, seed=chance.randrange(1 << 30)))
    sampling: dict[str, Any] = {"max_new_tokens": chance.randrange(40, 320), "ignore_eos": True}
    if kind in ("greedy", "long prompt"):
        sampling["temperature"] = 0.0
    else:
        sampling |= {"temperature": 1.0, "sampling_seed": chance.randrange(1 << 30)}
    if kind == "grammar":
        sampling |= {"regex": LETTERS, "max_new_tokens": 64, "ignore_eos": False}
    if kind == "several answers":
        sampling["n"] = 2
    return Question(kind, prompt, sampling)


async def ask(client: AsyncClient, question: Question, salt: str, saw: Saw) -> Tokens:
    """Returns the tokens of all answers, one behind the other. Raises ClientError."""
    if question.kind == "several answers":
        return await _ask_for_several(client, question, salt)
    if question.kind != "session":
        return (await _follow(client, question, question.prompt, saw, cache_salt=salt)).output_ids
    opened = ApiCall("POST", "/open_session", json.loads, {"capacity_of_str_len": 100_000})
    name = await client.call(opened)
    first = await _follow(client, question, question.prompt, saw, session_params={"id": name})
    turn = {"id": name, "rid": first.meta_info.id}
    second = await _follow(client, question, question.prompt[:8], saw, session_params=turn)
    return first.output_ids + second.output_ids


async def _follow(
    client: AsyncClient, question: Question, prompt: Tokens, saw: Saw, **params: Any
) -> Generated:
    answer = None
    async for answer in client.stream(prompt, **question.sampling, **params):
        meta = answer.meta_info
        saw(meta.id, len(answer.output_ids), meta.attempts)
    assert answer is not None, "a stream without an event"
    return answer


async def _ask_for_several(client: AsyncClient, question: Question, salt: str) -> Tokens:
    """`stream` gives one answer; the API has several in one body."""
    sampling = dict(question.sampling)
    body = {"input_ids": question.prompt, "sampling_params": sampling, "cache_salt": salt}
    answers = await client.call(ApiCall("POST", "/generate", json.loads, body, is_repeatable=True))
    return tuple(token for answer in answers for token in answer["output_ids"])
