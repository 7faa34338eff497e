"""Writes what each fixture should compute: logits and greedy tokens of two prompts, in float32.

    python expected.py [name …]

The weights are those of `dequantised`, or for GGUF of `gguf_reader`. Beside them the model is
loaded as transformers does it, with its producers' kernels, and how far the two differ is written
down. Prompts are chosen so that no token is close to a tie.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from bases import FIXTURES, prompt
from dequantised import RoundedInputs, float_model
from gguf_reader import gguf_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

LENGTHS = (24, 37)
NUM_TOKENS = 16
ORACLE = "largest difference"
NUM_SEEDS = 200
LEAST_MARGIN = 0.05
LEAST_MARGIN_OF_FP8 = 0.3
"""Where the last bit of an input may decide to which number of FP8 it is rounded."""
UNREAD = {
    "gguf-q5_0-gemma3": {"query_pre_attn_scalar": 16},
    "gguf-q8_0-qwen3": {"head_dim": 16},
    "gguf-q4_0-qwen3-moe": {"moe_intermediate_size": 64, "norm_topk_prob": True},
}
"""What transformers leaves at its default although a file says it, or all such files mean it."""

Logits = Callable[[Sequence[int]], Tensor]


def logits_of(model: PreTrainedModel, mode: AbstractContextManager[object]) -> Logits:
    """Returns a function from tokens to the logits [vocab] behind the last of them."""

    def compute(tokens: Sequence[int]) -> Tensor:
        with torch.inference_mode(), mode:
            return model(torch.tensor([tokens])).logits[0, -1].float()

    return compute


def oracles(path: Path) -> dict[str, Logits]:
    """Returns the logits of the model in `path`: first as they should be; then, if it is of FP8, as
    they are when fewer inputs are rounded."""
    file = path / "model.gguf"
    if file.exists():
        return {ORACLE: logits_of(gguf_model(file), nullcontext())}
    model = float_model(path)
    result = {ORACLE: logits_of(model, RoundedInputs(model, path))}
    if "fp8" in path.name:
        result["inputs of experts not rounded"] = logits_of(
            model, RoundedInputs(model, path, leave="experts")
        )
        result["no inputs rounded"] = logits_of(model, nullcontext())
    return result


def as_transformers_reads(path: Path) -> PreTrainedModel:
    """Returns the model that transformers makes of a checkpoint, quantised as it is."""
    file = path / "model.gguf"
    settings = {"gguf_file": file.name} if file.exists() else {"device_map": "cpu"}
    model, report = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        **settings,
        **UNREAD.get(path.name, {}),
    )
    report["unexpected_keys"] = {
        name for name in report["unexpected_keys"] if not name.endswith(("k_scale", "v_scale"))
    }
    if failures := [f"{key}: {len(names)}" for key, names in report.items() if names]:
        raise ValueError(f"it did not find all tensors: {', '.join(failures)}")
    return model.eval()


def generate(logits: Logits, tokens: list[int]) -> tuple[list[int], list[float]]:
    """Returns the tokens with the largest logits, and how far the second largest are below."""
    answer, margins = [], []
    for _ in range(NUM_TOKENS):
        (first, second), (token, _) = logits([*tokens, *answer]).topk(2)
        answer.append(int(token))
        margins.append(float(first - second))
        assert math.isfinite(margins[-1])
    return answer, margins


def choose(logits: Logits, length: int, least_margin: float) -> dict[str, object]:
    """Returns the first random prompt whose answer is far from ties, or the farthest of all."""
    best: dict[str, object] = {}
    farthest = -1.0
    for seed in range(NUM_SEEDS):
        tokens = prompt(length, seed)
        answer, margins = generate(logits, tokens)
        if min(margins) > farthest:
            farthest = min(margins)
            best = {"prompt": tokens, "tokens": answer, "margins": margins}
        if farthest >= least_margin:
            break
    return best | {"logits": logits(best["prompt"]).tolist()}


def beside_transformers(path: Path, prompts: list[list[int]]) -> dict[str, object]:
    """Returns how far logits of transformers' own loading are from the oracle's, and for FP8 from
    those of the same weights with fewer inputs rounded: transformers does not round all of them.
    If it cannot load the checkpoint, returns why."""
    try:
        theirs = logits_of(as_transformers_reads(path), nullcontext())
        differences = {
            name: max((theirs(p) - logits(p)).abs().max() for p in prompts)
            for name, logits in oracles(path).items()
        }
    except Exception as error:
        return {"failed": str(error).splitlines()[0][:200]}
    return {name: round(float(value), 5) for name, value in differences.items()}


def write(path: Path) -> None:
    """Writes expected.json into the fixture at `path`."""
    logits = oracles(path)[ORACLE]
    least_margin = LEAST_MARGIN_OF_FP8 if "fp8" in path.name else LEAST_MARGIN
    answers = [choose(logits, length, least_margin) for length in LENGTHS]
    prompts = [answer["prompt"] for answer in answers]
    transformers = beside_transformers(path, prompts)
    lines = [json.dumps(_rounded(answer)) for answer in answers]
    text = ",\n  ".join(lines)
    (path / "expected.json").write_text(
        f'{{"transformers": {json.dumps(transformers)},\n "answers": [\n  {text}\n]}}\n'
    )
    print(path.name, transformers, [round(min(a["margins"]), 3) for a in answers], flush=True)


def _rounded(answer: dict[str, object]) -> dict[str, object]:
    return {
        key: [round(value, 5) if isinstance(value, float) else value for value in values]
        for key, values in answer.items()
    }


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(file.parent.name for file in FIXTURES.glob("*/model.*"))
    for name in names:
        write(FIXTURES / name)
