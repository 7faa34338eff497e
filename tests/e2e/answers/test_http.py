"""The HTTP contract of /generate and its companions, on a running cluster."""

from __future__ import annotations

import itertools
import json
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster, wait_until

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}


def post(cluster: Cluster, body: Any, path: str = "/generate") -> httpx.Response:
    return cluster.http.post(path, json=body)


def events(cluster: Cluster, body: dict[str, Any]) -> list[Any]:
    """Returns every `data:` payload of a stream; asserts that it ends with [DONE]."""
    with cluster.http.stream("POST", "/generate", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_has_all_its_fields(pair_cluster: Cluster) -> None:
    answer = post(pair_cluster, {"text": "abcabc", "sampling_params": GREEDY, "rid": "x"}).json()
    meta = answer["meta_info"]
    assert set(answer) == {"text", "output_ids", "meta_info", "error"}
    assert meta["id"] == "x" and meta["completion_tokens"] == len(answer["output_ids"]) == 6
    assert meta["finish_reason"] == {"type": "length", "length": 6}
    assert meta["attempts"] == 1 and meta["decode_node"] == "d0"
    assert "p0" in meta["route_reason"] and 0 < meta["ttft"] <= meta["e2e_latency"]


def test_a_stream_is_cumulative_and_ends_once(pair_cluster: Cluster) -> None:
    body = {"input_ids": prompt_of(40, 199, seed=20), "sampling_params": GREEDY}
    updates = events(pair_cluster, body)
    texts = [u["text"] for u in updates]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    reasons = [u["meta_info"]["finish_reason"] for u in updates]
    assert reasons[-1] is not None and not any(reasons[:-1])
    assert updates[-1]["output_ids"] == post(pair_cluster, body).json()["output_ids"]


def test_batches_and_n_keep_their_order(pair_cluster: Cluster) -> None:
    prompts = [prompt_of(n, 199, seed=21) for n in (5, 50, 20)]
    body = {"input_ids": prompts, "sampling_params": GREEDY | {"n": 2}, "rid": "b"}
    answers = post(pair_cluster, body).json()
    assert [a["meta_info"]["prompt_tokens"] for a in answers] == [5, 5, 50, 50, 20, 20]
    assert answers[0]["output_ids"] == answers[1]["output_ids"]
    assert answers[0]["meta_info"]["id"] == "b_0_0" and answers[5]["meta_info"]["id"] == "b_2_1"
    updates = events(pair_cluster, {"input_ids": prompts, "sampling_params": GREEDY})
    last = {u["index"]: u["output_ids"] for u in updates if u["meta_info"]["finish_reason"]}
    assert last == {i: answers[2 * i]["output_ids"] for i in range(3)}


def test_a_seed_repeats_and_n_differ(pair_cluster: Cluster) -> None:
    params = {"temperature": 1.5, "max_new_tokens": 12, "sampling_seed": 7, "n": 3}
    body = {"input_ids": prompt_of(30, 199, seed=22), "sampling_params": params}
    one, two = (post(pair_cluster, body).json() for _ in range(2))
    assert [a["output_ids"] for a in one] == [a["output_ids"] for a in two]
    assert len({tuple(a["output_ids"]) for a in one}) == 3


def test_stop_strings_and_stop_ids(pair_cluster: Cluster) -> None:
    prompt = prompt_of(33, 199, seed=23)

    def generate(num_tokens: int = 20, **params: Any) -> dict[str, Any]:
        no_end_token = {"logit_bias": {"2": -1e4}}  # whether it is ignored or not
        return pair_cluster.generate(prompt, max_new_tokens=num_tokens, **no_end_token, **params)

    whole = generate()
    ids = whole["output_ids"]
    texts = [generate(n)["text"] for n in range(1, 21)]
    stop_id = next(  # of a token with a text of its own
        ids[n] for n in range(4, 20) if texts[n] != texts[n - 1] and ids[n] not in ids[:n]
    )
    assert generate(stop_token_ids=[stop_id])["output_ids"] == ids, "ignore_eos ignores it"
    ending = {"stop_token_ids": [stop_id], "ignore_eos": False}
    cut = generate(**ending)
    assert cut["output_ids"] == ids[: ids.index(stop_id) + 1]
    with_it = generate(no_stop_trim=True, **ending)
    assert whole["text"].startswith(with_it["text"])
    assert with_it["text"].startswith(cut["text"]) and cut["text"] != with_it["text"]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop_id}
    word = whole["text"][2:5]
    stopped = generate(stop=[word])
    assert stopped["text"] == whole["text"][: whole["text"].index(word)]
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": word}
    kept = generate(stop=word, no_stop_trim=True)
    assert kept["text"] == stopped["text"] + word
    pattern = re.escape(word[:-1]) + "(?s:.)|never"
    matched = generate(stop_regex=pattern)
    assert matched["text"] == whole["text"][: whole["text"].index(word[:-1])]
    assert matched["meta_info"]["finish_reason"] == {"type": "stop", "matched": pattern}
    pair_cluster.wait_until_idle()


def test_prefill_only(pair_cluster: Cluster) -> None:
    prompt = prompt_of(40, 199, seed=24)
    first_id = pair_cluster.generate(prompt, max_new_tokens=1)["output_ids"][0]
    for stop_token_ids in ([], [first_id]):
        answer = pair_cluster.generate(prompt, max_new_tokens=0, stop_token_ids=stop_token_ids)
        assert (answer["text"], answer["output_ids"]) == ("", [])
        assert answer["meta_info"]["completion_tokens"] == 0
        assert answer["meta_info"]["finish_reason"] == {"type": "length", "length": 0}


def test_a_rid_may_be_used_again_at_once(pair_cluster: Cluster) -> None:
    """The earlier use may have been cut short, with its last tokens still on their way."""
    prompt = prompt_of(30, 199, seed=25)
    whole = pair_cluster.generate(prompt, max_new_tokens=40)
    body = {"input_ids": prompt, "rid": "again"}
    for length in (40, 5, 40):
        stop = {"stop": whole["text"][1:3]} if length == 5 else {}
        params = GREEDY | {"max_new_tokens": 40} | stop
        answer = post(pair_cluster, body | {"sampling_params": params}).json()
        assert answer["meta_info"]["id"] == "again"
        if not stop:
            assert answer["output_ids"] == whole["output_ids"]


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({}, "give text or input_ids"),
        ({"text": "a", "sampling_params": {"temprature": 1}}, "temprature"),
        ({"text": "a", "sampling_params": {"temperature": -1}}, "temperature"),
        ({"text": "a", "sampling_params": {"top_p": 0}}, "top_p"),
        ({"text": "a", "sampling_params": {"max_new_tokens": "3"}}, "max_new_tokens"),
        ({"text": "a", "sampling_params": {"top_k": 1 << 63}}, "top_k"),
        ({"text": "a", "sampling_params": {"stop_token_ids": [1 << 70]}}, "stop_token_ids"),
        ({"text": "a", "sampling_params": {"regex": "(?=a)b"}}, "lookahead"),
        ({"text": "a", "sampling_params": {"frequency_penalty": 2.5}}, "frequency_penalty"),
        ({"text": "a", "sampling_params": {"logit_bias": {"100000": 1}}}, "100000"),
        ({"text": "a", "sampling_params": {"min_new_tokens": 200}}, "min_new_tokens is 200"),
        ({"text": "a", "regex": "(a)\\1"}, "backreference"),
        ({"text": "a", "return_logprob": True, "logprob_start_len": 1}, "the prompt has 1 tokens"),
        ({"text": ["a", "b"], "rid": ["x", "x"]}, "twice"),
        ({"text": ["a", "b"], "rid": ["x"]}, "1 entries for 2 prompts"),
        ({"text": []}, "1 to"),
        ({"text": ""}, "empty"),
        ({"input_ids": [5, 100_000]}, "100000"),
        ({"input_ids": [1] * 4097}, "4097"),
        ({"input_ids": [1] * 10, "sampling_params": {"max_new_tokens": 5000}}, "5000"),
        ([1, 2], "object"),
    ],
)
def test_bad_requests_say_what_is_wrong(pair_cluster: Cluster, body: Any, word: str) -> None:
    response = post(pair_cluster, body)
    assert response.status_code == 400
    assert word in response.json()["error"]["message"]


def test_no_json_is_400_and_a_huge_body_413(pair_cluster: Cluster) -> None:
    for garbage in (b"{", b'{"text": "\xff"}', b"[" * 100_000):
        response = pair_cluster.http.post("/generate", content=garbage)
        assert response.status_code == 400, garbage[:20]
        assert "no JSON" in response.json()["error"]["message"]
    response = pair_cluster.http.post("/generate", content=b"x" * ((32 << 20) + 1))
    assert response.status_code == 413
    chunks = (b"x" * (1 << 20) for _ in range(33))  # of no announced length
    assert pair_cluster.http.post("/generate", content=chunks).status_code == 413


def test_a_running_rid_is_refused(pair_cluster: Cluster) -> None:
    rid = uuid.uuid4().hex
    params = {"max_new_tokens": 1500, "ignore_eos": True}
    body = {"text": "abc", "rid": rid, "sampling_params": params, "stream": True}
    with pair_cluster.http.stream("POST", "/generate", json=body) as response:
        lines = response.iter_lines()  # kept: its end would close the stream
        next(lines)
        second = httpx.post(f"{pair_cluster.local.url}/generate", json=body | {"stream": False})
        flushed = httpx.post(f"{pair_cluster.local.url}/flush_cache")
    assert second.status_code == 400 and rid in second.json()["error"]["message"]
    assert flushed.status_code == 400
    pair_cluster.wait_until_idle()


def test_the_companions(pair_cluster: Cluster) -> None:
    http = pair_cluster.http
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 200
    assert http.get("/health_generate").status_code == 200
    info = http.get("/get_model_info").json()
    assert info == http.get("/model_info").json() and info["is_generation"]
    server = http.get("/get_server_info").json()
    assert server["page_size"] == 16
    assert [n["name"] for n in server["nodes"]] == ["d0", "p0"]
    assert server["max_total_num_tokens"] == 32768
    wait_until(lambda: http.get("/flush_cache").status_code == 200, "a flush")


def test_stats_are_what_the_nodes_hold(pair_cluster: Cluster) -> None:
    pair_cluster.flush()
    pair_cluster.generate(prompt_of(160, 199, seed=30), max_new_tokens=17)
    pair_cluster.settle()

    def stats() -> dict[str, Any]:
        return dict(pair_cluster.http.get("/admin/cache/stats").json())

    wait_until(lambda: stats()["cluster"]["unique_owned_pages"] == 11, "ownership")
    nodes = stats()["nodes"]
    assert nodes["p0"]["owned_pages"] == nodes["p0"]["pages"]["cached"] == 10
    assert nodes["d0"]["owned_pages"] == nodes["d0"]["pages"]["cached"] == 11
    assert stats()["cluster"]["duplicate_owned_pages"] == 10


def test_many_clients_stream_at_once(pair_cluster: Cluster) -> None:
    bodies = [
        {"input_ids": prompt_of(10 + i, 199, seed=40), "sampling_params": GREEDY} for i in range(24)
    ]
    with ThreadPoolExecutor(24) as pool:
        streams = list(pool.map(lambda body: events(pair_cluster, body), bodies))
    assert all(s[-1]["meta_info"]["completion_tokens"] == 6 for s in streams)
