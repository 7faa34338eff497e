"""Sampling parameters and logprobs through a whole cluster, against transformers' logits."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedModel

from infra.models import EMBEDDED
from protocol.sampling import Sampling
from tests.support.engine.driving import prompt_of
from tests.support.engine.sampling_reference import adjusted, chosen
from tests.support.processes.clusters import Cluster, body_of

VOCAB_SIZE = 199
GREEDY = {"temperature": 0.0, "ignore_eos": True}
LogitsFunction = Callable[[Sequence[int]], list[float]]


def logits_of(model: PreTrainedModel) -> LogitsFunction:
    """Returns the logits of the token behind some ids."""

    @torch.inference_mode()
    def compute(ids: Sequence[int]) -> list[float]:
        return list(model(torch.tensor([list(ids)])).logits[0, -1].tolist())

    return compute


def expected_tokens(
    logits: LogitsFunction, prompt: list[int], sampling: Sampling, count: int
) -> list[int]:
    """Returns the answer, computed token by token without any cache."""
    ids = list(prompt)
    for _ in range(count):
        changed = adjusted(logits(ids), sampling, len(ids), ids)
        ids.append(chosen(changed, sampling, len(ids)))
    return ids[len(prompt) :]


def post(cluster: Cluster, body: dict[str, Any]) -> Any:
    response = cluster.http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture
def logits(random_model: tuple[Path, PreTrainedModel]) -> LogitsFunction:
    return logits_of(random_model[1])


PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4},
    {"frequency_penalty": 2.0},
    {"presence_penalty": 2.0},
    {"frequency_penalty": -1.0, "presence_penalty": 1.0, "repetition_penalty": 0.9},
    {"frequency_penalty": 1.0, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.02},
]


@pytest.mark.parametrize("params", PENALTIES)
def test_penalties(pair_cluster: Cluster, logits: LogitsFunction, params: dict[str, Any]) -> None:
    """The first token is chosen by the prefill node, the others by the decode node."""
    prompt = prompt_of(40, VOCAB_SIZE, seed=110)
    sampling = Sampling(**{"temperature": 0.0, **params}, seed=8, prompt_length=len(prompt))
    plain = Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=8,
    )
    expected = expected_tokens(logits, prompt, sampling, 30)
    assert expected != expected_tokens(logits, prompt, plain, 30), "the penalty changes nothing"
    answer = pair_cluster.generate(prompt, max_new_tokens=30, sampling_seed=8, **params)
    assert answer["output_ids"] == expected


def test_a_bias_forces_and_forbids_a_token(pair_cluster: Cluster) -> None:
    prompt = prompt_of(30, VOCAB_SIZE, seed=111)
    plain = pair_cluster.generate(prompt, max_new_tokens=12)["output_ids"]
    forced = pair_cluster.generate(prompt, max_new_tokens=12, logit_bias={"77": 100})
    assert forced["output_ids"] == [77] * 12
    without = pair_cluster.generate(
        prompt, max_new_tokens=12, logit_bias={str(token): -100 for token in set(plain)}
    )
    assert not set(without["output_ids"]) & set(plain)


def test_no_stop_before_the_least_length(pair_cluster: Cluster) -> None:
    prompt = prompt_of(30, VOCAB_SIZE, seed=112)
    stops = pair_cluster.generate(prompt, max_new_tokens=2)["output_ids"]
    at_once = pair_cluster.generate(
        prompt, max_new_tokens=60, stop_token_ids=stops, ignore_eos=False
    )
    assert len(at_once["output_ids"]) == 1
    every_other = [token for token in range(VOCAB_SIZE) if token != 50]
    for least in (1, 7):
        later = pair_cluster.generate(
            prompt, max_new_tokens=60, stop_token_ids=stops, min_new_tokens=least, ignore_eos=False
        )
        assert not set(later["output_ids"][:least]) & set(stops)
        left_one = pair_cluster.generate(
            prompt,
            max_new_tokens=60,
            stop_token_ids=every_other,
            min_new_tokens=least,
            ignore_eos=False,
        )
        assert left_one["output_ids"][:least] == [50] * least


@pytest.fixture(scope="module")
def embedded() -> LogitsFunction:
    torch.set_num_threads(1)
    return logits_of(LlamaForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval())


PROMPT = "<|user|>My dog is called Bramo. What is my dog called?<|end|><|assistant|>"
ASKED = {
    "return_logprob": True,
    "top_logprobs_num": 5,
    "token_ids_logprob": [9, 1000],
    "return_text_in_logprobs": True,
}


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 3, "sampling_seed": 4},
        {"temperature": 0.0, "repetition_penalty": 1.3, "logit_bias": {"9": 2.0}},
    ],
)
def test_logprobs_are_those_of_transformers(
    tiny_cluster: Cluster, embedded: LogitsFunction, params: dict[str, Any]
) -> None:
    """Logprobs are taken after penalties and temperature and before top_k, as SGLang reports
    them."""
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    prompt = tokenizer.encode(PROMPT).ids
    answer = post(tiny_cluster, body_of(PROMPT, max_new_tokens=8, **params) | ASKED)
    ids, meta = answer["output_ids"], answer["meta_info"]
    sampling = Sampling(
        temperature=params["temperature"],
        repetition_penalty=params.get("repetition_penalty", 1.0),
        logit_bias=tuple((int(t), b) for t, b in params.get("logit_bias", {}).items()),
    )
    assert [entry[1:] for entry in meta["output_token_logprobs"]] == [
        [token, tokenizer.decode([token], skip_special_tokens=False)] for token in ids
    ]
    for step, token in enumerate(ids):
        before = prompt + ids[:step]
        changed = torch.tensor(adjusted(embedded(before), sampling, len(before), before))
        expected = (changed / (sampling.temperature or 1.0)).log_softmax(-1)
        measured = meta["output_token_logprobs"][step]
        assert measured[0] == pytest.approx(float(expected[token]), abs=1e-3)
        top = meta["output_top_logprobs"][step]
        assert [entry[1] for entry in top] == expected.topk(5).indices.tolist()
        for logprob, other, _ in [*top, *meta["output_token_ids_logprobs"][step]]:
            assert logprob == pytest.approx(float(expected[other]), abs=1e-3)
        assert [entry[1] for entry in meta["output_token_ids_logprobs"][step]] == [9, 1000]
    assert meta["input_token_logprobs"] == meta["input_top_logprobs"] == []


def test_logprobs_grow_with_a_stream_and_end_with_a_stop_string(tiny_cluster: Cluster) -> None:
    whole = post(tiny_cluster, body_of(PROMPT, max_new_tokens=40) | ASKED)
    entries = whole["meta_info"]["output_token_logprobs"]
    body = body_of(PROMPT, max_new_tokens=40, stop="Bramo") | ASKED | {"stream": True}
    with tiny_cluster.http.stream("POST", "/generate", json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    updates = [json.loads(event) for event in events[:-1]]
    for update in updates:
        count = len(update["output_ids"])
        assert update["meta_info"]["output_token_logprobs"] == entries[:count]
        assert len(update["meta_info"]["output_top_logprobs"]) == count
    assert updates[-1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": "Bramo"}
    assert len(updates[-1]["output_ids"]) < 40


def test_each_prompt_of_a_batch_has_the_logprobs_it_asks_for(tiny_cluster: Cluster) -> None:
    params = {"temperature": 1.0, "sampling_seed": 3, "n": 2, "max_new_tokens": 4}
    body = {
        "text": [PROMPT, PROMPT, "Once"],
        "sampling_params": params | {"ignore_eos": True},
        "return_logprob": [True, False, True],
        "top_logprobs_num": [2, 0, 0],
    }
    answers = post(tiny_cluster, body)
    assert len(answers) == 6
    for i, answer in enumerate(answers):
        meta = answer["meta_info"]
        assert ("output_token_logprobs" in meta) == (i not in (2, 3))
        assert ("output_top_logprobs" in meta) == (i < 2)
        if "output_token_logprobs" in meta:
            assert [entry[1] for entry in meta["output_token_logprobs"]] == answer["output_ids"]
    assert [a["output_ids"] for a in answers[:2]] == [a["output_ids"] for a in answers[2:4]]
