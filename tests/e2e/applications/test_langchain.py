"""LangChain's own packages, unchanged: chains with the embedded model, tools and agents with models
that write what a script says, in the form of their family."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel, Field, SecretStr

from tests.support.coordinator.written_calls import WRITERS, Call
from tests.support.models.scripted import marker, scripted_model
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

QUESTION = "My sister lives in Oslen. My dog is called Bramo. Where does my sister live?"
CALLS: list[Call] = [("get_weather", {"city": "Oslo", "days": 2}), ("now", {})]
TEXT = "It rains in Oslo: 日本 👍."
MARA = '{"name": "Mara", "age": 31}'
FAMILIES = {"qwen2.5": "hermes", "llama3": "llama"}


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


@tool
def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"Rain in {city} for {days} days. {marker(1)}"


@tool
def now() -> str:
    """The time."""
    return f"Noon. {marker(1)}"


def model_at(cluster: Cluster, **given: Any) -> ChatOpenAI:
    common: dict[str, Any] = {"temperature": 0, "max_retries": 0, "model": "default"}
    key = SecretStr("none")
    return ChatOpenAI(base_url=f"{cluster.local.url}/v1", api_key=key, **common | given)


@pytest.fixture
def model(tiny_cluster: Cluster) -> ChatOpenAI:
    return model_at(tiny_cluster, max_completion_tokens=200)


@pytest.fixture(scope="module", params=FAMILIES)
def scripted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatOpenAI]:
    """Script 0 has calls, script 1 is a text, script 2 is JSON."""
    family: str = request.param
    scripts = [WRITERS[FAMILIES[family]][1](CALLS), TEXT, MARA]
    directory = scripted_model(tmp_path_factory.mktemp("scripted"), family, scripts)
    cluster = start_cluster(
        tmp_path_factory, directory, 1, 1, dtype="float32", max_total_tokens="16384"
    )
    yield model_at(cluster, max_completion_tokens=300)
    cluster.local.stop()


def ask(script: int) -> list[BaseMessage]:
    return [HumanMessage(f"{'Weather? ' * 40}{marker(script)}")]


def calls_of(message: BaseMessage) -> list[Call]:
    assert isinstance(message, AIMessage)
    return [(call["name"], call["args"]) for call in message.tool_calls]


def test_a_chain_answers_whole_and_in_pieces(model: ChatOpenAI) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    long = model.bind(max_completion_tokens=64, extra_body={"ignore_eos": True})
    chain: Runnable[dict[str, str], str] = prompt | long | StrOutputParser()
    whole = chain.invoke({"question": QUESTION})
    pieces = list(chain.stream({"question": QUESTION}))
    assert "Oslen" in whole and "".join(pieces) == whole
    assert sum(map(bool, pieces)) > 1


def test_pieces_come_to_an_event_loop(model: ChatOpenAI) -> None:
    async def run() -> tuple[str, str]:
        pieces = [str(piece.content) async for piece in model.astream(QUESTION)]
        return "".join(pieces), str((await model.ainvoke(QUESTION)).content)

    streamed, whole = asyncio.run(run())
    assert streamed == whole and "Oslen" in whole


def test_a_batch_has_the_answers_of_its_questions(model: ChatOpenAI) -> None:
    questions = [f"My dog is called {name}. What is my dog called?" for name in ("Bramo", "Milo")]
    alone = [model.invoke(question).content for question in questions]
    assert alone[0] != alone[1]
    assert [answer.content for answer in model.batch(questions)] == alone


def test_usage_tells_what_was_cached(model: ChatOpenAI) -> None:
    def cached() -> int:
        answer = model.invoke(QUESTION, max_completion_tokens=1)
        assert isinstance(answer, AIMessage) and answer.usage_metadata is not None
        return answer.usage_metadata["input_token_details"]["cache_read"]

    assert wait_until(lambda: cached() > 0, "a hit")
    chunks = list(model.stream(QUESTION, stream_usage=True))
    told = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert len(told) == 1 and told[0]["input_token_details"]["cache_read"] > 0
    assert told[0]["total_tokens"] == told[0]["input_tokens"] + told[0]["output_tokens"]


def test_what_the_api_adds_is_passed_on(model: ChatOpenAI) -> None:
    limited = model.bind(extra_body={"regex": "(yes|no)"}, logprobs=True, seed=7)
    answer = limited.invoke(QUESTION)
    assert answer.content in ("yes", "no")
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["logprobs"]["content"][0]["logprob"] <= 0


def test_a_chat_beyond_the_context_is_told_as_such(model: ChatOpenAI) -> None:
    with pytest.raises(ContextOverflowError):
        model.invoke("word " * 20_000)


def test_a_text_goes_on(tiny_cluster: Cluster) -> None:
    url, key = f"{tiny_cluster.local.url}/v1", SecretStr("none")
    llm = OpenAI(base_url=url, api_key=key, model="tiny", temperature=0, max_tokens=8)
    whole = llm.invoke("Once upon a time")
    assert whole and "".join(llm.stream("Once upon a time")) == whole


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of the openai package
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("strict", [None, True])
def test_an_answer_is_an_object_of_its_schema(
    model: ChatOpenAI, method: Literal["json_schema", "function_calling"], strict: bool | None
) -> None:
    person = model.with_structured_output(Person, method=method, strict=strict)
    assert isinstance(person.invoke("Describe Mara, who is 31."), Person)
    assert isinstance(list(person.stream("Describe Mara, who is 31."))[-1], Person)


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_an_object_is_read_where_the_model_would_write_something(
    scripted: ChatOpenAI, method: Literal["json_schema", "json_mode", "function_calling"]
) -> None:
    person = scripted.with_structured_output(Person, method=method)
    answer = person.invoke(ask(2))
    assert isinstance(answer, Person)
    assert method == "function_calling" or answer == Person(name="Mara", age=31)


def test_calls_are_read(scripted: ChatOpenAI) -> None:
    answer = scripted.bind_tools([get_weather, now]).invoke(ask(0))
    assert calls_of(answer) == CALLS and not answer.content
    assert answer.response_metadata["finish_reason"] == "tool_calls"


def test_streamed_calls_add_up(scripted: ChatOpenAI) -> None:
    chunks = list(scripted.bind_tools([get_weather, now]).stream(ask(0)))
    assert all(isinstance(chunk, AIMessageChunk) for chunk in chunks)
    together = chunks[0]
    for chunk in chunks[1:]:
        together += chunk
    assert calls_of(together) == CALLS and not together.content
    assert len({call["id"] for call in together.tool_calls}) == 2


@pytest.mark.parametrize("choice", ["any", "get_weather"])
def test_a_call_is_forced_where_the_model_would_write_text(
    scripted: ChatOpenAI, choice: str
) -> None:
    answer = scripted.bind_tools([get_weather, now], tool_choice=choice).invoke(ask(1))
    called = calls_of(answer)
    assert called and (choice == "any" or {name for name, _ in called} == {choice})


def test_an_agent_calls_tools_until_it_answers(scripted: ChatOpenAI) -> None:
    agent: Any = create_agent(scripted, tools=[get_weather, now])
    messages = agent.invoke({"messages": ask(0)})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "tool", "ai"]
    assert calls_of(messages[1]) == CALLS
    assert messages[2].content.startswith("Rain in Oslo for 2 days.")
    assert messages[-1].content == TEXT and not messages[-1].tool_calls


def test_an_agents_steps_and_tokens_are_streamed(scripted: ChatOpenAI) -> None:
    async def run() -> list[tuple[str, Any]]:
        agent: Any = create_agent(scripted, tools=[get_weather, now])
        modes = ["updates", "messages"]
        return [e async for e in agent.astream({"messages": ask(0)}, stream_mode=modes)]

    events = asyncio.run(run())
    nodes = [node for mode, update in events if mode == "updates" for node in update]
    assert nodes == ["model", "tools", "tools", "model"]
    pieces = [told[0] for mode, told in events if mode == "messages"]
    texts = [p.content for p in pieces if isinstance(p, AIMessageChunk)]
    assert "".join(texts) == TEXT
