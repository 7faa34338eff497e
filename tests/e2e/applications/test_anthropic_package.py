"""Anthropic's own Python package, unchanged, against clusters: with the embedded model, and with
models that write what a script says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic

from protocol.channel import Channel
from tests.support.coordinator.http_servers import run_served, served
from tests.support.coordinator.written_calls import WRITERS, Call
from tests.support.models.scripted import marker, scripted_model
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

MODEL = "tiny"
GREEDY = {"extra_body": {"temperature": 0}}
"""Newer versions of the package know no temperature."""
QUESTION = {
    "role": "user",
    "content": "My sister lives in Oslen. My dog is called Bramo. Where does my sister live?",
}
HEADER = "x-anthropic-billing-header: cc_version=2.1.175.{0}; cc_entrypoint=cli; cch={0};"
RULES = "Answer in one short sentence, and name the place only. " * 8
CALLS: list[Call] = [("get_weather", {"city": "Oslo", "days": 2}), ("now", {})]
TEXT = "It rains in Oslo: 日本 👍."
THOUGHT = "Rain is likely."
BEFORE = f"<think>\n{THOUGHT}\n</think>\n\n"
TOOLS: list[Any] = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
    {"name": "now", "input_schema": {"type": "object", "properties": {}}},
]


@pytest.fixture
def client(tiny_cluster: Cluster) -> Iterator[Anthropic]:
    with Anthropic(base_url=tiny_cluster.local.url, api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anthropic]:
    """Of a model that thinks and calls (script 0), and thinks and answers (script 1)."""
    scripts = [BEFORE + WRITERS["hermes"][1](CALLS), BEFORE + TEXT]
    model = scripted_model(tmp_path_factory.mktemp("scripted"), "qwen3", scripts)
    cluster = start_cluster(
        tmp_path_factory, model, 1, 1, dtype="float32", max_total_tokens="16384"
    )
    with Anthropic(base_url=cluster.local.url, api_key="x", max_retries=0) as client:
        yield client
    cluster.local.stop()


def body(**given: Any) -> dict[str, Any]:
    common = {"model": MODEL, "messages": [QUESTION], "max_tokens": 40}
    return common | GREEDY | given


def tool_body(script: int, *later: Any, **given: Any) -> dict[str, Any]:
    question = {"role": "user", "content": f"{'Weather? ' * 40}{marker(script)}"}
    common = {"model": "default", "tools": TOOLS, "max_tokens": 300}
    return common | GREEDY | {"messages": [question, *later]} | given


def calls_of(message: anthropic.types.Message) -> list[Call]:
    blocks = [block for block in message.content if block.type == "tool_use"]
    return [(block.name, block.input) for block in blocks]


def test_a_message_is_answered(client: Anthropic) -> None:
    message = client.messages.create(**body())
    (block,) = message.content
    assert block.type == "text" and "Oslen" in block.text
    assert (message.role, message.model, message.stop_reason) == ("assistant", MODEL, "end_turn")


def test_a_stream_is_the_same_message(client: Anthropic) -> None:
    with client.messages.stream(**body()) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    whole = client.messages.create(**body())
    (block,) = whole.content
    assert block.type == "text" and text == block.text
    assert streamed.content[0].text == text  # type: ignore[union-attr]
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_the_asynchronous_client_is_served_too(tiny_cluster: Cluster) -> None:
    async def texts() -> list[str]:
        async with AsyncAnthropic(base_url=tiny_cluster.local.url, api_key="x") as client:
            message = await client.messages.create(**body())
            async with client.messages.stream(**body()) as stream:
                return [await stream.get_final_text(), *(b.text for b in message.content)]  # type: ignore[union-attr]

    streamed, whole = asyncio.run(texts())
    assert streamed == whole and "Oslen" in whole


def test_a_count_is_what_the_message_uses(client: Anthropic) -> None:
    given = {"system": [{"type": "text", "text": RULES}], "messages": [QUESTION]}
    count = client.messages.count_tokens(model=MODEL, **given).input_tokens  # type: ignore[arg-type]

    def cached() -> int:
        usage = client.messages.create(**body(**given, max_tokens=1)).usage
        assert usage.cache_read_input_tokens is not None
        assert usage.input_tokens + usage.cache_read_input_tokens == count
        return usage.cache_read_input_tokens

    assert wait_until(lambda: cached() > 0, "a hit")


def test_a_header_that_is_new_each_time_does_not_ruin_the_cache(
    client: Anthropic, tiny_cluster: Cluster
) -> None:
    tiny_cluster.flush()

    def cached(request: int) -> int:
        header = {"type": "text", "text": HEADER.format(f"{request:05x}")}
        rules = {"type": "text", "text": RULES, "cache_control": {"type": "ephemeral"}}
        usage = client.messages.create(**body(system=[header, rules], max_tokens=1)).usage
        return usage.cache_read_input_tokens or 0

    requests = iter(range(1000))
    assert cached(next(requests)) == 0
    assert wait_until(lambda: cached(next(requests)) > 100, "a hit beyond the header")


def test_a_stop_sequence_is_told(client: Anthropic) -> None:
    message = client.messages.create(**body(stop_sequences=["slen"]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "slen")
    assert client.messages.create(**body(max_tokens=1)).stop_reason == "max_tokens"


def test_errors_have_the_classes_of_the_package(client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**body(extra_body={"temperature": -1}))
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(**body(messages=[QUESTION | {"content": "word " * 50_000}]))
    with pytest.raises(anthropic.NotFoundError, match="claude-other"):
        client.messages.create(**body(model="claude-other"))


def test_keys_are_taken_as_the_package_sends_them() -> None:
    def ask(port: int, **key: str) -> int:
        with Anthropic(base_url=f"http://127.0.0.1:{port}", max_retries=0, **key) as client:  # type: ignore[arg-type]
            return client.messages.count_tokens(model=MODEL, messages=[QUESTION]).input_tokens  # type: ignore[list-item]

    async def test() -> None:
        decode = Channel("127.0.0.1")
        async with served(decode, api_key=("secret",)) as here:
            for key in ("api_key", "auth_token"):
                assert await asyncio.to_thread(ask, here.port, **{key: "secret"})
                with pytest.raises(anthropic.AuthenticationError):
                    await asyncio.to_thread(ask, here.port, **{key: "wrong"})
        decode.close()

    run_served(test)


def test_thoughts_and_calls_are_blocks(scripted: Anthropic) -> None:
    message = scripted.messages.create(**tool_body(0))
    thought = message.content[0]
    assert thought.type == "thinking" and thought.thinking == THOUGHT and thought.signature
    assert [block.type for block in message.content] == ["thinking", "tool_use", "tool_use"]
    assert calls_of(message) == CALLS and message.stop_reason == "tool_use"


def test_streamed_blocks_come_in_order(scripted: Anthropic) -> None:
    with scripted.messages.stream(**tool_body(0)) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert calls_of(message) == CALLS and message.content[0].thinking == THOUGHT  # type: ignore[union-attr]
    begun = kinds.index("content_block_start")
    assert kinds[0] == "message_start" and begun == 1
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_a_loop_of_tools_ends_with_a_text(scripted: Anthropic) -> None:
    message = scripted.messages.create(**tool_body(0))
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": f"rain {marker(1)}"}
        for block in message.content
        if block.type == "tool_use"
    ]
    turn = {"role": "assistant", "content": [block.model_dump() for block in message.content]}
    later = (turn, {"role": "user", "content": results})
    answer = scripted.messages.create(**tool_body(0, *later))
    assert answer.content[-1].text == TEXT and answer.stop_reason == "end_turn"  # type: ignore[union-attr]
    given = {key: tool_body(0, *later)[key] for key in ("model", "tools", "messages")}
    usage = answer.usage
    counted = scripted.messages.count_tokens(**given).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_call_is_forced_where_the_model_would_write_text(
    scripted: Anthropic, choice: dict[str, Any]
) -> None:
    """Without thoughts, in which the model is free to lose its script for ever."""
    given = {"tool_choice": choice, "thinking": {"type": "disabled"}}
    message = scripted.messages.create(**tool_body(1, **given))
    called = calls_of(message)
    assert called, message
    assert choice["type"] == "any" or called[0][0] == "get_weather"


def test_no_thoughts_come_where_none_are_wanted(scripted: Anthropic) -> None:
    message = scripted.messages.create(**tool_body(1, thinking={"type": "disabled"}))
    assert all(block.type == "text" for block in message.content)


def test_an_explanation_tells_where_a_chat_leaves_the_cache(
    client: Anthropic, tiny_cluster: Cluster
) -> None:
    tiny_cluster.flush()
    chat = {"system": RULES, "messages": [QUESTION]}
    client.messages.create(**body(**chat))

    def path(**given: Any) -> dict[str, Any]:
        explained = tiny_cluster.http.post("/admin/route/explain", json=chat | given)
        return dict(explained.raise_for_status().json()["cached_path"])

    assert wait_until(lambda: path()["owners"], "the pages are known")
    assert path()["leaves_at_token"] is None
    before = tiny_cluster.stats()["early_divergences"]
    other = {"system": RULES[:120] + " Today is Monday. " + RULES}
    left = path(**other)
    assert 0 < left["leaves_at_token"] == left["tokens"] < path()["tokens"]
    assert left["words_before"] is left["words_behind"] is None, "words are not to be shown"
    client.messages.create(**body(**(chat | other)))
    assert tiny_cluster.stats()["early_divergences"] == before + 1


def test_raw_events_are_those_of_the_documentation(tiny_cluster: Cluster) -> None:
    """Without the package, which leaves out pings."""
    with tiny_cluster.http.stream(
        "POST", "/v1/messages", json=body(stream=True) | {"temperature": 0}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = _events(response)
    names = [name for name, _ in events]
    assert names[:4] == ["message_start", "content_block_start", "ping", "content_block_delta"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(names[3:-3]) == {"content_block_delta"}
    assert all(json.loads(data)["type"] == name for name, data in events)


def _events(response: httpx.Response) -> list[tuple[str, str]]:
    events = []
    for event in "".join(response.iter_text()).strip("\n").split("\n\n"):
        name, data = event.split("\n")
        events.append((name.removeprefix("event: "), data.removeprefix("data: ")))
    return events
