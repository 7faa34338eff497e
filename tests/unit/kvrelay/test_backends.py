"""The backends of the language: the scripted one, and what SGLang's servers are asked."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

import kvrelay
from kvrelay import Client, HttpBackend, LanguageError, ProgramState, ScriptedBackend, gen, select
from tests.support.kvrelay.backend_contract import CHOICES, check_backend

SGLANG_KEYS = {
    "text",
    "sampling_params",
    "stream",
    "return_logprob",
    "logprob_start_len",
    "return_text_in_logprobs",
}


class SGLangServer:
    """Answers /generate as SGLang does, with nothing besides: a word is a token, the first entry of
    input logprobs is null, and there is no /tokenize."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        if request.url.path != "/generate":
            return httpx.Response(404, json={"detail": "Not Found"})
        body = json.loads(request.content)
        self.bodies.append(body)
        if isinstance(body["text"], list):
            return httpx.Response(200, json=[self._answer(text, body) for text in body["text"]])
        if body.get("stream"):
            return self._stream(body)
        return httpx.Response(200, json=self._answer(body["text"], body))

    def _answer(self, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        words = ["<s>", *prompt.replace(" ", "\n ").split("\n")]
        text = "" if body["sampling_params"].get("max_new_tokens") == 0 else " Your dog"
        finish_reason = {"type": "length", "length": 2}
        meta: dict[str, Any] = {"id": "x", "finish_reason": finish_reason}
        meta |= {"prompt_tokens": len(words), "completion_tokens": 2, "cached_tokens": 0}
        if body.get("return_logprob"):
            told = [[-float(len(word)), 7, word] for word in words[body["logprob_start_len"] :]]
            told[0][0] = None
            meta["input_token_logprobs"] = told
            meta["output_token_logprobs"] = []
        return {"text": text, "output_ids": [1, 2], "meta_info": meta}

    def _stream(self, body: dict[str, Any]) -> httpx.Response:
        whole = self._answer(body["text"], body)
        first_meta = whole["meta_info"] | {"finish_reason": None, "completion_tokens": 1}
        first = whole | {"text": " Your", "output_ids": [1], "meta_info": first_meta}
        events = [json.dumps(first), json.dumps(whole), "[DONE]"]
        return httpx.Response(200, text="".join(f"data: {event}\n\n" for event in events))


def backend_of(server: SGLangServer, template: str = "chatml") -> HttpBackend:
    client = Client("http://sglang", transport=httpx.MockTransport(server.handle))
    return HttpBackend(client, chat_template=template)


def test_a_scripted_backend_keeps_the_contract() -> None:
    logprobs = dict.fromkeys(CHOICES, -2.0) | {"Oslen": -1.0}
    check_backend(ScriptedBackend({"called?": "Your dog"}, logprobs), "What is it called?")


def test_an_sglang_server_keeps_the_contract_and_gets_only_keys_that_it_has() -> None:
    server = SGLangServer()
    check_backend(backend_of(server), "My dog is called")
    assert set().union(*server.bodies) == SGLANG_KEYS


def test_the_null_that_sglang_tells_first_is_no_part_of_a_choice() -> None:
    decision = backend_of(SGLangServer()).select("My dog is", (" called Bo", " it"))
    scores = [(score.mean_logprob, score.num_tokens) for score in decision.scores]
    assert scores == [(-(len(" called") + len(" Bo")) / 2, 2), (-len(" it"), 1)]
    assert decision.choice == " it"


def test_a_server_that_tells_no_template_asks_for_a_named_one() -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += kvrelay.user("Hi") + kvrelay.assistant(gen("a"))

    with pytest.raises(LanguageError, match="chat_template="):
        program.run(backend_of(SGLangServer(), "server"))
    assert program.run(backend_of(SGLangServer()))["a"] == " Your dog"


def test_parameters_of_a_generation_go_before_those_of_the_backend() -> None:
    server = SGLangServer()
    client = Client("http://sglang", transport=httpx.MockTransport(server.handle))
    backend = HttpBackend(client, sampling={"temperature": 0, "top_p": 0.5}, cache_salt="mine")

    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += "x" + gen("a", temperature=1, max_new_tokens=3)
        s += select("b", ["y", "z"])

    program.run(backend)
    first = {"temperature": 1, "top_p": 0.5, "max_new_tokens": 3}
    assert server.bodies[0]["sampling_params"] == first
    assert [body["cache_salt"] for body in server.bodies] == ["mine"] * 3
