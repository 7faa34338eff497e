"""The /generate endpoint as a server calls it, before a decode node that is only a channel."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.http.native.generate import GenerateEndpoint
from coordinator.service import Service
from protocol.channel import Channel
from protocol.ids import Node
from protocol.messages import Cancel, Generate, TokenOut, TokensOut
from protocol.sampling import Sampling, TokenLogprobs
from tests.support.coordinator.nodes import heartbeat
from tests.support.coordinator.services import D0, DEADLINE_S, received, run, running_service

BODY = {"input_ids": [7], "sampling_params": {"max_new_tokens": 2, "ignore_eos": True}}


class Exchange:
    """One HTTP request: what the client sends, and what it gets."""

    def __init__(
        self, service: Service, parts: list[bytes], method: str = "POST", is_whole: bool = True
    ) -> None:
        self.sent: list[dict[str, Any]] = []
        self._has_body = asyncio.Event()
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for i, part in enumerate(parts):
            more = i < len(parts) - 1 or not is_whole
            self._incoming.put_nowait({"type": "http.request", "body": part, "more_body": more})
        scope = {"type": "http", "path": "/generate", "method": method, "headers": []}
        endpoint = GenerateEndpoint(_elsewhere, service)
        self.handler = asyncio.create_task(endpoint(scope, self._incoming.get, self._send))

    def leave(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def began(self) -> None:
        """Returns when the first bytes of a body have been sent."""
        await asyncio.wait_for(self._has_body.wait(), DEADLINE_S)

    async def ended(self) -> tuple[int, bytes]:
        """Status and body, when the handler has returned."""
        await asyncio.wait_for(self.handler, DEADLINE_S)
        return self.sent[0]["status"], b"".join(m.get("body", b"") for m in self.sent)

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        if message.get("body"):
            self._has_body.set()


async def _elsewhere(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("/generate went elsewhere")


def whole(body: object) -> list[bytes]:
    return [json.dumps(body).encode()]


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def answer(service: Service, generate: Generate, start: int, finish: str) -> None:
    out = TokenOut(generate.attempt, start, [100], finish)
    service.handle(TokensOut([out], D0))


async def generate_of(decode: Channel) -> Generate:
    (message,) = await received(decode, 1)
    assert isinstance(message, Generate)
    return message


def test_a_body_in_parts_is_answered(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            (raw,) = whole(BODY)
            exchange = Exchange(service, [raw[:9], raw[9:]])
            generate = await generate_of(decode)
            answer(service, generate, 0, "")
            answer(service, generate, 1, "length")
            status, body = await exchange.ended()
            assert status == 200 and json.loads(body)["output_ids"] == [100, 100]

    run(test)


def test_a_stream_has_an_event_per_token_and_one_end(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            exchange = Exchange(service, whole(BODY | {"stream": True}))
            generate = await generate_of(decode)
            answer(service, generate, 0, "")
            await exchange.began()
            answer(service, generate, 1, "length")
            _, body = await exchange.ended()
            events = body.decode().split("\n\n")
            assert [len(json.loads(e[6:])["output_ids"]) for e in events[:2]] == [1, 2]
            assert events[2:] == ["data: [DONE]", ""]
            assert not exchange.sent[-1].get("more_body")

    run(test)


def test_parameters_travel_to_the_node_and_logprobs_to_the_client(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            params = {
                "max_new_tokens": 9,
                "min_new_tokens": 2,
                "stop_token_ids": [5],
                "frequency_penalty": 0.5,
                "presence_penalty": -0.25,
                "repetition_penalty": 1.25,
                "logit_bias": {"3": -4},
                "sampling_seed": 11,
            }
            asked = {"return_logprob": True, "top_logprobs_num": 1, "token_ids_logprob": [8]}
            body = {"input_ids": [7, 7, 7], "sampling_params": params} | asked
            exchange = Exchange(service, whole(body))
            generate = await generate_of(decode)
            eos = service.tokenizer.eos_token_ids
            assert generate.sampling == Sampling(
                seed=11,
                frequency_penalty=0.5,
                presence_penalty=-0.25,
                repetition_penalty=1.25,
                logit_bias=((3, -4.0),),
                prompt_length=3,
                min_new_tokens=2,
                end_token_ids=(5, *eos),
                num_top_logprobs=1,
                logprob_token_ids=(8,),
            )
            logprobs = TokenLogprobs(-0.5, [(4, -0.25)], [-7.0])
            out = TokenOut(generate.attempt, 0, [100], "length", logprobs=[logprobs])
            service.handle(TokensOut([out], D0))
            _, answer = await exchange.ended()
            meta = json.loads(answer)["meta_info"]
            assert meta["output_token_logprobs"] == [[-0.5, 100, None]]
            assert meta["output_top_logprobs"] == [[[-0.25, 4, None]]]
            assert meta["output_token_ids_logprobs"] == [[[-7.0, 8, None]]]

    run(test)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"logit_bias": {"99999": 1}}, b"logit_bias has the id 99999"),
        ({"min_new_tokens": 3, "max_new_tokens": 2}, b"min_new_tokens is 3"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    decode: Channel, params: dict[str, Any], words: bytes
) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            body = {"input_ids": [7], "sampling_params": params}
            status, answer = await Exchange(service, whole(body)).ended()
            assert status == 400 and words in answer
            asked = {"return_logprob": True, "token_ids_logprob": [99999]}
            status, answer = await Exchange(service, whole({"input_ids": [7]} | asked)).ended()
            assert status == 400 and b"token_ids_logprob has the id 99999" in answer

    run(test)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_prompts", [1, 2])
def test_a_client_that_leaves_cancels_all_its_prompts(
    decode: Channel, stream: bool, num_prompts: int
) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            ids = [[7]] * num_prompts if num_prompts > 1 else [7]
            exchange = Exchange(service, whole(BODY | {"input_ids": ids, "stream": stream}))
            sent = await received(decode, num_prompts)
            exchange.leave()
            cancelled = await received(decode, num_prompts)
            assert cancelled == [Cancel(g.attempt) for g in sent if isinstance(g, Generate)]
            await exchange.ended()
            assert service.core.num_unfinished == 0

    run(test)


def test_a_request_longer_than_nodes_serve_is_refused(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            service.handle(heartbeat("prefill", Node("p0", 1), context_length=8))
            body = {"input_ids": [7], "sampling_params": {"max_new_tokens": 8}}
            status, answer = await Exchange(service, whole(body)).ended()
            assert status == 400 and b"max_new_tokens 8; at most 8 fit" in answer

    run(test)


def test_a_rid_that_is_running_is_refused(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            first = Exchange(service, whole(BODY | {"rid": "mine"}))
            await generate_of(decode)
            status, answer = await Exchange(service, whole(BODY | {"rid": "mine"})).ended()
            assert status == 400 and b"'mine' is running" in answer
            first.leave()
            await asyncio.wait_for(first.handler, DEADLINE_S)

    run(test)


def test_a_client_that_leaves_within_its_body_starts_nothing(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            exchange = Exchange(service, [b"{"], is_whole=False)
            exchange.leave()
            await asyncio.wait_for(exchange.handler, DEADLINE_S)
            assert not exchange.sent and service.core.num_unfinished == 0

    run(test)


def test_what_is_refused_has_a_status_and_a_sentence(decode: Channel) -> None:
    async def test() -> None:
        async with running_service(decode) as service:
            for parts, method, status, word in (
                ([b"{"], "POST", 400, b"no JSON"),
                ([b'"\xff"'], "POST", 400, b"no JSON"),
                (whole([1]), "PUT", 400, b"object"),
                ([b"x" * (16 << 20)] * 3, "POST", 413, b"bytes"),
                (whole(BODY), "GET", 405, b"POST"),
            ):
                replied = await Exchange(service, parts, method).ended()
                assert replied[0] == status and word in replied[1]

    run(test)
