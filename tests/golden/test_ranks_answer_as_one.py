"""Two or four ranks answer as one does: real gloo groups, each rank a process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from engine.build import load_model_runner
from engine.parallel import MeetingPoint
from tests.support.engine.driving import CPU, Sequences, prompt_of
from tests.support.models.families import FAMILIES, save_random_model
from tests.support.processes import ranks

PARALLEL = ["llama-bias", "qwen3", "gemma3", "phi4-mini", "mixtral"]
"""199 tokens and, in four ranks, two KV heads: neither can be divided."""
NUM_TOKENS = 8
PROMPTS = [prompt_of(length, 199) for length in (70, 100)]


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Connection]]:
    torch.set_num_threads(1)
    with ranks.rank_processes(4) as connections:
        yield connections


def run(
    processes: list[Connection], path: Path, size: int, load_format: str = "auto"
) -> list[ranks.Answer]:
    options = ranks.options(load_format=load_format)
    meeting_point = MeetingPoint("127.0.0.1", ranks.ANSWER_S)
    job = ranks.Job(path, options, size, meeting_point.address, PROMPTS, NUM_TOKENS)
    return ranks.run(processes, job)


def expect_as_alone(
    processes: list[Connection], path: Path, sizes: list[int], load_format: str = "auto"
) -> None:
    options = ranks.options(load_format=load_format)
    alone = load_model_runner(path, options, lambda _: 60, CPU)
    sequences = Sequences(alone)
    tokens = [sequences.generate(prompt, NUM_TOKENS) for prompt in PROMPTS]
    logits = sequences.logits(PROMPTS[-1])
    for size in sizes:
        answers = run(processes, path, size, load_format)
        for answer in answers:
            assert answer.refusal == ""
            assert answer.tokens == tokens, f"{size} ranks"
            assert torch.equal(answer.logits, answers[0].logits), "ranks disagree on the last bits"
            assert (answer.logits - logits).abs().max() <= 1e-4
            assert answer.num_kv_heads == max(1, alone.layout.num_kv_heads // size)


@pytest.mark.parametrize("family", PARALLEL)
def test_ranks_answer_as_one_does(processes: list[Connection], family: str, tmp_path: Path) -> None:
    save_random_model(family, tmp_path)
    expect_as_alone(processes, tmp_path, [2, 4])


def test_dummy_weights_are_the_same_whole_or_split(
    processes: list[Connection], tmp_path: Path
) -> None:
    FAMILIES["mixtral"].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["MixtralForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expect_as_alone(processes, tmp_path, [4], load_format="dummy")


def test_each_rank_holds_its_part_of_the_weights(
    processes: list[Connection], tmp_path: Path
) -> None:
    model = save_random_model("qwen3", tmp_path)
    whole = 4 * sum(parameter.numel() for parameter in model.parameters())
    for answer in run(processes, tmp_path, 2):
        assert answer.weight_bytes < 0.51 * whole, "norms and padding are all that both have"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"num_attention_heads": 6, "num_key_value_heads": 2},
            "6 attention heads cannot be split over 4 ranks",
        ),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 3},
            "3 KV heads cannot be split over 4 ranks",
        ),
        ({"intermediate_size": 98}, "98 feed-forward dimensions.*--tensor-parallel-size"),
    ],
)
def test_what_cannot_be_split_is_said(
    processes: list[Connection], tmp_path: Path, changes: dict[str, int], says: str
) -> None:
    config = FAMILIES["llama2"].to_dict() | {"architectures": ["LlamaForCausalLM"]} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    answers = run(processes, tmp_path, 4, load_format="dummy")
    assert all(re.search(says, answer.refusal) for answer in answers)
