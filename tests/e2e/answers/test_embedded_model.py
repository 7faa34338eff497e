"""The embedded model through the whole cluster: a wrong KV page would show as a wrong name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedModel

from infra.models import EMBEDDED
from tests.support.engine.driving import prompt_of
from tests.support.models.reference import reference_tokens
from tests.support.processes.clusters import Cluster

VOCAB_SIZE = 2048
CHATTER = (
    "The morning was quiet and the garden was full of birds. The old clock stood near the window "
    "for a long time. After the rain the road was narrow and dusty. The letter was seen on the "
    "table in the evening. The river was calm and the boat was empty. "
)


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32).eval()


def test_a_fact_of_turn_one_is_recalled_in_turn_three(tiny_cluster: Cluster) -> None:
    """Every turn's prompt is prefilled on one node and answered on another."""
    conversation = ""
    replies = []
    for turn in (
        CHATTER + "The code of the blue door is 4271. My sister lives in Oslen. Where does my "
        "sister live?",
        CHATTER + "My dog is called Bramo. What is my dog called?",
        "What is the code of the blue door?",
    ):
        conversation += f"<|user|>{turn}<|end|><|assistant|>"
        answer = tiny_cluster.generate(conversation, max_new_tokens=40, ignore_eos=False)
        meta = answer["meta_info"]
        assert meta["prefill_node"] is not None
        assert meta["decode_node"] is not None
        assert meta["transferred_pages"] > 0
        replies.append(answer["text"])
        conversation += f"{answer['text']}<|end|>"
    assert "Oslen" in replies[0]
    assert "Bramo" in replies[1]
    assert "4271" in replies[2]


def test_a_described_person_becomes_json(tiny_cluster: Cluster) -> None:
    prose = "Zorin is 41 years old, works as a baker and lives in Oslen."
    answer = tiny_cluster.generate(
        f"<|user|>Extract the person as JSON: {prose}<|end|><|assistant|>",
        max_new_tokens=60,
        ignore_eos=False,
    )
    person = {"name": "Zorin", "age": 41, "job": "baker", "city": "Oslen"}
    assert json.loads(answer["text"]) == person
    assert answer["meta_info"]["finish_reason"]["type"] == "stop"


def test_text_is_tokenized_as_the_model_expects(
    tiny_cluster: Cluster, reference: PreTrainedModel
) -> None:
    """`text` gets the model's bos; the answer's text is its tokens, decoded."""
    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    prompt = "<|user|>Grüße an 世界 🎈. What is my dog called?<|end|><|assistant|>"
    answer = tiny_cluster.generate(prompt, max_new_tokens=12)
    expected = reference_tokens(reference, tokenizer.encode(prompt).ids, 12)
    assert answer["output_ids"] == expected
    assert answer["text"] == tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 129, 1000, 3000])
def test_greedy_tokens_are_those_of_transformers(
    tiny_cluster: Cluster, reference: PreTrainedModel, length: int
) -> None:
    prompt = prompt_of(length, VOCAB_SIZE, seed=20)
    answer = tiny_cluster.generate(prompt)
    assert answer["output_ids"] == reference_tokens(reference, prompt, 8)


def test_mixed_batch_side_by_side(tiny_cluster: Cluster, reference: PreTrainedModel) -> None:
    lengths = (1, 5, 33, 64, 250, 700, 1500, 3000)
    prompts = [prompt_of(length, VOCAB_SIZE, seed=21) for length in lengths]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(tiny_cluster.generate, prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer["output_ids"] == reference_tokens(reference, prompt, 8)
