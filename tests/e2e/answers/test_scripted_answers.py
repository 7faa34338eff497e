"""A scripted model through a whole cluster: its script streams as it is written, calls and all."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.answers.model_form import model_form
from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.conversation.message import Tool, ToolChoice, message_of
from tests.support.coordinator.written_calls import TOOLS, WRITERS, Call, calls_of, streamed
from tests.support.models.scripted import marker, scripted_model
from tests.support.processes.clusters import Cluster, body_of, start_cluster

CALLS: list[Call] = [("get_weather", {"city": "Oslo", "days": 2}), ("now", {})]
SCRIPTS = [WRITERS["a list of mistral"][1](CALLS), "It rains in Oslo: 日本 👍."]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_model(tmp_path_factory.mktemp("scripted"), "mistral", SCRIPTS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Cluster]:
    made = start_cluster(tmp_path_factory, model, 1, 1, dtype="float32", max_total_tokens="16384")
    yield made
    made.local.stop()


def texts(cluster: Cluster, prompt: str, **sampling: Any) -> list[str]:
    """Returns the text of an answer after each step."""
    params = {"max_new_tokens": 200, "ignore_eos": False, "skip_special_tokens": False} | sampling
    body = body_of(prompt, **params) | {"stream": True}
    with cluster.http.stream("POST", "/generate", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert events[-1]["meta_info"]["finish_reason"]["type"] == "stop"
    assert events[-1]["meta_info"]["transferred_pages"] > 0
    return [event["text"] for event in events]


@pytest.mark.parametrize("script", range(len(SCRIPTS)))
def test_a_script_streams_as_it_is_written(cluster: Cluster, script: int) -> None:
    """The prompt is computed on one node, and the answer on another. The last marker counts."""
    others = "".join(marker(other) for other in range(len(SCRIPTS)))
    seen = texts(cluster, f"[INST] {others} {'Hello. ' * 40}{marker(script)}[/INST]")
    assert seen[-1] == SCRIPTS[script]
    assert all(later.startswith(text) for text, later in itertools.pairwise(seen))


def test_streamed_calls_are_read_as_they_come(cluster: Cluster, model: Path) -> None:
    form = model_form(model, Tokenizer(model).model, CoordinatorConfig())
    assert form.needs_special_tokens
    seen = ["", *texts(cluster, f"[INST] {'Weather? ' * 40}{marker(0)}[/INST]")]
    pieces = [later[len(text) :] for text, later in itertools.pairwise(seen)]
    assert calls_of(message_of(streamed(form, pieces))) == CALLS


def test_a_grammar_makes_the_model_call_where_its_script_would_not(
    cluster: Cluster, model: Path
) -> None:
    form = model_form(model, Tokenizer(model).model, CoordinatorConfig())
    strict = [Tool(tool.name, "", tool.parameters) for tool in TOOLS]
    made = form.grammar(strict, ToolChoice("named", "get_weather"), "off")
    assert made is not None
    kind, source = made
    seen = texts(cluster, f"[INST] {'Weather? ' * 40}{marker(1)}[/INST]", **{kind: source})
    [(name, arguments)] = calls_of(message_of(streamed(form, [seen[-1]])))
    assert name == "get_weather" and isinstance(arguments["city"], str)
