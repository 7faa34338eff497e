"""SGLang's native endpoints beside /generate, errors of every kind, and the OpenAPI document."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.core.core import READY_WITHOUT_NODE_S
from coordinator.http.companions import health
from coordinator.http.missing import METHODS, OF_SGLANG
from protocol.channel import Channel
from protocol.messages import Goodbye
from tests.support.coordinator.http_servers import run_served, served
from tests.support.coordinator.services import D0

BODY = {"input_ids": [7], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}


@pytest.fixture
def decode() -> Iterator[Channel]:
    channel = Channel("127.0.0.1")
    yield channel
    channel.close()


def assert_error(error: dict[str, Any], code: int, kind: str) -> None:
    assert error.keys() == {"message", "type", "code", "param"}
    assert (error["code"], error["type"]) == (code, kind) and error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "kind"),
    [
        ("POST", "/generate", b"{", 400, "BadRequest"),
        ("POST", "/generate", {"text": "a", "image_data": ["x"]}, 400, "BadRequest"),
        ("POST", "/tokenize", {}, 400, "BadRequest"),
        ("POST", "/detokenize", {"tokens": [1 << 40]}, 400, "BadRequest"),
        ("GET", "/admin/cache/prefixes?limit=0", None, 400, "BadRequest"),
        ("POST", "/admin/cache/flush", {"node": "x"}, 404, "NotFound"),
        ("GET", "/nobody/names/this", None, 404, "NotFound"),
        ("GET", "/generate", None, 405, "MethodNotAllowed"),
        ("POST", "/model_info", None, 405, "MethodNotAllowed"),
        ("POST", "/generate", b"x" * 2000, 413, "ContentTooLarge"),
        ("POST", "/tokenize", b"x" * 2000, 413, "ContentTooLarge"),
        ("POST", "/encode", {}, 501, "NotImplemented"),
    ],
)
def test_errors_have_one_shape(
    decode: Channel, method: str, path: str, body: object, code: int, kind: str
) -> None:
    async def test() -> None:
        async with served(decode, max_body_bytes=1000) as here:
            reply = await here.ask(method, path, body)
            assert reply.status == code
            assert_error(reply.error, code, kind)
            assert ("allow" in reply.headers) == (code == 405)

    run_served(test)


@pytest.mark.parametrize(
    ("method", "path", "methods"),
    [
        ("POST", "/health", "GET, HEAD"),
        ("DELETE", "/flush_cache", "GET, POST"),
        ("GET", "/tokenize", "POST"),
        ("POST", "/admin/nodes", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(
    decode: Channel, method: str, path: str, methods: str
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            reply = await here.ask(method, path)
            assert reply.status == 405 and reply.headers["allow"] == methods
            assert reply.error["message"].endswith(f"it takes {methods}")

    run_served(test)


def test_the_address_itself_says_where_to_read_on(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            root = (await here.ask("GET", "/")).json
            assert root["name"] == "kvrelay" and root["version"] and root["model"] == "tiny"
            for name in ("docs", "openapi", "ready", "stats"):
                assert (await here.ask("GET", root[name])).status == 200, name

    run_served(test)


def test_a_full_or_empty_cluster_says_when_to_come_back(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, max_queued_requests=1) as here:
            client = await here.connect()
            client.send("POST", "/generate", BODY)
            await here.generate()
            busy = await here.ask("POST", "/generate", BODY)
            assert busy.status == 429 and busy.headers["retry-after"]
            assert_error(busy.error, 429, "TooManyRequests")
        async with served(decode, with_node=False) as here:
            gone = await here.ask("POST", "/generate", BODY)
            assert gone.status == 503 and gone.headers["retry-after"]
            assert_error(gone.error, 503, "ServiceUnavailable")
            assert (
                "GET /ready" in gone.error["message"] and "kvrelay stats" in gone.error["message"]
            )

    run_served(test)


def test_an_error_of_our_own_is_a_500_and_in_a_stream_its_last_event(
    decode: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with served(decode) as here:

            def broken(*_: object) -> None:
                raise RuntimeError("a bug")

            monkeypatch.setattr("coordinator.http.native.sglang.SGLangFormatter.result", broken)
            for stream in (False, True):
                client = await here.connect()
                client.send("POST", "/generate", BODY | {"stream": stream})
                here.tokens(await here.generate(), 0, [1, 2, 3], "length")
                reply = await client.reply("POST")
                if stream:
                    assert reply.status == 200 and reply.events[-1] == "[DONE]"
                    assert '"retryable":false' in reply.events[0]
                else:
                    assert reply.status == 500
                    assert_error(reply.error, 500, "InternalServerError")
                assert b"a bug" not in reply.body

    run_served(test)


def test_what_sglang_has_and_we_do_not_is_501_for_every_method(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            for path in OF_SGLANG:
                for method in METHODS:
                    path = re.sub("{.*?}", "x", path)
                    reply = await client.ask(method, path)
                    assert reply.status == 501 and f"{path} is not" in reply.error["message"]

    run_served(test)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_ready_means_that_requests_are_served(decode: Channel, method: str) -> None:
    async def test() -> None:
        async with served(decode, with_node=False) as here:
            assert (await here.ask(method, "/health")).status == 200
            assert (await here.ask(method, "/ready")).status == 503
        async with served(decode) as here:
            assert (await here.ask(method, "/ready")).status == 200
            running = await here.connect()
            running.send("POST", "/generate", {"text": "a"})  # else it would end at once
            await here.generate()
            here.tell_to_stop()
            assert (await here.ask(method, "/ready")).status == 503
            assert "stopping" in here.service.why_not_ready

    run_served(test)


def test_a_cluster_stays_ready_while_its_last_node_restarts(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            service = here.service
            service.tick()
            service.handle(Goodbye(D0))
            assert not service.core.is_ready
            assert service.is_ready(service.now())
            assert not service.is_ready(service.now() + READY_WITHOUT_NODE_S + 0.01)

    run_served(test)


def test_health_generate_asks_for_a_token_when_none_comes(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            client = await here.connect()
            client.send("GET", "/health_generate")
            generate = await here.generate()
            assert generate.max_new_tokens == 1
            here.tokens(generate, 0, [1], "length")
            assert (await client.reply()).status == 200

    run_served(test)


def test_a_full_queue_is_no_illness(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, max_queued_requests=1) as here:
            busy, asking = await here.connect(), await here.connect()
            busy.send("POST", "/generate", BODY)
            generate = await here.generate()
            asking.send("GET", "/health_generate")
            await asyncio.sleep(2 * health.POLL_S)
            here.tokens(generate, 0, [1])
            assert (await asking.reply()).status == 200
            lifetime = here.service.core.statistics.totals.lifetime
            assert lifetime.disconnected_requests == 0

    run_served(test)


def test_health_generate_fails_without_a_node(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, with_node=False) as here:
            assert (await here.ask("GET", "/health_generate")).status == 503

    run_served(test)


def test_information_has_sglangs_fields_and_no_secrets(decode: Channel) -> None:
    async def test() -> None:
        of_cluster = ("a hidden word of the cluster",)
        async with served(decode, admin_token="hidden", cluster_secret=of_cluster) as here:
            model = (await here.ask("GET", "/get_model_info")).json
            assert model == (await here.ask("GET", "/model_info")).json
            assert model["is_generation"] and model["preferred_sampling_params"] is None
            assert model["architectures"] and model["model_type"] and model["vocab_size"] > 0
            assert model["tokenizer_path"] == model["model_path"]
            assert model["weight_version"] == "default" and model["served_model_name"] == "tiny"
            reply = await here.ask("GET", "/get_server_info")
            assert b":secret" not in reply.body and b"hidden" not in reply.body
            server = reply.json
            assert server["max_running_requests"] == 8 and server["page_size"] == 16
            assert server["max_total_num_tokens"] == 16000
            assert [node["name"] for node in server["nodes"]] == ["d0"]
            weights = (await here.ask("GET", "/get_weight_version")).json
            assert weights == {"weight_version": "default"}

    run_served(test)


def test_tokenize_and_detokenize_are_each_others_inverse(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            one = (await here.ask("POST", "/tokenize", {"prompt": "a fox"})).json
            assert one["count"] == len(one["tokens"]) and one["max_model_len"] > 0
            two = (await here.ask("POST", "/tokenize", {"prompt": ["a fox", "b"]})).json
            assert two["tokens"][0] == one["tokens"] and two["count"][0] == one["count"]
            plain = {"prompt": "a fox", "add_special_tokens": False, "model": None}
            tokens = (await here.ask("POST", "/tokenize", plain)).json["tokens"]
            text = (await here.ask("POST", "/detokenize", {"tokens": tokens})).json["text"]
            assert text == "a fox"
            texts = (await here.ask("POST", "/detokenize", {"tokens": [tokens, []]})).json["text"]
            assert texts == ["a fox", ""]
            assert (await here.ask("POST", "/detokenize", {"tokens": []})).json["text"] == ""

    run_served(test)


def test_loads_are_told_per_node_and_summed(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode) as here:
            loads = (await here.ask("GET", "/v1/loads")).json
            (one,) = loads["loads"]
            assert (one["node"], one["dp_rank"], one["max_total_num_tokens"]) == ("d0", 0, 16000)
            assert loads["aggregate"]["total_reqs"] == 0 and loads["dp_rank_count"] == 1
            (old,) = (await here.ask("GET", "/get_load")).json
            assert old == {"dp_rank": 0, "num_reqs": 0, "num_waiting_reqs": 0, "num_tokens": 0}

    run_served(test)


def test_what_sglangs_front_end_calls_is_there(decode: Channel) -> None:
    async def test() -> None:
        async with served(decode, with_node=False) as here:
            body = {"src_rids": ["a", "b"], "dst_rid": "c"}
            assert (await here.ask("POST", "/concate_and_append_request", body)).status == 200
            for method in ("GET", "POST"):
                flushed = await here.ask(method, "/flush_cache")
                assert flushed.status == 200 and "Cache flushed." in flushed.json["message"]

    run_served(test)


def test_generate_is_in_the_openapi_document_and_the_page_needs_no_internet(
    decode: Channel,
) -> None:
    async def test() -> None:
        async with served(decode) as here:
            document = (await here.ask("GET", "/openapi.json")).json
            paths, schemas = document["paths"], document["components"]["schemas"]
            for method in ("post", "put"):
                content = paths["/generate"][method]["requestBody"]["content"]["application/json"]
                assert content["schema"] == {"$ref": "#/components/schemas/GenerateBody"}
                assert content["example"]["text"]
            assert all("description" in p for p in schemas["GenerateBody"]["properties"].values())
            assert schemas["SamplingParams"]["properties"]["top_p"]["maximum"] == 1
            for path, name in (("/v1/chat/completions", "Chat"), ("/v1/completions", "Completion")):
                content = paths[path]["post"]["requestBody"]["content"]["application/json"]
                assert content["schema"] == {"$ref": f"#/components/schemas/{name}Body"}
                described = schemas[f"{name}Body"]["properties"]
                assert {"model", "temperature", "seed", "regex", "logprobs"} <= described.keys()
                assert described["top_p"]["maximum"] == 1
            refs = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
            assert refs <= schemas.keys()
            for name in (
                "/tokenize",
                "/v1/models",
                "/v1/loads",
                "/flush_cache",
                "/ready",
                "/admin/nodes",
            ):
                assert name in paths
            page = await here.ask("GET", "/docs")
            assert page.status == 200 and page.headers["content-type"].startswith("text/html")
            assert not re.search(rb"https?:|//[a-z]", page.body), "everything is in the page"

    run_served(test)


EXAMPLES_TRIED = (
    *("/tokenize", "/detokenize", "/abort_request", "/flush_cache"),
    *("/pause_generation", "/continue_generation", "/open_session", "/close_session"),
)


def test_examples_of_companions_are_what_comes(decode: Channel) -> None:
    """Every body that is shown is taken, unless Redis is needed, and answered as is shown."""

    async def test() -> None:
        async with served(decode, with_node=False) as here:
            document = (await here.ask("GET", "/openapi.json")).json
            for path in EXAMPLES_TRIED:
                shown = document["paths"][path]["post"]
                content = shown.get("requestBody", {}).get("content", {}).get("application/json")
                assert content is None or content["example"].keys() <= (
                    content["schema"]["properties"].keys()
                )
                reply = await here.ask("POST", path, content and content["example"])
                assert reply.status in (200, 503) and str(reply.status) in shown["responses"], path
                answer = shown["responses"]["200"].get("content", {}).get("application/json")
                if reply.status == 200 and answer is not None:
                    assert reply.json.keys() == answer["example"].keys(), path

    run_served(test)
