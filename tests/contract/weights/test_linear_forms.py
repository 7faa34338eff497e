"""What every `LinearForm` does: loaded whole or in ranks' parts, fused or not, it multiplies by the
weights that the checkpoint encodes. Weights are small whole numbers, so all results are exact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kernels.base import TorchKernels
from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.model.families import UnsupportedModel
from engine.model.feed_forward import FeedForward
from engine.model.linear import Build, Linear, LinearRuns
from engine.model.linear_form import PLAIN, Axis, LinearForm, TensorForm
from engine.parallel import TensorParallel
from engine.weights.loader import load_model
from protocol.model.directory import ModelDirectoryError
from tests.support.models.linear_forms import CASES, GROUP, PER_WORD, Case, Int8Form
from tests.support.models.sources import MemorySource

VOCABULARY = ("model.embed_tokens", "lm_head")
CPU = torch.device("cpu")
HIDDEN, INNER, VOCAB, HEAD_DIM, HEADS, KV_HEADS = 16, 32, 11, 4, 4, 2
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 64,
}
SHAPES = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
FUSED = {
    "self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attn.o_proj": ["self_attn.o_proj"],
    "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down_proj": ["mlp.down_proj"],
}
SIZES = [1, 2, 4]
"""Numbers of ranks; four have each KV head twice."""


class Unsummed:
    """A process group whose ranks keep what they have; the tests add it up."""

    def allreduce(self, tensors: Sequence[Tensor]) -> Unsummed:
        return self

    def wait(self) -> None:
        pass


def whole_numbers(*shape: int, seed: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=chance).float()


WEIGHTS = {name: whole_numbers(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
BIASES = {
    name: whole_numbers(shape[0], seed=100 + i) for i, (name, shape) in enumerate(SHAPES.items())
}


def checkpoint(case: Case, is_fused: bool) -> dict[str, Tensor]:
    """Returns the tensors of a Llama with biases, or of a Phi, which has none and fuses its
    projections."""
    tensors = {
        "model.embed_tokens.weight": torch.ones(VOCAB, HIDDEN),
        "lm_head.weight": torch.ones(VOCAB, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
        "model.layers.0.input_layernorm.weight": torch.ones(HIDDEN),
        "model.layers.0.post_attention_layernorm.weight": torch.ones(HIDDEN),
    }
    sources = FUSED if is_fused else {name: [name] for name in SHAPES}
    for name, parts in sources.items():
        encoded = case.encode(torch.cat([WEIGHTS[part] for part in parts]))
        tensors |= {f"model.layers.0.{name}.{kind}": value for kind, value in encoded.items()}
        if not is_fused:
            tensors[f"model.layers.0.{name}.bias"] = BIASES[name]
    return tensors


def load(
    path: Path,
    case: Case | None,
    tensors: dict[str, Tensor],
    rank: int = 0,
    size: int = 1,
    forms: Mapping[str, LinearForm] | None = None,
    **changes: Any,
) -> DecoderModel:
    """Loads `tensors`, which have the form of `case`, or those of `forms` by projection."""

    def form_of(module: str) -> LinearForm:
        if module in VOCABULARY:
            return PLAIN
        if forms is not None:
            return forms[module.removeprefix("model.layers.0.")]
        assert case is not None
        return case.form

    is_fused = "model.layers.0.mlp.gate_up_proj" in {name.rpartition(".")[0] for name in tensors}
    family = "Phi3ForCausalLM" if is_fused else "LlamaForCausalLM"
    biases = {"attention_bias": True, "mlp_bias": True}
    raw = CONFIG | {"architectures": [family]} | ({} if is_fused else biases) | changes
    (path / "config.json").write_text(json.dumps(raw))
    parallel = TensorParallel(rank, size, Unsummed())
    build = Build(torch.float32, CPU, TorchKernels(), parallel, form_of)
    return load_model(MemorySource(tensors), ModelConfig.from_directory(path), build)


def linears(model: DecoderModel) -> tuple[Any, Any, Any, Any]:
    """Returns the linear layers (qkv, out, gate_up, down) of the only layer."""
    layer = model.layers[0]
    assert isinstance(layer.feed_forward, FeedForward)
    feed_forward = layer.feed_forward
    return layer.attention.qkv, layer.attention.out, feed_forward.gate_up, feed_forward.down


def expected(name: str, x: Tensor, has_bias: bool) -> Tensor:
    product = x @ WEIGHTS[name].t()
    return product + BIASES[name] if has_bias else product


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_fused", [False, True], ids=["separate", "fused"])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_ranks_make_up_the_product(
    tmp_path: Path, case: Case, size: int, is_fused: bool, num_rows: int
) -> None:
    tensors, has_bias = checkpoint(case, is_fused), not is_fused
    ranks = [load(tmp_path, case, tensors, rank, size) for rank in range(size)]
    hidden = whole_numbers(num_rows, HIDDEN, seed=50)
    attended = whole_numbers(num_rows, HEADS * HEAD_DIM, seed=51)
    inner = whole_numbers(num_rows, INNER, seed=52)

    query, key, value, gate, up = (
        expected(name, hidden, has_bias)
        for name in SHAPES
        if not name.endswith(("o_proj", "down_proj"))
    )
    outputs, inputs = torch.zeros(num_rows, HIDDEN), torch.zeros(num_rows, HIDDEN)
    for rank, model in enumerate(ranks):
        qkv, out, gate_up, down = linears(model)
        heads = slice(rank * HEADS * HEAD_DIM // size, (rank + 1) * HEADS * HEAD_DIM // size)
        first = rank * KV_HEADS // size
        kv_heads = slice(first * HEAD_DIM, (first + max(1, KV_HEADS // size)) * HEAD_DIM)
        parts = [query[:, heads], key[:, kv_heads], value[:, kv_heads]]
        assert torch.equal(qkv(hidden), torch.cat(parts, 1))
        dims = slice(rank * INNER // size, (rank + 1) * INNER // size)
        assert torch.equal(gate_up(hidden), torch.cat((gate[:, dims], up[:, dims]), 1))
        outputs += out(attended[:, heads])
        inputs += down(inner[:, dims])
    assert torch.equal(outputs, expected("self_attn.o_proj", attended, has_bias))
    assert torch.equal(inputs, expected("mlp.down_proj", inner, has_bias))


def test_each_rank_holds_its_part_in_the_forms_own_dtypes(tmp_path: Path, case: Case) -> None:
    tensors = checkpoint(case, is_fused=False)
    model = load(tmp_path, case, tensors, rank=1, size=2)
    for linear in linears(model):
        for form in case.form.tensors:
            parameter = linear.get_parameter(form.name)
            assert parameter.dtype == (form.dtype or torch.float32)
            assert parameter.shape == form.shape(linear.num_out, linear.num_in)
    assert linears(model)[0].num_out == (HEADS + 2 * KV_HEADS) * HEAD_DIM // 2
    assert linears(model)[1].num_in == HEADS * HEAD_DIM // 2


def test_each_of_its_tensors_is_missed(tmp_path: Path, case: Case) -> None:
    for form in case.form.tensors:
        name = f"model.layers.0.mlp.down_proj.{form.name}"
        tensors = checkpoint(case, is_fused=False)
        del tensors[name]
        with pytest.raises(ModelDirectoryError, match=f"lack {name};"):
            load(tmp_path, case, tensors)


def test_tensors_of_another_form_are_not_taken(tmp_path: Path, case: Case) -> None:
    for other in CASES.values():
        if other is not case:
            with pytest.raises(ModelDirectoryError, match="lack"):
                load(tmp_path, case, checkpoint(other, is_fused=False))


def test_a_cut_through_a_group_is_refused(tmp_path: Path) -> None:
    case, inner = CASES["packed in groups"], 3 * GROUP  # two ranks would have a group and a half
    tensors = checkpoint(case, is_fused=False)
    for name, shape in (("gate_proj", (inner, HIDDEN)), ("up_proj", (inner, HIDDEN))):
        weight = case.encode(torch.ones(shape))
        tensors |= {f"model.layers.0.mlp.{name}.{kind}": value for kind, value in weight.items()}
        tensors[f"model.layers.0.mlp.{name}.bias"] = torch.ones(inner)
    down = case.encode(torch.ones(HIDDEN, inner))
    tensors |= {f"model.layers.0.mlp.down_proj.{kind}": value for kind, value in down.items()}
    load(tmp_path, case, tensors, intermediate_size=inner)
    with pytest.raises(UnsupportedModel, match=r"groups of 4.* 0 to 6 .*--tensor-parallel-size"):
        load(tmp_path, case, tensors, 0, 2, intermediate_size=inner)


@dataclass(frozen=True)
class PerTensorForm(Int8Form):
    """A form with one scale for the whole weight, which projections share only if it is equal."""

    scale: float
    tensors = (Int8Form.tensors[0], TensorForm("scale", outputs=None, inputs=None))

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        return {
            "weight_int8": (weight / self.scale).to(torch.int8),
            "scale": torch.tensor([self.scale]),
        }


@pytest.mark.parametrize("size", SIZES)
def test_only_neighbours_of_equal_form_are_one_product(tmp_path: Path, size: int) -> None:
    forms = {name: PerTensorForm(1.0) for name in SHAPES}
    forms["self_attn.q_proj"] = PerTensorForm(0.5)
    tensors = checkpoint(CASES["plain"], is_fused=False)
    for name, form in forms.items():
        del tensors[f"model.layers.0.{name}.weight"]
        encoded = form.encode(WEIGHTS[name])
        tensors |= {f"model.layers.0.{name}.{kind}": value for kind, value in encoded.items()}
    hidden, size_of_q = whole_numbers(3, HIDDEN, seed=50), HEADS * HEAD_DIM // size
    for rank in range(size):
        qkv, _, gate_up, _ = linears(load(tmp_path, None, tensors, rank, size, forms=forms))
        assert isinstance(qkv, LinearRuns) and isinstance(gate_up, Linear)
        assert [run.num_parts for run in qkv.runs] == [1, 2]
        query = expected("self_attn.q_proj", hidden, True)
        heads = slice(rank * size_of_q, (rank + 1) * size_of_q)
        assert torch.equal(qkv(hidden)[:, :size_of_q], query[:, heads])


class TestAxis:
    def test_parts_of_all_ranks_are_the_whole(self) -> None:
        axis = Axis(0, PER_WORD)
        parts = [axis.part(range(begin, begin + 8), 32) for begin in range(0, 32, 8)]
        covered = [index for part in parts for index in range(part.start, part.stop)]
        assert covered == list(range(axis.length(32)))

    def test_the_last_group_may_be_short(self) -> None:
        axis = Axis(0, 128)
        assert axis.length(300) == 3
        assert axis.part(range(256, 300), 300) == slice(2, 3)
        with pytest.raises(UnsupportedModel, match="groups of 128"):
            axis.part(range(0, 150), 300)
