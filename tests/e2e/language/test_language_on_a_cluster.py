"""Programs against a real cluster: every primitive, and pages that branches share."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from tokenizers import Tokenizer

import kvrelay
from infra.models import EMBEDDED
from kvrelay import AsyncClient, Client, HttpBackend, LanguageError, ProgramState, gen, select
from kvrelay.answers import GeneratedMeta
from kvrelay.errors import InvalidCall
from kvrelay.language.backend import Decision
from tests.support.kvrelay.backend_contract import check_backend
from tests.support.processes.clusters import Cluster, wait_until

PAGE_SIZE = 16
NOTES = (
    "The morning was quiet and the garden was full of birds. The old clock stood near the window "
    "for a long time. After the rain the road was narrow and dusty. My dog is called Bramo. "
)
QUESTION = "What is my dog called?"
CHOICES = ["Bramo", "Oslen", "a window", "Tavik the second"]


@pytest.fixture(scope="module")
def client(tiny_cluster: Cluster) -> Iterator[Client]:
    with Client(tiny_cluster.local.url, tiny_cluster.local.admin_token) as client:
        yield client


@pytest.fixture(scope="module")
def backend(client: Client) -> HttpBackend:
    return HttpBackend(client, sampling={"temperature": 0})


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


def meta_of(state: ProgramState, name: str) -> GeneratedMeta:
    meta = state.meta(name)
    assert isinstance(meta, GeneratedMeta)
    return meta


@kvrelay.function
def asks(s: ProgramState, name: str = "Bramo") -> None:
    s += kvrelay.user(f"My dog is called {name}. {QUESTION}")
    s += kvrelay.assistant(gen("answer", max_new_tokens=16, stop="<|end|>"))


def test_roles_are_those_of_the_servers_template(backend: HttpBackend) -> None:
    state = asks.run(backend)
    assert state["answer"] == "Your dog is called Bramo."
    prompt = f"<|user|>My dog is called Bramo. {QUESTION}<|end|><|assistant|>"
    assert state.text() == f"{prompt}Your dog is called Bramo.<|end|>"
    assert [said.role for said in state.messages()] == ["user", "assistant"]


def test_a_cluster_keeps_the_contract_of_backends(backend: HttpBackend) -> None:
    check_backend(backend, f"<|user|>My dog is called Bramo. {QUESTION}<|end|><|assistant|>")


def test_a_named_template_asks_the_server_nothing(client: Client) -> None:
    markers = HttpBackend(client, chat_template="chatml").markers()
    assert markers.opening(None, "user") == "<|im_start|>user\n"
    with pytest.raises(LanguageError, match="unknown"):
        HttpBackend(client, chat_template="nobody's")


@dataclass(frozen=True)
class Person:
    name: str
    age: int


def test_values_have_their_types(backend: HttpBackend) -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += "The age is " + gen("int", dtype=int, max_new_tokens=6)
        s += " and the height is " + gen("float", dtype=float, max_new_tokens=12)
        s += " and it is " + gen("bool", dtype=bool, max_new_tokens=8)
        s += " and a word is " + gen("str", dtype=str, max_new_tokens=24)
        s += " and a person: " + gen("person", dtype=Person, max_new_tokens=60)
        s += " and a code: " + gen("code", regex="[a-c]{3}", max_new_tokens=8)

    state = program.run(backend)
    for name, kind in (("int", int), ("float", float), ("bool", bool), ("str", str)):
        assert type(state[name]) is kind
    assert isinstance(state["person"], Person)
    assert re.fullmatch("[a-c]{3}", state["code"])
    assert f'"{state["str"]}"' in state.text()


def by_hand(cluster: Cluster, tokenizer: Tokenizer, prefix: str, choice: str) -> float:
    """Scores a choice over plain HTTP, with everything of the prompt."""
    body = {
        "text": prefix + choice,
        "return_logprob": True,
        "logprob_start_len": 0,
        "sampling_params": {"max_new_tokens": 0},
    }
    answer = cluster.http.post("/generate", json=body).json()
    entries = answer["meta_info"]["input_token_logprobs"]
    begins = [begin for begin, _ in tokenizer.encode(prefix + choice).offsets]
    ends = [end for _, end in tokenizer.encode(prefix + choice).offsets]
    assert len(entries) == len(begins)
    own = [entry[0] for entry, end in zip(entries, ends, strict=True) if end > len(prefix)]
    return sum(own) / len(own)


@pytest.mark.parametrize(
    "prefix",
    [
        f"<|user|>{NOTES}{QUESTION}<|end|><|assistant|>Your dog is called ",
        f"<|user|>{NOTES}{QUESTION}<|end|><|assistant|>Your dog is called",
        "In the village of O",
        "",
    ],
)
def test_select_chooses_what_scoring_by_hand_chooses(
    tiny_cluster: Cluster, backend: HttpBackend, tokenizer: Tokenizer, prefix: str
) -> None:
    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += prefix + select("answer", CHOICES)

    state = program.run(backend)
    decision = state.meta("answer")
    assert isinstance(decision, Decision)
    scores = {one.choice: one.mean_logprob for one in decision.scores}
    expected = {choice: by_hand(tiny_cluster, tokenizer, prefix, choice) for choice in CHOICES}
    assert scores == pytest.approx(expected, abs=1e-3)
    assert state["answer"] == max(expected, key=expected.__getitem__)
    assert state.text() == prefix + state["answer"]


def test_the_choices_of_a_selection_share_the_pages_of_their_prefix(
    tiny_cluster: Cluster, backend: HttpBackend, tokenizer: Tokenizer
) -> None:
    """Computed are the prefix, once, and of each choice less than two pages and itself."""
    prefix = f"<|user|>{NOTES * 4}{QUESTION}<|end|><|assistant|>Your dog is called"
    num_prefix = len(tokenizer.encode(prefix).ids)
    tiny_cluster.flush()
    before = tiny_cluster.counted("computed_tokens")
    backend.select(prefix, CHOICES)
    tiny_cluster.settle()
    computed = tiny_cluster.counted("computed_tokens") - before
    assert num_prefix <= computed <= num_prefix + len(CHOICES) * (2 * PAGE_SIZE + 8)
    assert computed < 2 * num_prefix


def test_branches_share_what_was_computed_before_them(
    tiny_cluster: Cluster, backend: HttpBackend, tokenizer: Tokenizer
) -> None:
    @kvrelay.function
    def program(s: ProgramState) -> Any:
        s += f"<|user|>{NOTES * 4}"
        forks = s.fork(4)
        forks += lambda number: f"Number {number}: {QUESTION}<|end|><|assistant|>"
        forks += gen("answer", max_new_tokens=8)
        forks.join()
        return forks

    tiny_cluster.flush()
    before = tiny_cluster.counted("computed_tokens")
    state = program.run(backend)
    num_common = len(tokenizer.encode(f"<|user|>{NOTES * 4}").ids)
    for branch in state.result:
        cached = meta_of(branch, "answer").cached_tokens
        assert cached >= (num_common // PAGE_SIZE - 1) * PAGE_SIZE
    tiny_cluster.settle()
    assert tiny_cluster.counted("computed_tokens") - before < 2 * num_common
    assert len(state["answer"]) == 4 and all("Bramo" in answer for answer in state["answer"])


def test_calls_of_a_batch_share_what_they_begin_with(
    tiny_cluster: Cluster, backend: HttpBackend
) -> None:
    @kvrelay.function
    def program(s: ProgramState, name: str) -> None:
        s += f"<|user|>{NOTES * 3} My cat is called {name}. What is my cat called?"
        s += "<|end|><|assistant|>" + gen("answer", max_new_tokens=16, stop="<|end|>")

    names = ["Tavik", "Zorin", "Milo", "Pelka", "Oslen"]
    tiny_cluster.flush()
    states = program.run_batch(backend, [{"name": name} for name in names], max_threads=3)
    for name, state in zip(names, states, strict=True):
        assert name in state["answer"]
        assert meta_of(state, "answer").cached_tokens > 100


def test_another_salt_shares_nothing(client: Client) -> None:
    program = kvrelay.function(lambda s: s.__iadd__(NOTES * 3 + gen("a", max_new_tokens=1)))
    for salt in ("mine", "yours"):
        state = program.run(HttpBackend(client, cache_salt=salt))
        assert meta_of(state, "a").cached_tokens == 0
    state = program.run(HttpBackend(client, cache_salt="mine"))
    assert meta_of(state, "a").cached_tokens > 100


def test_a_tool_is_called_with_arguments_that_follow_its_schema(backend: HttpBackend) -> None:
    called: list[tuple[int, bool]] = []

    def book(guests: int, is_late: bool) -> str:
        called.append((guests, is_late))
        return f"{guests} guests"

    @kvrelay.function
    def program(s: ProgramState) -> None:
        s += "A table for two: " + kvrelay.call("booked", book, max_new_tokens=60)
        s += f" -> {s['booked']}"

    state = program.run(backend)
    ((guests, is_late),) = called
    assert type(guests) is int and type(is_late) is bool
    assert state.text().endswith(f" -> {guests} guests")
    written = state.text().removeprefix("A table for two: ").partition(" -> ")[0]
    assert json.loads(written) == {"guests": guests, "is_late": is_late}


def test_text_streams_while_it_is_written(backend: HttpBackend) -> None:
    state = asks.start(backend)
    pieces = list(state.text_iter("answer"))
    assert "".join(pieces) == state["answer"] == "Your dog is called Bramo."
    text = state.text()
    assert text.startswith("".join(state.text_iter())) and text.endswith("<|end|>")


def test_programs_and_clients_run_in_an_event_loop(
    tiny_cluster: Cluster, backend: HttpBackend
) -> None:
    async def run() -> None:
        states = await asyncio.gather(
            *(asks.run_async(backend, name=name) for name in ("Bramo", "Tavik", "Zorin"))
        )
        for name, state in zip(("Bramo", "Tavik", "Zorin"), states, strict=True):
            assert name in state["answer"]
        state = asks.start(backend)
        text = "".join([piece async for piece in state.text_async_iter("answer")])
        assert text == "Your dog is called Bramo."
        async with AsyncClient(tiny_cluster.local.url) as client:
            prompt = states[0].text().partition("Your")[0]
            one = await client.generate(prompt, temperature=0, max_new_tokens=16)
            updates = [u async for u in client.stream(prompt, temperature=0, max_new_tokens=16)]
            assert updates[-1].output_ids == one.output_ids
            assert one.text.startswith("Your dog is called Bramo.")
            answers = await client.batch([prompt] * 6, 2, temperature=0, max_new_tokens=16)
            assert {answer.text for answer in answers} == {one.text}

    asyncio.run(run())


def test_who_leaves_ends_the_request_at_the_cluster(tiny_cluster: Cluster, client: Client) -> None:
    params = {"max_new_tokens": 30_000, "ignore_eos": True}
    stream = client.stream("The garden", **params)
    next(stream)
    stream.close()  # type: ignore[attr-defined]

    async def leave() -> None:
        async with AsyncClient(tiny_cluster.local.url) as other:
            updates = other.stream("The river", **params)
            await anext(updates)
            task = asyncio.create_task(anext(updates))  # type: ignore[arg-type]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            whole = asyncio.create_task(other.generate("The road", rid="whole", **params))
            is_running = partial(tiny_cluster.total, "num_running")
            await asyncio.to_thread(wait_until, is_running, "a running request")
            whole.cancel()
            await asyncio.gather(whole, return_exceptions=True)

    asyncio.run(leave())
    tiny_cluster.wait_until_idle()


def test_an_abort_ends_a_stream_with_what_it_has(client: Client) -> None:
    stream = client.stream("The garden", rid="long", max_new_tokens=20_000, ignore_eos=True)
    next(stream)
    client.abort("long")
    *_, last = stream
    assert last.meta_info.finish_reason is not None
    assert last.meta_info.finish_reason.type == "abort" and last.text


def test_a_refusal_names_its_parameter(backend: HttpBackend, client: Client) -> None:
    with pytest.raises(InvalidCall) as raised:
        client.generate("x", temperature=-1)
    assert raised.value.param == "sampling_params.temperature" and raised.value.status == 400
    program = kvrelay.function(lambda s: s.__iadd__("x" + gen("a", top_p=3)))
    with pytest.raises(InvalidCall, match="top_p"):
        program.run(backend)


def test_a_server_without_a_template_is_told(
    pair_cluster: Cluster,
) -> None:
    words = r"no chat template.*chat_template="
    with Client(pair_cluster.local.url) as client, pytest.raises(LanguageError, match=words):
        HttpBackend(client).markers()


def test_a_chat_is_tokenized_as_its_template_writes_it(
    tiny_cluster: Cluster, tokenizer: Tokenizer
) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    expected = "<|bos|><|user|>Hi<|end|>"
    for opens, text in ((True, expected + "<|assistant|>"), (False, expected)):
        body = {"messages": messages, "add_generation_prompt": opens}
        answer = tiny_cluster.http.post("/tokenize", json=body).json()
        assert answer["tokens"] == tokenizer.encode(text, add_special_tokens=False).ids
        assert answer["count"] == len(answer["tokens"])
    for wrong in ({}, {"messages": messages, "prompt": "x"}, {"messages": []}):
        assert tiny_cluster.http.post("/tokenize", json=wrong).status_code == 400
