"""With FP8 pages the engine computes what transformers computes from K and V rounded alike, however
a prompt is cut and whatever of it was there before."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.options import EngineOptions
from engine.steps.runner import ModelRunner
from tests.support.engine.attention import rounded
from tests.support.engine.driving import CPU, GREEDY, PAGE_SIZE, Sequences, prompt_of
from tests.support.models.families import save_random_model

KINDS: dict[str, dict[str, Any]] = {
    "native": {},
    "torch": {"no_native_kernels": True},
    "deterministic": {"deterministic": True},
}
STATIC = torch.tensor([[0.004, 0.02], [0.02, 0.01], [0.03, 0.03], [0.01, 0.005]])
"""Scales of K and V for each layer."""
LENGTHS, VOCAB = [1, 17, 60, 200], 199
Logits = Callable[[list[int]], Tensor]


class Model(NamedTuple):
    """A random model in a directory, with or without scales."""

    plain: PreTrainedModel
    path: Path
    scales: str


@pytest.fixture(scope="module", params=["token", "static"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("model")
    reference = save_random_model("llama3", path)
    if request.param == "static":
        index = json.loads((path / "model.safetensors.index.json").read_text())
        layers = range(reference.config.num_hidden_layers)
        scales = {
            f"model.layers.{layer}.self_attn.{which}_scale": STATIC[layer, i : i + 1].clone()
            for layer in layers
            for i, which in enumerate("kv")
        }
        save_file(scales, path / "scales.safetensors")
        index["weight_map"] |= dict.fromkeys(scales, "scales.safetensors")
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return Model(reference, path, request.param)


@pytest.fixture
def plain(model: Model) -> PreTrainedModel:
    return model.plain


@pytest.fixture
def reference_logits(model: Model, monkeypatch: pytest.MonkeyPatch) -> Logits:
    """Gives the last token's logits of transformers, whose attention gets rounded K and V."""
    reference, _, scales = model
    modelling = import_module(type(reference).__module__)
    eager = modelling.eager_attention_forward

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **given: Any
    ) -> Any:
        heads = [part.transpose(1, 2)[0] for part in (key, value)]  # [tokens, kv_heads, head_dim]
        for i, part in enumerate(heads):
            static = STATIC[module.layer_idx, i].expand(part.shape[1])
            heads[i] = rounded(part, static if scales == "static" else None)
        key, value = (part[None].transpose(1, 2) for part in heads)
        return eager(module, query, key, value, *rest, **given)

    @torch.inference_mode()
    def logits(tokens: list[int]) -> Tensor:
        with monkeypatch.context() as patch:
            patch.setattr(modelling, "eager_attention_forward", attend)
            return reference(torch.tensor([tokens])).logits[0, -1]

    return logits


@pytest.fixture(params=KINDS)
def runner(request: pytest.FixtureRequest, model: Model) -> ModelRunner:
    options = EngineOptions("float32", PAGE_SIZE, kv_cache_dtype="fp8_e4m3", **KINDS[request.param])
    runner = load_model_runner(model.path, options, lambda _: 200, CPU)
    assert runner.layout.scales == model.scales
    return runner


def test_logits_are_those_of_rounded_keys_and_values(
    runner: ModelRunner, plain: PreTrainedModel, reference_logits: Logits
) -> None:
    """Also of a prompt in one step, which must attend to what its pages hold. A sum of float32 in
    another order rounds a few numbers another way: hence the tolerance."""
    for length in LENGTHS:
        prompt = prompt_of(length, VOCAB)
        expected = reference_logits(prompt)
        assert (Sequences(runner).logits(prompt) - expected).abs().max() <= 5e-3
        with torch.inference_mode():
            unrounded = plain(torch.tensor([prompt])).logits[0, -1]
        assert (unrounded - expected).abs().max() > 0.2, "rounding shows"


def test_greedy_tokens_in_one_step_in_chunks_and_on_a_hit(
    runner: ModelRunner, reference_logits: Logits
) -> None:
    prompt, count = prompt_of(100, VOCAB), 8
    expected = list(prompt)
    while len(expected) < len(prompt) + count:
        expected.append(int(reference_logits(expected).argmax()))
    expected = expected[len(prompt) :]
    for chunk in (1000, 37):
        assert Sequences(runner).generate(prompt, count, chunk) == expected
    sequences = Sequences(runner)
    pages = sequences.pages(len(prompt) + count)
    runner.run([Slice(prompt[:64], 0, pages, None)])  # what was computed for somebody else
    runner.kv_cache.copy(pages[:4], sequences.free[:4])
    pages[:4] = sequences.free[:4]
    answer: list[int] = []
    for _ in range(count):
        computed = 64 if not answer else len(prompt) + len(answer) - 1
        part = (prompt + answer)[computed:]
        [token] = runner.run([Slice(part, computed, pages, GREEDY)])
        assert token is not None
        answer.append(token)
    assert answer == expected
