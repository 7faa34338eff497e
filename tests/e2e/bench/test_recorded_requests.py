"""Requests as load generators send them, and what these read of the answers.

The bodies are those that the generators named in recorded_requests.json have sent, with shorter
prompts. The generators themselves run in `make verify` (tests/e2e/load).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes.clusters import Cluster

RECORDED: dict[str, Any] = json.loads(
    Path(__file__).with_name("recorded_requests.json").read_text(encoding="utf-8")
)
NUM_TOKENS = 8


def events(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    """Sends a request of this name; the data of its events, of which the last is [DONE]."""
    path, body, headers = RECORDED[name]
    reply = cluster.http.post(path, json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    given = [value for key, value in headers.items() if key.lower() == "x-request-id"]
    assert not given or reply.headers["X-Request-Id"] == given[0]
    *parts, end, rest = reply.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_generate(tiny_cluster: Cluster) -> None:
    """Every event has text and a count that grows."""
    found = events(tiny_cluster, "sglang.bench_serving 0.5.6, sglang")
    counts = [event["meta_info"]["completion_tokens"] for event in found]
    assert counts == sorted(counts) and counts[-1] == NUM_TOKENS
    assert found[-1]["text"]


@pytest.mark.parametrize("name", [name for name in RECORDED if "oai" in name])
def test_every_event_has_a_choice_where_no_usage_was_asked_for(
    tiny_cluster: Cluster, name: str
) -> None:
    """SGLang's generator looks into the first choice of each event."""
    found = events(tiny_cluster, name)
    choices = [event["choices"][0] for event in found]
    assert any(choice.get("text") or choice.get("delta", {}).get("content") for choice in choices)


@pytest.mark.parametrize(
    "name", [name for name in RECORDED if "stream_options" in RECORDED[name][1]]
)
def test_the_usage_comes_last_and_alone(tiny_cluster: Cluster, name: str) -> None:
    """Others count what comes with a choice as a token, and the lengths by the usage."""
    *tokens, usage = events(tiny_cluster, name)
    assert all(event["choices"] for event in tokens) and usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] > 0
    ignores_end = RECORDED[name][1].get("ignore_eos", False)
    num_tokens = usage["usage"]["completion_tokens"]
    assert num_tokens == NUM_TOKENS if ignores_end else 0 < num_tokens <= NUM_TOKENS


def test_what_generators_ask_before_they_start(tiny_cluster: Cluster) -> None:
    """The name of the model, health and, of SGLang, information that is an object."""
    (model,) = tiny_cluster.http.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"
    assert tiny_cluster.http.get("/health").status_code == 200
    assert tiny_cluster.http.get("/get_server_info").json()["internal_states"] == []
    assert tiny_cluster.http.get("/metrics").status_code in (200, 501), "read where it is there"
