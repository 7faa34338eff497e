"""Logprobs of prompts through real clusters are those of transformers: wherever a prompt is
computed, whatever is cached of it, and whoever dies meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedModel

from infra.models import EMBEDDED
from tests.support.engine.driving import prompt_of
from tests.support.processes.clusters import Cluster, body_of, start_cluster, wait_until
from tests.support.processes.scored_prompts import ASKED, check_meta, expected_logprobs

TEXT = "<|user|>My dog is called Bramo. " * 12 + "What is my dog called?<|end|><|assistant|>"


def ask(cluster: Cluster, prompt: str | list[int], start: int | None, **more: Any) -> Any:
    sampling = {"max_new_tokens": 4} | more.pop("sampling", {})
    body = body_of(prompt, **sampling) | ASKED | {"logprob_start_len": start} | more
    response = cluster.http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.fixture(scope="module")
def embedded() -> PreTrainedModel:
    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


def test_the_embedded_models_disaggregated_cold_and_warm(
    tiny_cluster: Cluster, embedded: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    """A cached prefix is computed again as far as it takes, and no farther."""
    prompt = tokenizer.encode(TEXT).ids
    expected = expected_logprobs(embedded, prompt)
    plain = tiny_cluster.generate(TEXT, max_new_tokens=4)["output_ids"]
    for start in (0, 1, 40, len(prompt) - 1, 0):
        answer = ask(tiny_cluster, TEXT, start, return_text_in_logprobs=True)
        check_meta(answer["meta_info"], prompt, expected, start)
        assert answer["output_ids"] == plain
        texts = [entry[2] for entry in answer["meta_info"]["input_token_logprobs"]]
        assert texts == [tokenizer.decode([i], skip_special_tokens=False) for i in prompt[start:]]
    assert ask(tiny_cluster, TEXT, len(prompt) - 1)["meta_info"]["cached_tokens"] > 0


def test_a_prompt_without_an_answer(
    tiny_cluster: Cluster, embedded: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode(TEXT).ids
    for start in (None, -1, 0):
        answer = ask(tiny_cluster, TEXT, start, sampling={"max_new_tokens": 0})
        assert (answer["text"], answer["output_ids"]) == ("", [])
        meta = answer["meta_info"]
        assert meta["finish_reason"] == {"type": "length", "length": 0}
        assert meta["output_token_logprobs"] == [] and meta["completion_tokens"] == 0
        check_meta(meta, prompt, expected_logprobs(embedded, prompt))
    tiny_cluster.wait_until_idle()


def test_temperature_penalties_and_biases_are_for_the_answer_alone(
    tiny_cluster: Cluster, embedded: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode(TEXT).ids
    params = {"temperature": 0.3, "repetition_penalty": 1.5, "logit_bias": {"9": 5.0}}
    answer = ask(tiny_cluster, TEXT, 0, sampling=params)
    check_meta(answer["meta_info"], prompt, expected_logprobs(embedded, prompt))


def test_batches_and_choices_have_each_their_own(
    tiny_cluster: Cluster, embedded: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    texts, starts = [TEXT, "Once upon a time", "A"], [30, 0, 0]
    params = {"temperature": 1.0, "sampling_seed": 3, "n": 2, "max_new_tokens": 2}
    body = ASKED | {"text": texts, "logprob_start_len": starts, "sampling_params": params}
    response = tiny_cluster.http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    answers = response.json()
    assert len(answers) == 6
    for i, answer in enumerate(answers):
        prompt = tokenizer.encode(texts[i // 2]).ids
        check_meta(answer["meta_info"], prompt, expected_logprobs(embedded, prompt), starts[i // 2])


def test_every_event_of_a_stream_has_all_of_them(
    tiny_cluster: Cluster, embedded: PreTrainedModel, tokenizer: Tokenizer
) -> None:
    prompt = tokenizer.encode(TEXT).ids
    expected = expected_logprobs(embedded, prompt)
    body = body_of(TEXT, max_new_tokens=64) | ASKED | {"logprob_start_len": 3, "stream": True}
    with tiny_cluster.http.stream("POST", "/generate", json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    updates = [json.loads(event) for event in events[:-1]]
    assert events[-1] == "[DONE]" and updates  # how many there are is the machine's affair
    for update in updates:
        check_meta(update["meta_info"], prompt, expected, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logprob_start_len": 5}, "logprob_start_len is 5; the prompt has 5 tokens"),
        ({"logprob_start_len": -2}, "logprob_start_len is -2"),
        ({"logprob_start_len": "0"}, "logprob_start_len"),
    ],
)
def test_what_is_no_position_is_refused(
    tiny_cluster: Cluster, changes: dict[str, Any], words: str
) -> None:
    body = body_of([5, 6, 7, 8, 9]) | {"return_logprob": True} | changes
    response = tiny_cluster.http.post("/generate", json=body)
    assert response.status_code == 400 and words in response.text


def test_long_prompts_in_chunks_and_a_route_that_knows_of_the_cap(
    pair_cluster: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    """Of 256 tokens, on a prefill node that has all pages already."""
    prompt = prompt_of(700, 199, seed=140)
    expected = expected_logprobs(random_model[1], prompt)
    pair_cluster.flush()
    pair_cluster.generate(prompt)
    meta = ask(pair_cluster, prompt, 500)["meta_info"]
    check_meta(meta, prompt, expected, 500)
    assert meta["cached_tokens"] == 499 and meta["transferred_pages"] == 1, "decode has the others"
    body = body_of(prompt) | {"return_logprob": True}
    for start, owned in ((-1, 43), (500, 31), (0, 0)):
        asked = body | {"logprob_start_len": start}
        explained = pair_cluster.http.post("/admin/route/explain", json=asked).json()
        assert [c["owned_pages"] for c in explained["candidates"]["prefill"]] == [owned]
        assert [c["owned_pages"] for c in explained["candidates"]["decode"]] == [43]
    check_meta(ask(pair_cluster, prompt, 0)["meta_info"], prompt, expected)
    owned_pages = {name: node["owned_pages"] for name, node in pair_cluster.settle().items()}
    assert owned_pages == {"p0": 43, "d0": 44}, "the answer's page, and no page twice"


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """One node that does all, in small chunks and a small pool."""
    cluster = start_cluster(
        tmp_path_factory, random_model[0], 0, 1, chunked_prefill_size="32", max_total_tokens="512"
    )
    yield cluster
    cluster.local.stop()


def test_on_one_node_beside_answers_that_give_way(
    alone: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    """Prompts and answers exceed the pool together."""
    prompts = [prompt_of(100, 199, seed=150 + i) for i in range(4)]
    metas: dict[int, Any] = {}

    def run(i: int) -> None:
        metas[i] = ask(alone, prompts[i], i, sampling={"max_new_tokens": 300})["meta_info"]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, prompt in enumerate(prompts):
        check_meta(metas[i], prompt, expected_logprobs(random_model[1], prompt), i)
        assert metas[i]["completion_tokens"] == 300
    alone.wait_until_idle()
    assert alone.counted("preemptions") > 0


@pytest.fixture(scope="module")
def mortal(
    tmp_path_factory: pytest.TempPathFactory, random_model: tuple[Path, PreTrainedModel]
) -> Iterator[Cluster]:
    """Two nodes of each role; each test kills one."""
    cluster = start_cluster(
        tmp_path_factory, random_model[0], 2, 2, chunked_prefill_size="16", lease_s="1.0"
    )
    yield cluster
    cluster.local.stop()


def test_a_prefill_node_that_dies_is_replaced_and_they_are_whole(
    mortal: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    """In the midst of a prompt of many chunks, whose first ones it has computed."""
    prompt = prompt_of(4000, 199, seed=160)  # it takes far longer than the news of its beginning
    metas: list[Any] = []
    thread = threading.Thread(target=lambda: metas.append(ask(mortal, prompt, 0)["meta_info"]))
    thread.start()

    def who_computes() -> str:
        loads = {name: node["load"]["counters"] for name, node in mortal.nodes().items()}
        return next((n for n, c in loads.items() if n[0] == "p" and c["computed_tokens"]), "")

    victim = wait_until(who_computes, "the first chunk")
    mortal.kill(victim)
    thread.join()
    assert metas and metas[0]["prefill_node"] != victim and metas[0]["attempts"] > 1
    check_meta(metas[0], prompt, expected_logprobs(random_model[1], prompt))


def test_they_stay_when_the_decode_node_dies(
    mortal: Cluster, random_model: tuple[Path, PreTrainedModel]
) -> None:
    """They came with the first token, and the next attempt does not bring them again."""
    prompt = prompt_of(60, 199, seed=161)
    body = body_of(prompt, max_new_tokens=2500, stream_interval=50) | ASKED
    body |= {"logprob_start_len": 5, "stream": True}
    metas: list[Any] = []
    with mortal.http.stream("POST", "/generate", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                metas.append(json.loads(line.removeprefix("data: "))["meta_info"])
                if len(metas) == 1:
                    mortal.kill(metas[-1]["decode_node"])
    assert metas[-1]["attempts"] == metas[0]["attempts"] + 1
    assert metas[-1]["completion_tokens"] == 2500
    expected = expected_logprobs(random_model[1], prompt)
    for meta in (metas[0], metas[-1]):
        check_meta(meta, prompt, expected, 5)
    assert metas[0]["input_token_logprobs"] == metas[-1]["input_token_logprobs"]
