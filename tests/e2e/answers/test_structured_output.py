"""Answers that follow grammars, through a whole cluster: prefill nodes sample their first tokens,
decode nodes the others."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from infra.models import EMBEDDED
from tests.support.models.json_schemas import UNSUPPORTED, is_valid, schemas_by_group
from tests.support.processes.clusters import Cluster, start_cluster, wait_until

TUTORIAL = r'{ "name": "[^"]+", "age": \d+, "job": "[^"]+", "hobby": \[.*\] }'
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SUM = """
root ::= "total " sum
sum  ::= part (" + " part){1,4}
part ::= [1-9] [0-9]{0,3} | "(" sum ")"
"""
CALL = {
    "structures": [
        {"begin": "<call=add>", "schema": {"type": "array", "maxItems": 2}, "end": "</call>"}
    ],
    "triggers": ["<call="],
}
NUMBERED_LINES = r"(line \d{1,3}: [a-z ]{3,30}\n){20}"
NUMBERS = {"type": "array", "items": {"type": "integer"}, "minItems": 60, "maxItems": 90}


def post(cluster: Cluster, body: dict[str, Any]) -> dict[str, Any]:
    response = cluster.http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_the_tutorials_request_is_answered(tiny_cluster: Cluster) -> None:
    """The regular expression stands at the top level, and begins with a bare brace."""
    answer = post(tiny_cluster, {"text": "Describe a person as JSON. ", "regex": TUTORIAL})
    assert re.fullmatch(TUTORIAL, answer["text"])
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"
    assert answer["meta_info"]["completion_tokens"] <= 128
    assert answer["meta_info"]["prefill_node"] != answer["meta_info"]["decode_node"]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("max_new_tokens", [24, 40, 200])
def test_documents_follow_their_schema(
    tiny_cluster: Cluster, temperature: float, max_new_tokens: int
) -> None:
    """However little room there is, as long as some document fits."""
    for seed in range(4):
        answer = tiny_cluster.generate(
            "A person: ",
            json_schema=json.dumps(PERSON),
            temperature=temperature,
            sampling_seed=seed,
            max_new_tokens=max_new_tokens,
        )
        jsonschema.validate(json.loads(answer["text"]), PERSON)
        assert answer["meta_info"]["finish_reason"]["type"] == "stop"


def test_an_ebnf_is_followed(tiny_cluster: Cluster) -> None:
    answer = tiny_cluster.generate("2 + 2 = ", ebnf=SUM, temperature=1.0, max_new_tokens=40)
    text = answer["text"]
    assert re.fullmatch(r"total [0-9()+ ]+", text)
    assert isinstance(eval(text.removeprefix("total ")), int)  # of digits, signs and brackets


def test_a_tag_of_a_structure_follows_its_schema(tiny_cluster: Cluster) -> None:
    """A bias for the trigger makes the model begin a tag."""
    prompt = "<call=add>[1,2]</call> " * 8
    answer = tiny_cluster.generate(prompt, structural_tag=CALL, max_new_tokens=60)
    called = re.findall(r"<call=(.*?)</call>", answer["text"], re.DOTALL)
    for call in called:
        assert call.startswith("add>")
        assert len(json.loads(call.removeprefix("add>"))) <= 2


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ({"regex": "a(?=b)"}, "lookahead"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": "(a"}, "unterminated"),
        ({"json_schema": "{"}, "no JSON"),
        ({"json_schema": '{"type": "strin"}'}, "strin"),
        ({"ebnf": "root ::= other"}, "other"),
        ({"structural_tag": "[]"}, "object"),
        ({"regex": "a", "ebnf": 'root ::= "a"'}, "one grammar"),
    ],
)
def test_an_invalid_grammar_is_refused_with_its_reason(
    tiny_cluster: Cluster, grammar: dict[str, str], reason: str
) -> None:
    for body in ({"text": "a", **grammar}, {"text": "a", "sampling_params": grammar}):
        response = tiny_cluster.http.post("/generate", json=body)
        assert response.status_code == 400, response.text
        assert reason in response.text
        assert all(key in response.text for key in grammar)


def test_unset_grammars_change_nothing(tiny_cluster: Cluster) -> None:
    unset: dict[str, Any] = {"regex": "", "json_schema": None, "ebnf": "", "structural_tag": None}
    plain = tiny_cluster.generate("The morning was", max_new_tokens=8)
    same = tiny_cluster.generate("The morning was", max_new_tokens=8, **unset)
    assert same["output_ids"] == plain["output_ids"]


def test_neighbours_without_a_grammar_are_not_disturbed(tiny_cluster: Cluster) -> None:
    """In mixed batches each answer is what it is alone."""
    params = [
        {"regex": r"\d{20,30}", "sampling_seed": 3, "temperature": 1.0},
        {"sampling_seed": 4, "temperature": 1.0},
        {"json_schema": json.dumps(PERSON), "frequency_penalty": 0.5},
        {"presence_penalty": 0.5},
    ] * 3
    alone = [tiny_cluster.generate("The river", max_new_tokens=40, **p) for p in params[:4]] * 3
    with ThreadPoolExecutor(len(params)) as pool:
        together = list(
            pool.map(lambda p: tiny_cluster.generate("The river", max_new_tokens=40, **p), params)
        )
    assert [a["output_ids"] for a in together] == [a["output_ids"] for a in alone]


def test_n_answers_stops_and_logprobs(tiny_cluster: Cluster) -> None:
    body = {
        "text": "A number: ",
        "return_logprob": True,
        "top_logprobs_num": 3,
        "sampling_params": {"regex": r"[0-9]{5}x[0-9]{5}", "n": 3, "stop": "x", "temperature": 1.0},
    }
    response = tiny_cluster.http.post("/generate", json=body)
    for answer in json.loads(response.text, parse_constant=lambda name: pytest.fail(name)):
        assert re.fullmatch("[0-9]{5}", answer["text"])
        assert answer["meta_info"]["finish_reason"]["matched"] == "x"
        for logprob, _, _ in answer["meta_info"]["output_token_logprobs"]:
            assert logprob <= 0


def test_an_end_is_not_sampled_before_the_grammar_allows_it(tiny_cluster: Cluster) -> None:
    """Whatever the client makes of end tokens; and where only an end is allowed, it comes."""
    for extra in ({"ignore_eos": True}, {"ignore_eos": False}, {"min_new_tokens": 30}):
        answer = tiny_cluster.generate("Say it", regex="(ab){8}", max_new_tokens=60, **extra)
        assert answer["text"] == "ab" * 8
        assert answer["meta_info"]["finish_reason"]["type"] == "stop"


def stream_through_a_kill(cluster: Cluster, num_streams: int) -> None:
    """Kills the decode node of the stream that was heard of last when half of them have begun."""
    params = [
        {
            "temperature": 1.0,
            "sampling_seed": i,
            "max_new_tokens": 600,
            **({"regex": NUMBERED_LINES} if i % 2 else {"json_schema": NUMBERS}),
        }
        for i in range(num_streams)
    ]
    expected = [cluster.generate(f"Text {i}", **p)["output_ids"] for i, p in enumerate(params)]
    nodes: dict[int, str] = {}  # of the streams that have begun, in this order

    def stream(i: int) -> dict[str, Any]:
        body = {"text": f"Text {i}", "sampling_params": params[i], "stream": True}
        with cluster.http.stream("POST", "/generate", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    last = json.loads(line.removeprefix("data: "))
                    nodes.setdefault(i, last["meta_info"]["decode_node"])
        return dict(last)

    with ThreadPoolExecutor(num_streams) as pool:
        streams = [pool.submit(stream, i) for i in range(num_streams)]
        wait_until(lambda: len(nodes) >= num_streams // 2, "streams on their way")
        cluster.kill(list(nodes.values())[-1])
        answers = [future.result() for future in streams]
    assert [answer["output_ids"] for answer in answers] == expected
    assert any(answer["meta_info"]["attempts"] > 1 for answer in answers)
    for answer, param in zip(answers, params, strict=True):
        if "regex" in param:
            assert re.fullmatch(NUMBERED_LINES, answer["text"])
        else:
            jsonschema.validate(json.loads(answer["text"]), NUMBERS)
    cluster.restart_killed_nodes()
    cluster.wait_until_idle()


def test_a_killed_decode_node_changes_no_token(tiny_cluster: Cluster) -> None:
    stream_through_a_kill(tiny_cluster, 8)


@pytest.mark.verify
def test_fifty_streams_survive_a_killed_decode_node(tiny_cluster: Cluster) -> None:
    stream_through_a_kill(tiny_cluster, 50)


@pytest.mark.verify
def test_ranks_of_a_node_agree(tmp_path_factory: pytest.TempPathFactory) -> None:
    cluster = start_cluster(
        tmp_path_factory, EMBEDDED, 1, 1, dtype="float32", tensor_parallel_size="2"
    )
    try:
        answer = cluster.generate("A person: ", json_schema=json.dumps(PERSON), max_new_tokens=40)
        jsonschema.validate(json.loads(answer["text"]), PERSON)
    finally:
        cluster.local.stop()


@pytest.mark.verify
def test_the_embedded_model_writes_valid_documents_for_300_schemas(tiny_cluster: Cluster) -> None:
    """Five of each that is supported; `tests/support/json_schemas.py` lists the others."""
    refused = 0

    def write(schema: Any, seed: int) -> bool:
        sampling = {"json_schema": json.dumps(schema), "sampling_seed": seed, "temperature": 1.0}
        params = {"max_new_tokens": 300, **sampling}
        body = {"text": "A document: ", "sampling_params": params}
        response = tiny_cluster.http.post("/generate", json=body)
        if response.status_code == 400:
            return False
        answer = response.json()
        assert answer["meta_info"]["finish_reason"]["type"] == "stop", (schema, answer["text"])
        assert is_valid(schema, answer["text"]), (schema, answer["text"])
        return True

    with ThreadPoolExecutor(32) as pool:
        for schemas in schemas_by_group().values():
            asked = [(schema, seed) for schema in schemas for seed in range(5)]
            refused += list(pool.map(lambda each: write(*each), asked)).count(False)
    assert refused == 5 * sum(UNSUPPORTED.values())
