"""Responses with OpenAI's own Python package, unchanged, against clusters: with the embedded model,
and with models that write what a script says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel

from tests.support.coordinator.written_calls import WRITERS, Call
from tests.support.models.scripted import marker, scripted_model
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

MODEL = "tiny"
QUESTION = "My sister lives in Oslen. My dog is called Bramo. Where does my sister live?"
CALLS: list[Call] = [("get_weather", {"city": "Oslo"}), ("patch", {"input": '*** "a"\n+ b\n'})]
TEXT = "It rains in Oslo: 日本 👍."
THOUGHT = "Rain is likely."
BEFORE = f"<think>\n{THOUGHT}\n</think>\n\n"
TOOLS: list[Any] = [
    {
        "type": "function",
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    {"type": "custom", "name": "patch", "description": "Takes a patch of any form."},
    {"type": "web_search"},
]


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(tiny_cluster: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tiny_cluster.local.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """Of a model that thinks and calls (script 0), and thinks and answers (script 1)."""
    scripts = [BEFORE + WRITERS["hermes"][1](CALLS), BEFORE + TEXT]
    model = scripted_model(tmp_path_factory.mktemp("scripted"), "qwen3", scripts)
    cluster = start_cluster(
        tmp_path_factory, model, 1, 1, dtype="float32", max_total_tokens="16384"
    )
    with OpenAI(base_url=f"{cluster.local.url}/v1", api_key="x", max_retries=0) as client:
        yield client
    cluster.local.stop()


def ask(client: OpenAI, **given: Any) -> Any:
    body = {"model": MODEL, "input": QUESTION, "temperature": 0, "store": False} | given
    return client.responses.create(**body)


def agent_body(script: int, *later: Any, **given: Any) -> dict[str, Any]:
    """As Codex sends it."""
    question = {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": f"{'Weather? ' * 40}{marker(script)}"}],
    }
    return {
        "model": "default",
        "instructions": "You are an agent.",
        "input": [question, *later],
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "thread",
        "max_output_tokens": 300,
        "store": False,
        "temperature": 0,
    } | given


def kinds(response: Response) -> list[str]:
    return [item.type for item in response.output]


def test_a_response_is_answered(client: OpenAI) -> None:
    response = ask(client)
    assert "Oslen" in response.output_text
    assert (response.status, response.model, response.store) == ("completed", MODEL, False)
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_a_repeated_prompt_tells_what_was_cached(client: OpenAI) -> None:
    def cached() -> int:
        return int(ask(client, max_output_tokens=1).usage.input_tokens_details.cached_tokens)

    assert wait_until(lambda: cached() > 0, "a hit")


def test_a_stream_is_the_same_response(client: OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    whole = ask(client)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == streamed.output_text == whole.output_text
    assert streamed.usage.output_tokens == whole.usage.output_tokens  # type: ignore[union-attr]


def test_the_asynchronous_client_is_served_too(tiny_cluster: Cluster) -> None:
    async def text() -> str:
        async with AsyncOpenAI(base_url=f"{tiny_cluster.local.url}/v1", api_key="x") as client:
            response = await client.responses.create(model=MODEL, input=QUESTION, temperature=0)
            return response.output_text

    assert "Oslen" in asyncio.run(text())


def test_a_conversation_is_sent_as_a_whole(client: OpenAI) -> None:
    first = ask(client)
    question = {"role": "user", "content": QUESTION}
    again = {"role": "user", "content": "And my dog's name?"}
    second = ask(client, input=[question, *first.output, again])
    assert second.status == "completed"
    assert second.usage.input_tokens > first.usage.input_tokens


def test_a_format_is_parsed(client: OpenAI) -> None:
    response = client.responses.parse(
        model=MODEL, input="Alice is 30.", text_format=Person, temperature=0, max_output_tokens=200
    )
    assert response.status == "incomplete" or isinstance(response.output_parsed, Person)
    assert response.output_text.startswith("{")


def test_errors_have_the_classes_of_the_package(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        ask(client, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="input_image"):
        image = {"type": "input_image", "image_url": "data:"}
        ask(client, input=[{"role": "user", "content": [image]}])
    with pytest.raises(openai.NotFoundError, match="gpt-other"):
        ask(client, model="gpt-other")
    with pytest.raises(openai.APIStatusError) as unsupported:
        client.responses.retrieve("resp_1")
    assert unsupported.value.status_code == 501


def test_thoughts_and_calls_are_items(scripted: OpenAI) -> None:
    response = scripted.responses.create(**agent_body(0))
    assert kinds(response) == ["reasoning", "function_call", "custom_tool_call"]
    thought, call, patch = response.output
    assert thought.content[0].text == THOUGHT  # type: ignore[union-attr,index]
    assert json.loads(call.arguments) == CALLS[0][1]  # type: ignore[union-attr]
    assert patch.input == CALLS[1][1]["input"]  # type: ignore[union-attr]
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_a_stream_tells_every_item_once(scripted: OpenAI) -> None:
    events: list[Any] = list(scripted.responses.create(**agent_body(0, stream=True)))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [e.type for e in events[:3]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert events[-1].type == "response.completed"
    done = [event.item for event in events if event.type == "response.output_item.done"]
    added = [event.item for event in events if event.type == "response.output_item.added"]
    final = events[-1].response.output
    assert done == final and [item.id for item in added] == [item.id for item in final]
    assert [item.type for item in final] == ["reasoning", "function_call", "custom_tool_call"]
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(pieces)) == CALLS[0][1]


def test_a_loop_of_tools_ends_with_a_text(scripted: OpenAI) -> None:
    response = scripted.responses.create(**agent_body(0))
    outputs = [
        {
            "type": f"{item.type}_output",
            "call_id": item.call_id,
            "output": f"rain {marker(1)}",
        }
        for item in response.output
        if item.type in ("function_call", "custom_tool_call")
    ]
    answer = scripted.responses.create(**agent_body(0, *response.output, *outputs))
    assert answer.output_text == TEXT and kinds(answer) == ["reasoning", "message"]


@pytest.mark.parametrize(
    ("choice", "kind"),
    [
        ({"type": "function", "name": "get_weather"}, "function_call"),
        ({"type": "custom", "name": "patch"}, "custom_tool_call"),
    ],
)
def test_a_call_is_forced_where_the_model_would_write_text(
    scripted: OpenAI, choice: dict[str, Any], kind: str
) -> None:
    """Without thoughts, in which the model is free to lose its script for ever."""
    given = {"tool_choice": choice, "reasoning": {"effort": "none"}}
    response = scripted.responses.create(**agent_body(1, **given))
    assert kinds(response)[-1] == kind, response
