"""Chats and texts in OpenAI's dialect, over HTTP, before a decode node that is only a channel."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.http.wire.direct_writer import DirectWriter
from protocol.channel import Channel
from protocol.hashing import tokens_from_bytes
from protocol.messages import Cancel, Failed, Generate, TokenOut, TokensOut
from protocol.sampling import TokenLogprobs
from tests.support.coordinator.http_servers import Reply, run_served, served
from tests.support.coordinator.services import D0, received

CHAT = "/v1/chat/completions"
TEXTS = "/v1/completions"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "ignore_eos": True}
BODIES = {CHAT: HELLO, TEXTS: {"prompt": "Hello", "ignore_eos": True}}


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def events_of(reply: Reply) -> list[dict[str, Any]]:
    assert reply.events[-1] == "[DONE]"
    return [json.loads(event) for event in reply.events[:-1]]


async def read_until(reader: asyncio.StreamReader, words: bytes) -> None:
    await asyncio.wait_for(reader.readuntil(words), 20)


@pytest.mark.parametrize("path", [CHAT, TEXTS])
def test_tokens_come_as_they_are_made(decode: Channel, path: str) -> None:
    async def test() -> None:
        async with served(decode) as here:
            connection = await here.connect()
            connection.send("POST", path, BODIES[path] | {"stream": True})
            generate = await here.generate()
            for i in range(3):
                here.tokens(generate, i, [100 + i], "length" if i == 2 else "")
                await read_until(connection.reader, b"\n\n")
            await read_until(connection.reader, b"[DONE]\n\n")

    run_served(test)


def test_a_stream_of_a_chat_has_a_role_its_text_and_one_end(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            asked = HELLO | {"stream": True, "stream_options": {"include_usage": True}}
            reply = asyncio.create_task(here.ask("POST", CHAT, asked))
            generate = await here.generate()
            here.tokens(generate, 0, [100], "")
            here.tokens(generate, 1, [1], "stop")
            *events, usage = events_of(await reply)
            deltas = [event["choices"][0]["delta"] for event in events]
            text = here.service.tokenizer.decode([100], skip_special_tokens=True)
            assert deltas[0] == {"role": "assistant", "content": ""} and deltas[-1] == {}
            assert "".join(d["content"] for d in deltas[:-1]) == text
            last = events[-1]["choices"][0]
            assert (last["finish_reason"], last["matched_stop"]) == ("stop", 1)
            assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 2
            for event in events:
                assert event["usage"] is None and event["object"] == "chat.completion.chunk"
                assert event["id"] == usage["id"] and event["id"].startswith("chatcmpl-")

    run_served(test)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXTS])
def test_a_client_that_leaves_cancels_all_its_answers(
    decode: Channel, path: str, stream: bool
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            connection = await here.connect()
            connection.send("POST", path, BODIES[path] | {"stream": stream, "n": 2})
            sent = await received(decode, 2)
            connection.writer.transport.abort()  # type: ignore[attr-defined]
            cancelled = await received(decode, 2)
            assert cancelled == [Cancel(one.attempt) for one in sent if isinstance(one, Generate)]

    run_served(test)


@pytest.mark.parametrize("path", [CHAT, TEXTS])
def test_a_failure_is_a_status_or_the_end_of_a_stream(decode: Channel, path: str) -> None:
    async def test() -> None:
        async with served(decode) as here:
            for stream in (False, True):
                body = BODIES[path] | {"stream": stream}
                reply = asyncio.create_task(here.ask("POST", path, body))
                generate = await here.generate()
                here.tokens(generate, 0, [100])
                failed = Failed(generate.attempt, "it is too long", "request", D0)
                here.service.handle(failed)
                told = await reply
                error = json.loads(told.events[-2])["error"] if stream else told.error
                assert told.status == (200 if stream else 400)
                assert error["type"] == "invalid_request_error" and "too long" in error["message"]
                assert not stream or told.events[-1] == "[DONE]"

    run_served(test)


def test_an_answer_can_be_aborted_by_the_id_that_its_client_sees(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            connection = await here.connect()
            connection.send("POST", CHAT, HELLO | {"stream": True})
            generate = await here.generate()
            here.tokens(generate, 0, [100])
            await read_until(connection.reader, b'"id":"')
            name = (await connection.reader.readuntil(b'"'))[:-1].decode()
            await here.ask("POST", "/abort_request", {"rid": name})
            await read_until(connection.reader, b'"finish_reason":"abort"')
            await read_until(connection.reader, b"[DONE]\n\n")
            assert await received(decode, 1) == [Cancel(generate.attempt)]

    run_served(test)


def test_parameters_travel_to_the_node(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            given = {
                "max_completion_tokens": 9,
                "min_tokens": 2,
                "temperature": 0.5,
                "top_p": 0.75,
                "top_k": 5,
                "min_p": 0.125,
                "seed": 11,
                "frequency_penalty": 0.5,
                "presence_penalty": -0.25,
                "repetition_penalty": 1.25,
                "stop_token_ids": [5],
                "logit_bias": {"3": -4},
                "logprobs": True,
                "top_logprobs": 2,
                "ignore_eos": False,
                "cache_salt": "tenant",
                "priority": 3,
            }
            reply = asyncio.create_task(here.ask("POST", CHAT, HELLO | given))
            generate = await here.generate()
            sampling = generate.sampling
            assert generate.max_new_tokens == 9
            assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.75, 5)
            assert (sampling.min_p, sampling.seed, sampling.min_new_tokens) == (0.125, 11, 2)
            assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.25)
            assert sampling.repetition_penalty == 1.25 and sampling.num_top_logprobs == 2
            assert sampling.logit_bias == ((3, -4.0),) and 5 in sampling.end_token_ids
            assert "tenant" in generate.namespace.salt
            top = [(100, -0.25), (101, -1.5)]
            out = TokenOut(
                generate.attempt, 0, [100], "length", logprobs=[TokenLogprobs(-0.25, top)]
            )
            here.service.handle(TokensOut([out], D0))
            (choice,) = (await reply).json["choices"]
            (entry,) = choice["logprobs"]["content"]
            assert entry["logprob"] == -0.25 and bytes(entry["bytes"]).decode() == entry["token"]
            assert [one["logprob"] for one in entry["top_logprobs"]] == [-0.25, -1.5]

    run_served(test)


def test_token_ids_come_where_they_are_wanted(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            for stream in (False, True):
                body = HELLO | {"return_token_ids": True, "stream": stream}
                reply = asyncio.create_task(here.ask("POST", CHAT, body))
                generate = await here.generate()
                here.tokens(generate, 0, [100])
                here.tokens(generate, 1, [101, 102], "length")
                told = await reply
                events = events_of(told) if stream else [told.json]
                ids = [i for e in events for i in e["choices"][0].get("token_ids", [])]
                assert ids == [100, 101, 102]
                assert events[0]["prompt_token_ids"] == tokens_from_bytes(generate.tokens)

    run_served(test)


def test_a_full_or_empty_cluster_says_when_to_come_back(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, max_queued_requests=1) as here:
            connection = await here.connect()
            connection.send("POST", CHAT, HELLO)
            await here.generate()
            busy = await here.ask("POST", CHAT, HELLO)
            assert busy.status == 429 and busy.headers["retry-after"]
            assert busy.error["code"] == "rate_limit_exceeded"
        async with served(decode, with_node=False) as here:
            empty = await here.ask("POST", CHAT, HELLO)
            assert empty.status == 503 and empty.headers["retry-after"]
            assert empty.error["type"] == "server_error"

    run_served(test)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", CHAT, b"{", 400, None),
        ("POST", TEXTS, {}, 400, None),
        ("POST", CHAT, HELLO | {"model": "gpt-x"}, 404, "model_not_found"),
        ("GET", "/v1/models/gpt-x", None, 404, "model_not_found"),
        ("GET", "/v1/nothing", None, 404, "not_found"),
        ("GET", CHAT, None, 405, "method_not_allowed"),
        ("POST", "/v1/models", {}, 405, "method_not_allowed"),
        ("POST", TEXTS, b"x" * 20_000, 413, "request_too_large"),
        ("POST", "/v1/embeddings", {}, 501, "unsupported"),
        ("POST", CHAT, HELLO | {"max_tokens": 1 << 20}, 400, "context_length_exceeded"),
        ("POST", CHAT, HELLO | {"messages": []}, 400, None),
    ],
)
def test_errors_have_one_shape_on_every_path_of_v1(
    decode: Channel, method: str, path: str, body: object, status: int, code: str | None
) -> None:
    async def test() -> None:
        async with served(decode, max_body_bytes=10_000) as here:
            reply = await here.ask(method, path, body)
            assert reply.status == status and reply.headers["x-request-id"]
            assert reply.error.keys() == {"message", "type", "param", "code"}
            assert reply.error["type"] == "invalid_request_error" and reply.error["message"]
            assert reply.error["code"] == code
            assert ("allow" in reply.headers) == (status == 405)

    run_served(test)


BAD_SCHEMA = {"type": "strange"}
BAD_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"$ref": "http://x/y"}}}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"regex": "("}, "regex"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": BAD_SCHEMA}, "guided_json"),
        ({"guided_grammar": "root ::="}, "guided_grammar"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": BAD_SCHEMA}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "structural_tag", "format": 5}}, "response_format"),
        ({"structured_outputs": {"json": BAD_SCHEMA}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": {"a": 1}}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": True}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"regexp": "a"}}, "structured_outputs"),
        ({"stop_token_ids": [1 << 20]}, "stop_token_ids"),
        ({"logit_bias": {"1048576": 1}}, "logit_bias"),
        ({"tools": [BAD_TOOL], "tool_choice": "required"}, "tools"),
        ({"include_stop_str_in_output": 5}, "include_stop_str_in_output"),
        ({"min_tokens": -1}, "min_tokens"),
    ],
)
def test_errors_name_the_key_that_the_client_gave(
    decode: Channel, given: dict[str, Any], param: str
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            reply = await here.ask("POST", CHAT, HELLO | given)
            assert reply.status == 400 and reply.error["param"] == param
            assert reply.error["message"].startswith(param)

    run_served(test)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, HELLO | {"n": 64}, "n"),
        (TEXTS, {"prompt": ["a"] * 4, "n": 32}, "n"),
        ("/generate", {"text": "a", "sampling_params": {"n": 64}}, "sampling_params.n"),
    ],
)
def test_more_answers_than_the_cluster_takes_at_once_are_refused(
    decode: Channel, path: str, body: dict[str, Any], param: str
) -> None:
    async def test() -> None:
        async with served(decode, max_queued_requests=63) as here:
            reply = await here.ask("POST", path, body)
            assert reply.status == 400 and reply.error["param"] == param
            assert "lower n" in reply.error["message"]

    run_served(test)


@pytest.mark.parametrize("name", ["tiny", "default", "", None])
def test_a_model_goes_by_few_names(decode: Channel, name: str | None) -> None:
    async def test() -> None:
        async with served(decode) as here:
            reply = asyncio.create_task(here.ask("POST", CHAT, HELLO | {"model": name}))
            here.tokens(await here.generate(), 0, [100], "length")
            assert (await reply).json["model"] == "tiny"
            lists = [(await here.ask("GET", path)).json for path in ("/v1/models", "/v1/models/")]
            assert [model["id"] for model in lists[0]["data"]] == ["tiny"] and lists[0] == lists[1]

    run_served(test)


def test_a_model_without_a_template_says_what_to_do(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            here.service.tokenizer.chat_template = None
            reply = await here.ask("POST", CHAT, HELLO)
            assert reply.status == 400 and "--chat-template" in reply.error["message"]

    run_served(test)


def test_events_of_several_answers_have_their_index(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            for path in (CHAT, TEXTS):
                body = BODIES[path] | {"n": 2, "stream": True}
                reply = asyncio.create_task(here.ask("POST", path, body))
                both = [one for one in await received(decode, 2) if isinstance(one, Generate)]
                for token, generate in zip((100, 101), both, strict=True):
                    here.tokens(generate, 0, [token], "length")
                ends = [e["choices"][0] for e in events_of(await reply)]
                ended = sorted(c["index"] for c in ends if c["finish_reason"] == "length")
                assert ended == [0, 1]

    run_served(test)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_a_timeout(decode: Channel, stream: bool) -> None:
    async def test() -> None:
        async with served(decode, request_timeout_s=0.2) as here:
            told = await here.ask("POST", CHAT, HELLO | {"stream": stream})
            error = json.loads(told.events[-2])["error"] if stream else told.error
            assert told.status == (200 if stream else 504)
            assert (error["type"], error["code"]) == ("server_error", "timeout")

    run_served(test)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("path", [CHAT, TEXTS])
def test_a_client_that_reads_now_and_then_gets_everything_once(
    decode: Channel, monkeypatch: pytest.MonkeyPatch, path: str, seed: int
) -> None:
    """Whether an event is written by the call that brings its tokens or by the handler."""
    chance = random.Random(seed)
    monkeypatch.setattr(DirectWriter, "is_open", property(lambda _: chance.random() < 0.5))

    async def test() -> None:
        async with served(decode) as here:
            body = BODIES[path] | {"stream": True, "return_token_ids": True}
            reply = asyncio.create_task(here.ask("POST", path, body))
            generate = await here.generate()
            for i in range(20):
                here.tokens(generate, i, [300 + i], "length" if i == 19 else "")
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
            choices = [event["choices"][0] for event in events_of(await reply)]
            assert [i for c in choices for i in c.get("token_ids", [])] == list(range(300, 320))
            text = "".join(
                c["delta"].get("content", "") if path == CHAT else c["text"] for c in choices
            )
            decoded = here.service.tokenizer.decode(list(range(300, 320)), skip_special_tokens=True)
            assert text == decoded and choices[-1]["finish_reason"] == "length"

    run_served(test)
