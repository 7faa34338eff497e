"""SGLang's own front end, unchanged, against a cluster: every primitive gives what it promises.

What a program gives is compared with what the same prompt gives over HTTP, or with what its
documentation says. The programs run in an environment of their own, which `make verify` makes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.e2e.clients.environment import PYTHON, needs_front_end
from tests.support.processes.clusters import Cluster

pytestmark = [pytest.mark.verify, needs_front_end]

PROGRAMS = Path(__file__).with_name("programs.py")
TIMEOUT_S = 60.0
QUESTION = "<|user|>My dog is called Bramo. What is my dog called?<|end|><|assistant|>"
ANSWER = "Your dog is called Bramo."
NAMES = ["Bramo", "Tavik", "Zorin", "Milo", "Pelka", "Oslen"]

Run = Callable[[str], Any]


@pytest.fixture
def run(tiny_cluster: Cluster) -> Run:
    """Runs one of the programs against the cluster; what it gave."""

    def run_program(name: str) -> Any:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        ended = subprocess.run(
            [PYTHON, PROGRAMS, tiny_cluster.local.url, name],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env=environment,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout.splitlines()[-1])

    return run_program


def continued(cluster: Cluster, prompt: str, num_tokens: int, **params: Any) -> str:
    """Returns the text that follows a prompt, asked for over HTTP."""
    text: str = cluster.generate(prompt, max_new_tokens=num_tokens, **params)["text"]
    return text


def test_gen(run: Run, tiny_cluster: Cluster) -> None:
    """gen: the text that the server answers, and its meta_info"""
    given = run("gen_text")
    assert given["answer"] == ANSWER
    assert given["text"] == QUESTION + ANSWER
    assert given["meta_info"]["finish_reason"] == {"type": "stop", "matched": 5}


def test_gen_max_tokens(run: Run, tiny_cluster: Cluster) -> None:
    """gen with max_tokens and ignore_eos"""
    given = run("gen_max_tokens")
    assert given["answer"] == continued(tiny_cluster, "The garden", 5)
    assert given["meta_info"]["completion_tokens"] == 5


def test_gen_min_tokens(run: Run) -> None:
    """gen with min_tokens"""
    given = run("gen_min_tokens")
    assert given["meta_info"]["completion_tokens"] >= 12, "without it there are 10"
    assert given["answer"].startswith(ANSWER)


def test_gen_stop(run: Run) -> None:
    """gen with stop: ends before the string"""
    given = run("gen_stop")
    assert given["answer"] == ANSWER[: ANSWER.index("Bra")]
    assert given["meta_info"]["finish_reason"] == {"type": "stop", "matched": "Bra"}


def test_gen_stop_token_ids(run: Run) -> None:
    """gen with stop_token_ids"""
    given = run("gen_stop_token_ids")
    assert given["meta_info"]["finish_reason"] == {"type": "stop", "matched": 5}


def test_gen_stop_regex(run: Run) -> None:
    """gen with stop_regex"""
    given = run("gen_stop_regex")
    assert given["answer"] == ANSWER.rstrip(".")
    assert given["meta_info"]["finish_reason"] == {"type": "stop", "matched": "[.]"}


def test_gen_sampling_params(run: Run) -> None:
    """gen with temperature, top_p, top_k, min_p and penalties"""
    given = run("gen_sampling_params")
    assert given["answer"] and given["meta_info"]["completion_tokens"] <= 16


def test_gen_regex(run: Run) -> None:
    """gen with regex"""
    assert re.fullmatch("(12|34)-[a-c]{3}", run("gen_regex")["answer"])


def test_gen_json_schema(run: Run) -> None:
    """gen with json_schema"""
    properties = {"name": {"type": "string"}, "age": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"]}
    jsonschema.validate(json.loads(run("gen_json_schema")["answer"]), schema)


def test_gen_dtypes(run: Run) -> None:
    """gen_int, gen_string, gen with dtype float and bool"""
    given = run("gen_dtypes")
    assert re.fullmatch(r"[-+]?\d+", given["int"].strip()), "int() would take it"
    assert re.fullmatch(r'"[\w\s]*"?', given["str"])
    assert re.fullmatch(r"[-+]?\d*\.?\d*", given["float"].strip()) and given["float"].strip()
    assert given["bool"] in ("True", "False")


@pytest.mark.parametrize("name", ["select", "gen_choices", "select_greedy", "select_unconditional"])
def test_select(run: Run, name: str) -> None:
    """select, and gen with choices, in the modes of SGLang"""
    given = run(name)
    assert given["answer"] == "Bramo"
    entries = given["meta_info"]["input_token_logprobs"]
    assert len(entries) == 3 and all(e[0] is not None for choice in entries for e in choice)


def test_an_agent_loop(run: Run) -> None:
    """a program that branches on what it selects, and uses what it generates in its text"""
    given = run("agent_loop")
    actions, arguments = given["actions"], given["arguments"]
    assert 1 <= len(actions) <= 4 and set(actions) <= {"Search", "Finish"}
    for i, (action, argument) in enumerate(zip(actions, arguments, strict=True)):
        assert f"Action {i}: {action} [{argument}].\n" in given["text"]
        assert (f"nothing about {argument}." in given["text"]) or action == "Finish"


def test_json_by_parts(run: Run) -> None:
    """a JSON document of constants and typed values, in a var_scope"""
    document = json.loads(run("json_by_parts"))
    assert isinstance(document["name"], str) and isinstance(document["population"], int)


def test_fork_and_gather(run: Run, tiny_cluster: Cluster) -> None:
    """fork, and join that gathers variables"""
    given = run("fork_and_gather")
    assert given["text"] == QUESTION
    prompts = [f"{QUESTION}Number {i}:" for i in range(3)]
    assert given["parts"] == [continued(tiny_cluster, prompt, 4) for prompt in prompts]


@pytest.mark.parametrize("name", ["fork_and_append", "fork_and_append_pages"])
def test_fork_and_append(run: Run, tiny_cluster: Cluster, name: str) -> None:
    """fork, and join that appends texts, with and without parallel encoding"""
    given = run(name)
    parts = [
        f"Number {i}:" + continued(tiny_cluster, f"{QUESTION}Number {i}:", 4) for i in range(2)
    ]
    joined = QUESTION + "".join(parts)
    assert given["end"] == continued(tiny_cluster, joined, 4)
    assert given["text"] == joined + given["end"]


def test_copy(run: Run, tiny_cluster: Cluster) -> None:
    """copy: an aside leaves the text alone"""
    given = run("copy")
    assert given["aside"] == [continued(tiny_cluster, QUESTION + "Your", 4)]
    assert given["text"] == QUESTION + given["answer"] == QUESTION + ANSWER


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("roles", "SYSTEM:You answer in short.\nUSER:My dog"),
        ("roles_of_a_named_template", "<|start_header_id|>system<|end_header_id|>\n\nYou answer"),
    ],
)
def test_roles(run: Run, tiny_cluster: Cluster, name: str, beginning: str) -> None:
    """system, user and assistant, with the template guessed from model_path and with a named one"""
    given = run(name)
    assert given["text"].startswith(beginning)
    assert [m["role"] for m in given["messages"]] == ["system", *["user", "assistant"] * 2]
    first, second = given["answers"]
    assert given["messages"][2]["content"] == first.lstrip()
    assert given["messages"][4]["content"] == second.lstrip()
    before, _, _ = given["text"].partition(first)
    end = {"stop": "<|eot_id|>"} if "eot" in beginning else {"stop": "ASSISTANT:"}
    assert first == continued(tiny_cluster, before, 8, ignore_eos=False, **end)


def test_var_scope_and_bind(run: Run) -> None:
    """var_scope, and bind of arguments"""
    given = run("var_scope_and_bind")
    assert given["scope"] == ANSWER + "<|end|>"
    assert given["text"] == QUESTION + given["scope"]


@pytest.mark.parametrize("name", ["run_batch", "run_batch_as_generator"])
def test_run_batch(run: Run, name: str) -> None:
    """run_batch, at once and as a generator"""
    assert run(name) == [f"Your dog is called {name}." for name in NAMES]


def test_cache(run: Run) -> None:
    """cache: the common beginning is sent before the calls, and found by them"""
    given = run("cache")
    assert given["answer"] == ANSWER
    assert given["meta_info"]["cached_tokens"] > 32


def test_stream(run: Run, tiny_cluster: Cluster) -> None:
    """stream: text_iter of the whole text"""
    given = run("stream")
    assert "".join(given["pieces"]) == given["text"]
    assert given["text"] == QUESTION + continued(tiny_cluster, QUESTION, 300) + "<|end|>"


def test_stream_of_a_variable(run: Run) -> None:
    """stream: text_iter of a variable"""
    given = run("stream_of_a_variable")
    assert "".join(given["pieces"]) == given["answer"]
    assert given["answer"].startswith(ANSWER)


def test_stream_async(run: Run) -> None:
    """stream: text_async_iter with meta_info"""
    given = run("stream_async")
    assert "".join(given["pieces"]) == given["answer"] and given["answer"].startswith(ANSWER)
    assert len(set(given["ids"])) == 1


def test_return_logprob(run: Run) -> None:
    """return_logprob with logprob_start_len, top_logprobs_num and return_text_in_logprobs"""
    meta = run("return_logprob")["meta_info"]
    entries = meta["input_token_logprobs"]
    assert len(entries) == meta["prompt_tokens"] and entries[0][0] is None
    assert QUESTION.endswith("".join(text for _, _, text in entries[1:]))
    assert len(meta["output_top_logprobs"]) == meta["completion_tokens"] == 4
    assert meta["output_top_logprobs"][0][0] == meta["output_token_logprobs"][0]


def test_server_info(run: Run, tiny_cluster: Cluster) -> None:
    """flush_cache and get_server_info"""
    assert run("server_info")["port"] == int(tiny_cluster.local.url.rpartition(":")[2])


def test_an_error(run: Run) -> None:
    """a refused request: the program gets the server's words"""
    assert "temperature" in run("an_error")["error"]["error"]["message"]
