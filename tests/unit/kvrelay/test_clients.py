"""Both clients send the same, read the same, and repeat what is safe to repeat."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from kvrelay.answers import GenerationEnd, TokenLogprob
from kvrelay.async_client import AsyncClient
from kvrelay.client import Client
from kvrelay.connection import key_of, url_of
from kvrelay.errors import (
    AccessDenied,
    AnswerTimedOut,
    ClientError,
    ClusterBusy,
    ClusterFault,
    ClusterUnavailable,
    ClusterUnreachable,
    ConnectionBroken,
    InvalidCall,
    MalformedAnswer,
    NothingThere,
)
from kvrelay.retries import NEVER_AGAIN, RetryPolicy
from tests.support.kvrelay.scripted_server import (
    ASKS,
    FEW,
    Ask,
    ScriptedServer,
    events,
    reply,
)

pytestmark = pytest.mark.parametrize("ask", ASKS)
META = {"id": "r1", "finish_reason": {"type": "stop", "matched": 1}, "prompt_tokens": 7}
ANSWER = {"text": "Bramo", "output_ids": [5, 6], "meta_info": META | {"completion_tokens": 2}}
BUSY = {"error": {"message": "too many", "type": "TooManyRequests", "code": 429, "param": None}}
CHAT = [{"role": "user", "content": "Hi"}]


def test_a_prompt_is_sent_in_the_form_of_generate(ask: Ask) -> None:
    server = ScriptedServer(reply(ANSWER), reply(ANSWER))
    answer = ask(server, "generate", "My dog", max_new_tokens=5, cache_salt="acme", rid="r1")
    assert answer.text == "Bramo" and answer.output_ids == (5, 6)
    assert answer.meta_info.finish_reason == GenerationEnd("stop", matched=1)
    assert server.body() == {
        "text": "My dog",
        "cache_salt": "acme",
        "rid": "r1",
        "sampling_params": {"max_new_tokens": 5},
    }
    ask(server, "generate", (1, 2), json_schema={"type": "integer"})
    schema = {"json_schema": '{"type":"integer"}'}
    assert server.body() == {"input_ids": [1, 2], "sampling_params": schema}


def test_logprobs_have_names(ask: Ask) -> None:
    lists = {"output_token_logprobs": [[-0.5, 5, None]], "output_top_logprobs": [[[-0.5, 5, "B"]]]}
    answer = ask(ScriptedServer(reply(ANSWER | {"meta_info": META | lists})), "generate", "x")
    assert answer.meta_info.output_token_logprobs == (TokenLogprob(-0.5, 5),)
    assert answer.meta_info.output_top_logprobs == ((TokenLogprob(-0.5, 5, "B"),),)


def test_a_server_of_sglang_may_lack_and_add_fields(ask: Ask) -> None:
    theirs = {"text": "a", "meta_info": {"id": "x", "spec_accept_rate": 0.5}}
    assert ask(ScriptedServer(reply(theirs)), "generate", "x").text == "a"


def test_a_batch_keeps_the_order_of_its_prompts_and_its_bound(ask: Ask) -> None:
    lock, running, most = threading.Lock(), 0, 0

    class Counting(ScriptedServer):
        def handle(self, request: httpx.Request) -> httpx.Response:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            text = httpx.Response(200, content=request.content).json()["text"]
            with lock:
                running -= 1
            return reply(ANSWER | {"text": text})

    prompts = [f"prompt {i}" for i in range(40)]
    answers = ask(Counting(), "batch", prompts, max_concurrent=3)
    assert [answer.text for answer in answers] == prompts
    assert 1 <= most <= 3
    assert ask(Counting(), "batch", []) == []


def test_an_error_of_one_prompt_ends_a_batch(ask: Ask) -> None:
    refused = reply({"error": {"message": "no", "param": "text"}}, 400)
    with pytest.raises(InvalidCall, match="no"):
        ask(ScriptedServer(refused), "batch", ["a"], max_concurrent=1)


def test_a_stream_has_all_text_so_far(ask: Ask) -> None:
    grown = [
        ANSWER | {"text": "Br", "output_ids": [5], "meta_info": {"completion_tokens": 1}},
        ANSWER,
    ]
    for only_new in (False, True):
        last = {"text": "amo", "output_ids": [6]} if only_new else {}
        updates = ask(ScriptedServer(events(grown[0], ANSWER | last)), "stream", "x")
        assert [update.text for update in updates] == ["Br", "Bramo"]
        assert updates[-1].output_ids == (5, 6)
        assert updates[-1].meta_info.finish_reason is not None


@pytest.mark.parametrize(
    ("stream", "error", "status"),
    [
        (events(ANSWER, end=""), ConnectionBroken, None),
        (events({"error": {"message": "gone", "code": 503}}), ClusterUnavailable, 503),
        (events({"error": {"message": "gone", "code": "odd"}}), ClusterFault, 500),
        (events({"answer": 1}), MalformedAnswer, None),
        (reply(BUSY, 429, retry_after="100"), ClusterBusy, 429),
    ],
)
def test_a_stream_that_does_not_end_well_raises(
    ask: Ask, stream: httpx.Response, error: type[ClientError], status: int | None
) -> None:
    with pytest.raises(error) as raised:
        ask(ScriptedServer(stream), "stream", "x", options={"retry": NEVER_AGAIN})
    assert raised.value.status == status


def test_a_chat_has_text_tools_and_counts(ask: Ask) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    message = {"role": "assistant", "content": "Hello", "tool_calls": [call]}
    usage = {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4}}
    body = {"id": "x", "model": "m", "usage": usage}
    choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    server = ScriptedServer(reply(body | {"choices": choices}))
    answer = ask(server, "chat", CHAT, max_tokens=5)
    assert answer.text == "Hello" and answer.tool_calls[0].function.name == "add"
    assert answer.usage.cached_tokens == 4
    assert server.body() == {"model": "default", "messages": CHAT, "max_tokens": 5}
    assert server.requests[0].url.path == "/v1/chat/completions"


def test_a_stream_of_a_chat_has_what_is_new(ask: Ask) -> None:
    chunks = [{"choices": [{"delta": {"content": text}}]} for text in ("He", "llo")]
    last: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 3}}
    updates = ask(ScriptedServer(events(*chunks, last)), "stream_chat", CHAT)
    assert [update.text for update in updates] == ["He", "llo", ""]
    assert updates[-1].usage.prompt_tokens == 3


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidCall),
        (404, NothingThere),
        (413, InvalidCall),
        (429, ClusterBusy),
        (500, ClusterFault),
        (503, ClusterUnavailable),
        (504, AnswerTimedOut),
    ],
)
def test_each_status_is_an_error_of_its_own(
    ask: Ask, status: int, error: type[ClientError]
) -> None:
    body = {"error": {"message": "a reason", "param": "text"}}
    for refusal in (reply(body, status), httpx.Response(status, text="a reason")):
        with pytest.raises(error, match="a reason") as raised:
            ask(ScriptedServer(refusal), "generate", "x", options={"retry": RetryPolicy(1)})
        assert raised.value.status == status
    assert raised.value.param is None


def test_keys_are_sent_where_they_belong_and_missing_ones_are_told(ask: Ask) -> None:
    keys = {"admin_token": "admin", "api_key": "key"}
    for method, args, sent in (("nodes", (), "admin"), ("generate", ("x",), "key")):
        server = ScriptedServer(reply([] if method == "nodes" else ANSWER), reply({}, 401))
        ask(server, method, *args, options=keys)
        assert server.requests[0].headers["authorization"] == f"Bearer {sent}"
        with pytest.raises(AccessDenied, match="refused the"):
            ask(server, method, *args, options=keys)
    with pytest.raises(AccessDenied, match="asks for an admin token; --admin-token"):
        ask(ScriptedServer(reply({}, 401)), "cache_stats")


def test_what_was_not_begun_is_sent_again_with_growing_waits(ask: Ask) -> None:
    refused = httpx.ConnectError("refused")
    server = ScriptedServer(refused, reply(BUSY, 429, retry_after="5"), reply(ANSWER))
    assert ask(server, "generate", "x", rid="r1", options={"retry": FEW}).text == "Bramo"
    assert server.waits == [0.75, 5.0], "half a wait and chance, then what the cluster asks for"
    server = ScriptedServer(*[reply({}, 503)] * 3)
    with pytest.raises(ClusterUnavailable):
        ask(server, "stream", "x", options={"retry": FEW})
    assert server.waits == [0.75, 1.5] and len(server.requests) == 3


def test_a_cluster_that_asks_for_too_long_a_wait_is_not_asked_again(ask: Ask) -> None:
    server = ScriptedServer(reply(BUSY, 429, retry_after="60"))
    with pytest.raises(ClusterBusy, match="too many"):
        ask(server, "generate", "x", options={"retry": FEW})
    assert server.waits == []


def test_what_may_have_begun_is_sent_again_only_if_it_is_repeatable(ask: Ask) -> None:
    broken = httpx.RemoteProtocolError("Server disconnected")
    server = ScriptedServer(broken, reply(ANSWER))
    assert ask(server, "generate", "x").text == "Bramo"
    for method, args, params in (
        ("generate", ("x",), {"rid": "r1"}),
        ("generate", ("x",), {"session_params": {"id": "s"}}),
        ("flush", (), {}),
    ):
        server = ScriptedServer(broken)
        with pytest.raises(ConnectionBroken):
            ask(server, method, *args, **params)
        assert server.waits == []


def test_neither_late_answers_nor_operators_calls_are_repeated(ask: Ask) -> None:
    server = ScriptedServer(httpx.ReadTimeout("late"))
    with pytest.raises(AnswerTimedOut, match="600 s"):
        ask(server, "generate", "x")
    server = ScriptedServer(httpx.ConnectError("refused"))
    with pytest.raises(ClusterUnreachable, match="kvrelay up"):
        ask(server, "cache_stats")
    assert server.waits == []


def test_what_cannot_be_sent_or_read_is_told(ask: Ask) -> None:
    with pytest.raises(ClientError, match="JSON"):
        ask(ScriptedServer(), "generate", "x", temperature=object())
    with pytest.raises(ClientError, match="one answer"):
        ask(ScriptedServer(), "generate", "x", n=2)
    with pytest.raises(MalformedAnswer, match="URL"):
        ask(ScriptedServer(httpx.Response(200, text="<html>")), "generate", "x")


def test_an_abort_names_its_request(ask: Ask) -> None:
    server = ScriptedServer(httpx.Response(200))
    assert ask(server, "abort", "r1") is None
    assert server.body() == {"rid": "r1"}


def test_both_clients_have_the_same_methods(ask: Ask) -> None:
    def methods(client: type) -> set[str]:
        return {name for name in vars(client) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)


def test_the_url_is_the_given_one_or_that_of_the_environment(ask: Ask) -> None:
    assert url_of("http://a", {"KVRELAY_URL": "http://b"}) == "http://a"
    assert url_of(None, {"KVRELAY_URL": "http://b"}) == "http://b"
    assert url_of(None, {}) == "http://127.0.0.1:30000"
    with pytest.raises(ClientError, match="must begin with http"):
        Client("localhost:1")


def test_the_api_key_is_the_one_given_or_the_first_of_the_environment(ask: Ask) -> None:
    assert key_of("a", {"KVRELAY_API_KEY": "b"}) == "a"
    assert key_of("", {"KVRELAY_API_KEY": "b"}) == ""
    assert key_of(None, {"KVRELAY_API_KEY": "b, c"}) == "b"
    assert key_of(None, {}) == ""
