"""OpenAI's own Python package, unchanged, against a cluster with the embedded model."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tests.support.processes.clusters import Cluster, wait_until

MODEL = "tiny"
QUESTION = {
    "role": "user",
    "content": "My sister lives in Oslen. My dog is called Bramo. Where does my sister live?",
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}


class Person(BaseModel):
    name: str
    age: int


@pytest.fixture
def client(tiny_cluster: Cluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{tiny_cluster.local.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def ask(client: OpenAI, **given: object) -> ChatCompletion:
    body = {"model": MODEL, "messages": [QUESTION], "temperature": 0} | given
    return client.chat.completions.create(**body)  # type: ignore[call-overload]


def chunks(client: OpenAI, **given: object) -> list[ChatCompletionChunk]:
    return list(ask(client, stream=True, **given))  # type: ignore[arg-type]


def text_of(events: list[ChatCompletionChunk]) -> str:
    return "".join(c.choices[0].delta.content or "" for c in events if c.choices)


def test_models_are_listed_and_found(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL and client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("another/model")


def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = ask(client)
    (choice,) = answer.choices
    assert "Oslen" in (choice.message.content or "")
    assert choice.message.role == "assistant" and choice.message.tool_calls is None
    assert choice.finish_reason == "stop" and choice.logprobs is None
    assert answer.object == "chat.completion" and answer.model == MODEL
    usage = answer.usage
    assert usage is not None and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 0


def test_a_prompt_is_that_of_the_models_template(client: OpenAI, tiny_cluster: Cluster) -> None:
    text = f"<|system|>Be brief.<|end|><|user|>{QUESTION['content']}<|end|><|assistant|>"
    native = tiny_cluster.generate(text, max_new_tokens=20, ignore_eos=False)
    answer = ask(client, messages=[{"role": "developer", "content": "Be brief."}, QUESTION])
    assert answer.choices[0].message.content == native["text"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == native["meta_info"]["prompt_tokens"]


def test_a_repeated_prompt_tells_what_was_cached(client: OpenAI) -> None:
    def cached() -> int:
        usage = ask(client, max_tokens=1).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert wait_until(lambda: cached() > 0, "a hit")


def test_a_stream_is_the_same_answer(client: OpenAI) -> None:
    events = chunks(client, stream_options={"include_usage": True})
    first, last, usage = events[0], events[-2], events[-1]
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert [c.choices[0].finish_reason for c in events[:-2]] == [None] * (len(events) - 2)
    whole = ask(client)
    assert text_of(events) == whole.choices[0].message.content
    assert last.choices[0].finish_reason == "stop"
    assert not usage.choices and usage.usage is not None and whole.usage is not None
    assert usage.usage.completion_tokens == whole.usage.completion_tokens
    assert {c.id for c in events} == {first.id}


def test_usage_comes_with_every_event_if_it_is_asked_for(client: OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    events = chunks(client, stream_options=options)
    counts = [event.usage.completion_tokens for event in events if event.usage]
    assert len(counts) == len(events) >= 4 and counts == sorted(counts)
    assert ask(client).usage.completion_tokens == counts[-1] > 0  # type: ignore[union-attr]


def test_several_answers_have_their_own_seeds(client: OpenAI) -> None:
    def texts(seed: int) -> list[str | None]:
        answer = ask(client, n=3, temperature=1.5, seed=seed, max_tokens=12)
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return [c.message.content for c in answer.choices]

    assert texts(7) == texts(7) and len(set(texts(7))) == 3
    streamed = ["", "", ""]
    for event in chunks(client, n=3, temperature=1.5, seed=7, max_tokens=12):
        for choice in event.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts(7)


@pytest.mark.parametrize("is_stream", [False, True])
def test_logprobs_are_of_the_answers_tokens(client: OpenAI, is_stream: bool) -> None:
    if is_stream:
        choices = [c.choices[0] for c in chunks(client, logprobs=True, top_logprobs=2)]
        text = "".join(c.delta.content or "" for c in choices)
    else:
        choices = list(ask(client, logprobs=True, top_logprobs=2).choices)
        text = choices[0].message.content or ""
    entries = [e for c in choices if c.logprobs for e in c.logprobs.content or ()]
    shown = b"".join(bytes(e.bytes or ()) for e in entries).decode()
    assert shown.startswith(text) and shown.removeprefix(text).startswith("<|")  # the end token
    for entry in entries:
        assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob == entry.logprob
        assert entry.top_logprobs[0].token == entry.token


def test_stop_strings_end_an_answer(client: OpenAI) -> None:
    whole = ask(client).choices[0].message.content or ""
    stopped = ask(client, stop=["Osl"]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == whole.split("Osl")[0]
    cut = ask(client, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None and cut.usage.completion_tokens == 2


def test_content_may_come_in_parts_and_an_answer_may_go_on(client: OpenAI) -> None:
    parts = [{"type": "text", "text": QUESTION["content"]}]
    in_parts = ask(client, messages=[{"role": "user", "content": parts}])
    assert in_parts.choices[0].message.content == ask(client).choices[0].message.content
    begun = [QUESTION, {"role": "assistant", "content": "Your sister"}]
    gone_on = ask(client, messages=begun, extra_body={"continue_final_message": True})
    assert "Oslen" in (gone_on.choices[0].message.content or "")


def test_an_answer_is_parsed_into_a_pydantic_model(client: OpenAI) -> None:
    message = {"role": "user", "content": "Describe Mara, who is 31, as JSON."}
    parsed = client.chat.completions.parse(
        model=MODEL, messages=[message], response_format=Person, max_tokens=64, temperature=0
    )
    assert isinstance(parsed.choices[0].message.parsed, Person)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"regex": "(yes|no)"}, "(yes|no)"),
        ({"guided_choice": ["a.b", "c"]}, r"(a\.b|c)"),
        ({"structured_outputs": {"regex": "[xyz]{3}"}}, "[xyz]{3}"),
        ({"ebnf": 'root ::= "so" "!"'}, "so!"),
        ({"response_format": {"type": "json_object"}}, r"\{.*\}?"),
    ],
)
def test_grammars_of_sglang_and_vllm_hold(
    client: OpenAI, extra: dict[str, object], pattern: str
) -> None:
    answer = ask(client, extra_body=extra, max_tokens=32)
    assert re.fullmatch(pattern, answer.choices[0].message.content or "", re.DOTALL)


def test_tools_may_be_told_and_results_sent_back(client: OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"place": "Oslen"}'},
    }
    messages = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "call_1", "content": "Rain."},
    ]
    answer = ask(client, messages=messages, tools=[WEATHER], max_tokens=8)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_text_goes_on_with_its_logprobs(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=4, logprobs=2, echo=True, temperature=0
    )
    (choice,) = answer.choices
    assert choice.text.startswith("Once upon a time") and answer.usage is not None
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.token_logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == answer.usage.total_tokens
    assert logprobs.token_logprobs[0] is None and all(x <= 0 for x in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens[1:]) == choice.text  # the first one is the beginning of text
    offsets = logprobs.text_offset or []
    ends = itertools.pairwise([*offsets[1:], len(choice.text)])
    assert [choice.text[a:b] for a, b in ends] == logprobs.tokens[1:]


def test_prompts_are_scored_without_an_answer(client: OpenAI, tiny_cluster: Cluster) -> None:
    """As evaluations of likelihood do it."""
    asked = {"model": MODEL, "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = client.completions.create(prompt=["Once upon a time", "A dog"], **asked)
    for choice in answer.choices:
        body = {
            "text": ["Once upon a time", "A dog"][choice.index],
            "return_logprob": True,
            "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 0},
        }
        native = tiny_cluster.http.post("/generate", json=body).json()["meta_info"]
        expected = [logprob for logprob, _, _ in native["input_token_logprobs"]]
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == pytest.approx(expected, abs=1e-4)
    assert len(answer.choices) == 2


def test_texts_go_on_in_batches_and_in_streams(client: OpenAI) -> None:
    asked = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    prompts = ["Once upon a time", "The dog", "One day"]
    alone = [client.completions.create(prompt=p, **asked).choices[0].text for p in prompts]
    assert len(set(alone)) == 3
    batch = client.completions.create(prompt=prompts, n=2, **asked)
    assert [c.text for c in batch.choices] == [text for text in alone for _ in range(2)]
    streamed = [""] * 3
    reasons = [""] * 3
    for event in client.completions.create(prompt=prompts, stream=True, **asked):
        for choice in event.choices:
            streamed[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or ""
    assert streamed == alone and all(reasons)


def test_refusals_have_the_types_that_programs_catch(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, model="gpt-x")
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as too_long:
        ask(client, max_tokens=1 << 20)
    assert too_long.value.code == "context_length_exceeded"
    assert too_long.value.param == "max_tokens" and "max_tokens 1048576" in too_long.value.message
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, temperature=-1)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as image:
        ask(client, messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    assert image.value.param == "messages[0].content[0]"


def test_many_clients_wait_side_by_side(tiny_cluster: Cluster) -> None:
    async def run() -> list[str | None]:
        url = f"{tiny_cluster.local.url}/v1"
        async with AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=[QUESTION], temperature=0, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            whole = client.chat.completions.create(model=MODEL, messages=[QUESTION], temperature=0)
            texts = await asyncio.gather(*[one() for _ in range(8)])
            return [(await whole).choices[0].message.content, *texts]

    texts = asyncio.run(run())
    assert len(texts) == 9 and len(set(texts)) == 1 and texts[0]
