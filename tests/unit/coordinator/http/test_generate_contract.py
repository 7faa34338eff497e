"""What /generate promises, field by field, before a decode node that answers what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from protocol.channel import Channel
from protocol.messages import Cancel, Generate
from tests.support.coordinator.http_servers import Connection, Reply, Served, run_served, served
from tests.support.coordinator.services import received

ENDLESS = {"max_new_tokens": 100, "ignore_eos": True}


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


async def ask(here: Served, **body: Any) -> tuple[Connection, Generate]:
    """Sends a body; its connection, and the request as it reached the node."""
    client = await here.connect()
    client.send("POST", "/generate", {"input_ids": [7]} | body)
    return client, await here.generate()


async def answered(here: Served, tokens: list[int], finish: str, **body: Any) -> Reply:
    """The reply to a body after the node has sent all tokens at once."""
    client, generate = await ask(here, **body)
    here.tokens(generate, 0, tokens, finish)
    return await client.reply("POST")


async def ids_of(here: Served, text: str) -> list[int]:
    return await here.service.tokenizer.encode(text, False)


@pytest.mark.parametrize("interval", [1, 4, 16])
def test_the_first_token_is_sent_at_once_whatever_the_interval(
    decode: Channel, interval: int
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            params = ENDLESS | {"stream_interval": interval}
            client, generate = await ask(here, sampling_params=params, stream=True)
            here.tokens(generate, 0, [100])
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head
            size = int(await client.reader.readline(), 16)  # waits for the first event alone
            first = await client.reader.readexactly(size + 2)
            assert json.loads(first.removeprefix(b"data: "))["output_ids"] == [100]
            counts = []
            for start in range(1, 20):
                finish = "length" if start == 19 else ""
                here.tokens(generate, start, [100], finish)
                if finish or start % interval == 0:
                    size = int(await client.reader.readline(), 16)
                    event = await client.reader.readexactly(size + 2)
                    counts.append(len(json.loads(event.removeprefix(b"data: "))["output_ids"]))
            assert counts == [*range(1 + interval, 20, interval), 20]

    run_served(test)


def test_ignore_eos_ignores_stop_token_ids_too(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            eos = list(here.service.tokenizer.eos_token_ids)
            _, ends = await ask(here, sampling_params={"stop_token_ids": [5]})
            assert ends.end_token_ids == [5, *eos]
            ignoring = {"stop_token_ids": [5], "ignore_eos": True, "min_new_tokens": 2}
            _, endless = await ask(here, sampling_params=ignoring)
            assert endless.end_token_ids == [] and endless.sampling.end_token_ids == ()

    run_served(test)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"temperature": 1e-7}, {"temperature": 0.0}),
        ({"temperature": 1e-6}, {"temperature": 1e-6}),
        ({"sampling_seed": -1}, {"seed": -1}),
        ({"sampling_seed": (1 << 63) - 1}, {"seed": (1 << 63) - 1}),
        ({"repetition_penalty": 1e-300}, {"repetition_penalty": 1e-30}),
        ({"top_k": None, "top_p": None, "min_p": None}, {"top_k": 0, "top_p": 1.0, "min_p": 0.0}),
        ({"custom_params": {"a": [1]}, "spaces_between_special_tokens": False}, {}),
    ],
)
def test_what_reaches_the_node(
    decode: Channel, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            _, generate = await ask(here, sampling_params=given)
            assert {name: getattr(generate.sampling, name) for name in sent} == sent

    run_served(test)


def test_the_seeds_of_several_answers_wrap_around(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            params = {"n": 2, "sampling_seed": (1 << 63) - 1}
            client.send("POST", "/generate", {"input_ids": [7], "sampling_params": params})
            sent = await received(decode, 2)
            seeds = [message.sampling.seed for message in sent if isinstance(message, Generate)]
            assert seeds == [(1 << 63) - 1, -(1 << 63)]

    run_served(test)


@pytest.mark.parametrize("stream", [False, True])
def test_prefill_only_has_no_text_and_no_tokens(decode: Channel, stream: bool) -> None:
    async def test() -> None:
        async with served(decode) as here:
            params = {"max_new_tokens": 0}
            reply = await answered(here, [], "length", sampling_params=params, stream=stream)
            answer = json.loads(reply.events[0]) if stream else reply.json
            assert (answer["text"], answer["output_ids"], answer["error"]) == ("", [], None)
            assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 0}
            assert not stream or reply.events[1:] == ["[DONE]"]

    run_served(test)


def test_meta_info_has_every_field_of_the_contract(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            body = {"rid": "mine", "return_prompt_token_ids": True, "sampling_params": ENDLESS}
            answer = (await answered(here, [100], "length", **body)).json
            assert answer.keys() == {"text", "output_ids", "meta_info", "error", "prompt_token_ids"}
            assert answer["prompt_token_ids"] == [7] and answer["error"] is None
            meta = answer["meta_info"]
            wanted = "id finish_reason prompt_tokens completion_tokens cached_tokens e2e_latency "
            wanted += "cached_tokens_details weight_version num_retractions prefill_node "
            wanted += "decode_node route_reason attempts ttft transferred_pages"
            assert set(wanted.split()) <= meta.keys()
            assert meta["id"] == "mine" and meta["num_retractions"] == 0

    run_served(test)


@pytest.mark.parametrize("no_stop_trim", [False, True])
@pytest.mark.parametrize("kind", ["stop", "stop_regex"])
def test_what_stops_an_answer_is_trimmed_unless_told_otherwise(
    decode: Channel, kind: str, no_stop_trim: bool
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            stop = "fox" if kind == "stop" else "f[nop]x"
            params = ENDLESS | {kind: stop, "no_stop_trim": no_stop_trim}
            client, generate = await ask(here, sampling_params=params, stream=True)
            tokens = await ids_of(here, "the fox and the hen")
            for i, token in enumerate(tokens):
                if here.service.core.num_unfinished:
                    here.tokens(generate, i, [token])
                    await asyncio.sleep(0)
            reply = await client.reply("POST")
            answers = [json.loads(event) for event in reply.events[:-1]]
            before = "the fox and the hen".partition("fox")[0]
            assert answers[-1]["text"] == before + "fox" * no_stop_trim
            reason = answers[-1]["meta_info"]["finish_reason"]
            assert reason == {"type": "stop", "matched": stop}
            texts = [answer["text"] for answer in answers]
            assert all(answers[-1]["text"].startswith(text) for text in texts), "cumulative"
            assert await received(decode) == [Cancel(generate.attempt)]

    run_served(test)


def test_text_beside_ids_decides_only_whether_it_is_a_batch(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            body = {"text": ["ignored"], "input_ids": [[5, 6]], "sampling_params": ENDLESS}
            (answer,) = (await answered(here, [100], "length", **body)).json
            assert answer["meta_info"]["prompt_tokens"] == 2

    run_served(test)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input_ids": [1 << 40]}, "input_ids", "the vocabulary has ids 0 to"),
        ({"input_ids": []}, "input_ids", "empty"),
        *(
            ({"sampling_params": {key: value}}, f"sampling_params.{key}", f"{key} has the id 4096")
            for key, value in (("stop_token_ids", [4096]), ("logit_bias", {"4096": 1}))
        ),
        (
            {"sampling_params": {"min_new_tokens": 9, "max_new_tokens": 2}},
            "sampling_params.min_new_tokens",
            "at most 2",
        ),
        (
            {"sampling_params": {"max_new_tokens": 1 << 30}},
            "sampling_params.max_new_tokens",
            f"max_new_tokens {1 << 30}",
        ),
    ],
)
def test_what_the_model_cannot_do_names_the_key(
    decode: Channel, body: dict[str, Any], param: str, words: str
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            reply = await here.ask("POST", "/generate", {"input_ids": [7]} | body)
            assert reply.status == 400 and reply.error["param"] == param
            assert words in reply.error["message"]

    run_served(test)


def test_a_rid_that_is_running_is_refused_by_name(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            await ask(here, rid="mine", sampling_params=ENDLESS)
            twice = await here.ask("POST", "/generate", {"text": "a", "request_id": "mine"})
            assert twice.status == 400 and twice.error["param"] == "rid"
            assert "'mine'" in twice.error["message"]

    run_served(test)


def test_put_is_as_good_as_post(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            client.send("PUT", "/generate", {"input_ids": [7], "sampling_params": None})
            here.tokens(await here.generate(), 0, [100], "length")
            assert (await client.reply("PUT")).status == 200

    run_served(test)
