"""Weights arrive whole, from one file or many, and every error is a sentence with a remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.kernels.base import TorchKernels
from engine.model.config import ModelConfig
from engine.model.decoder import DecoderModel
from engine.model.linear import Build
from engine.parallel import SOLO, TensorParallel
from engine.weights.loader import dummy_model, load_model
from engine.weights.safetensors_source import INDEX, SafetensorsSource
from engine.weights.source import Part, TensorSource
from protocol.model.directory import ModelDirectoryError
from tests.support.engine.driving import CPU
from tests.support.models.checkpoints import CONFIG, HEAD_DIM, HIDDEN, INNER, checkpoint, save


def load(path: Path, **kwargs: Any) -> DecoderModel:
    build = Build(torch.float32, CPU, TorchKernels(), SOLO)
    return load_model(SafetensorsSource(path), ModelConfig.from_directory(path), build, **kwargs)


def test_parts_are_fused_in_order(tmp_path: Path) -> None:
    tensors = checkpoint()
    save(tmp_path, tensors)
    model = load(tmp_path)
    for i, layer in enumerate(model.layers):
        attention = f"model.layers.{i}.self_attn"
        parts = [tensors[f"{attention}.{name}_proj.weight"] for name in "qkv"]
        assert torch.equal(layer.attention.qkv.weight, torch.cat(parts))
        parts = [tensors[f"model.layers.{i}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
        assert torch.equal(layer.feed_forward.gate_up.weight, torch.cat(parts))
    assert torch.equal(model.head.weight, tensors["lm_head.weight"])
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_shards_equal_one_file_and_strangers_beside_them_are_ignored(tmp_path: Path) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    whole.mkdir()
    sharded.mkdir()
    tensors = checkpoint()
    save(whole, tensors)
    save(sharded, tensors)
    (sharded / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i in range(3):
        part = {name: tensors[name] for name in names[i::3]}
        save_file(part, sharded / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"layers.0.attention.wq.weight": torch.ones(1)}, sharded / "consolidated.safetensors")
    expected = load(whole).state_dict()
    for name, tensor in load(sharded).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_of_two_files_with_a_tensor_the_index_names_one(tmp_path: Path) -> None:
    tensors = checkpoint()
    save(tmp_path, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    old = {"lm_head.weight": tensors["lm_head.weight"] + 1}
    save_file(old, tmp_path / "b.safetensors")
    with pytest.raises(ModelDirectoryError, match=r"b\.safetensors both hold lm_head\.weight, and"):
        load(tmp_path)
    index = {name: "b.safetensors" if "norm" in name else "a.safetensors" for name in tensors}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    assert torch.equal(load(tmp_path).head.weight, tensors["lm_head.weight"])
    index["lm_head.weight"] = "b.safetensors"
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
    assert torch.equal(load(tmp_path).head.weight, old["lm_head.weight"])


@pytest.mark.parametrize("files", [None, {}, ["a"], {"w": None}, {"w": ["a"]}, {"w": 1, "v": "a"}])
def test_an_index_has_a_file_for_each_tensor(tmp_path: Path, files: Any) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": files}))
    with pytest.raises(ModelDirectoryError, match="no weight_map with a file for each tensor"):
        SafetensorsSource(tmp_path)


def test_tied_embeddings_are_one_tensor(tmp_path: Path) -> None:
    tensors = checkpoint()
    head = tensors.pop("lm_head.weight")
    save(tmp_path, tensors, tie_word_embeddings=True)
    model = load(tmp_path)
    assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
    same = tensors["model.embed_tokens.weight"].clone()
    save(tmp_path, tensors | {"lm_head.weight": same}, tie_word_embeddings=True)
    model = load(tmp_path)
    assert model.head.weight.data_ptr() == model.embedding.weight.data_ptr()
    # As in transformers: a head that differs shows that config.json is wrong.
    save(tmp_path, tensors | {"lm_head.weight": head}, tie_word_embeddings=True)
    model = load(tmp_path)
    assert torch.equal(model.head.weight, head)
    assert torch.equal(model.embedding.weight, same)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, name: str, value: float) -> None:
    tensors = checkpoint()
    tensors[name].view(-1)[-1] = value
    save(tmp_path, tensors)
    with pytest.raises(ModelDirectoryError, match=rf"{name} .*holds NaN or infinity in float32"):
        load(tmp_path)


def test_a_weight_that_the_dtype_cannot_hold_is_named(tmp_path: Path) -> None:
    tensors = checkpoint()
    tensors["model.norm.weight"][0] = 1e6
    save(tmp_path, tensors)
    load(tmp_path)
    build = Build(torch.float16, CPU, TorchKernels(), SOLO)
    with pytest.raises(ModelDirectoryError, match=r"model\.norm\.weight .*in float16.*--dtype"):
        load_model(SafetensorsSource(tmp_path), ModelConfig.from_directory(tmp_path), build)


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    """A model of these sizes has a petabyte."""
    save(tmp_path, checkpoint(), vocab_size=1 << 22, intermediate_size=1 << 24)
    with pytest.raises(
        ModelDirectoryError, match=r"is \[\d+, \d+\], the configuration asks for \[4194304"
    ):
        load(tmp_path)


def test_progress_ends_at_all_bytes(tmp_path: Path) -> None:
    save(tmp_path, checkpoint())
    reports: list[tuple[int, int]] = []
    load(tmp_path, progress=lambda done, total: reports.append((done, total)))
    total = 4 * sum(tensor.numel() for tensor in checkpoint().values())
    assert reports == sorted(reports)
    assert reports[-1] == (total, total)


def test_rotary_buffers_of_old_checkpoints_are_no_error(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    save(tmp_path, checkpoint() | buffer)
    load(tmp_path)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    tensors = checkpoint()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save(tmp_path, tensors)
    with pytest.raises(ModelDirectoryError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight;"):
        load(tmp_path)
    save(tmp_path, {"model.norm.weight": tensors["model.norm.weight"]})
    with pytest.raises(ModelDirectoryError, match=r"lack \S+ and 19 more; fetch the model again"):
        load(tmp_path)


def test_weights_that_the_model_would_ignore_are_named(tmp_path: Path) -> None:
    save(tmp_path, checkpoint() | {"model.layers.0.self_attn.q_proj.bias": torch.ones(8)})
    with pytest.raises(ModelDirectoryError, match=r"hold model.*q_proj\.bias, which a Llama"):
        load(tmp_path)


def test_another_shape_is_named(tmp_path: Path) -> None:
    save(tmp_path, checkpoint() | {"model.norm.weight": torch.ones(9)})
    with pytest.raises(ModelDirectoryError, match=r"model\.norm\.weight .*\[9\].* \[8\];"):
        load(tmp_path)


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    save(tmp_path, checkpoint())
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(ModelDirectoryError, match=r"model\.safetensors cannot be read.*git lfs"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelDirectoryError, match=r"no \*\.safetensors"):
        load(tmp_path)


MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "head_dim": HEAD_DIM,
    "hidden_activation": "gelu_pytorch_tanh",
}


def dummy(
    path: Path, rank: int = 0, size: int = 1, dtype: torch.dtype = torch.float32, **changes: Any
) -> DecoderModel:
    (path / "config.json").write_text(json.dumps(CONFIG | {"num_key_value_heads": 2} | changes))
    build = Build(dtype, CPU, TorchKernels(), TensorParallel(rank, size))
    return dummy_model(ModelConfig.from_directory(path), build)


def test_dummy_weights_need_only_the_config_and_are_always_the_same(tmp_path: Path) -> None:
    one, other = dummy(tmp_path), dummy(tmp_path)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name
        if parameter.ndim == 1:
            assert parameter.eq(1.0).all(), "a norm"
            continue
        assert abs(parameter.mean()) < 0.1
        assert parameter.std() == pytest.approx(parameter.shape[1] ** -0.5, rel=0.3)
    gates = [layer.feed_forward.gate_up.weight for layer in one.layers]
    assert not torch.equal(*gates), "every tensor has values of its own"


@pytest.mark.parametrize("family", [{}, MIXTRAL])
def test_ranks_have_the_parts_of_the_same_dummy_weights(
    tmp_path: Path, family: dict[str, Any]
) -> None:
    whole = dummy(tmp_path, **family)
    ranks = [dummy(tmp_path, rank, 2, **family) for rank in range(2)]
    query, *_ = whole.layers[1].attention.qkv.weight.split(HEAD_DIM)
    assert torch.equal(ranks[0].layers[1].attention.qkv.weight[:HEAD_DIM], query)
    columns = [rank.layers[1].attention.out.weight for rank in ranks]
    assert torch.equal(torch.cat(columns, dim=1), whole.layers[1].attention.out.weight)
    assert torch.equal(torch.cat([rank.head.weight for rank in ranks]), whole.head.weight)
    if family:
        down = [rank.layers[0].feed_forward.down.weight for rank in ranks]
        expected = whole.layers[0].feed_forward.down.weight
        assert torch.equal(torch.cat(down, dim=2), expected)


class Counting:
    """A source that counts the elements read from it."""

    def __init__(self, inner: TensorSource) -> None:
        self.name, self.tensors = inner.name, inner.tensors
        self.num_read = 0
        self._inner = inner

    def read(self, name: str, part: Part = ()) -> Tensor:
        values = self._inner.read(name, part)
        self.num_read += values.numel()
        return values


def test_a_rank_reads_its_part_and_no_more(tmp_path: Path) -> None:
    save(tmp_path, checkpoint())
    source = Counting(SafetensorsSource(tmp_path))
    build = Build(torch.float32, CPU, TorchKernels(), TensorParallel(1, 2))
    model = load_model(source, ModelConfig.from_directory(tmp_path), build)
    assert source.num_read == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.bool, torch.float8_e4m3fn]
)
def test_what_needs_a_scale_is_not_taken_for_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    """Tensors of a quantised checkpoint, whose config.json does not say so."""
    name = "model.layers.0.mlp.down_proj.weight"
    save(tmp_path, checkpoint() | {name: torch.ones(HIDDEN, INNER).to(dtype)})
    told = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelDirectoryError, match=rf"{name}.* is {told}, .* asks for float32;"):
        load(tmp_path)


def test_norms_that_count_from_one_stay_exact_in_half_precision(tmp_path: Path) -> None:
    model = dummy(tmp_path, dtype=torch.bfloat16, **GEMMA)
    assert model.norm.weight.dtype is torch.float32
    assert model.layers[0].attention.qkv.weight.dtype is torch.bfloat16
    tensors = {name: value.bfloat16() for name, value in _of_gemma(checkpoint())}
    save(tmp_path, tensors, **GEMMA)
    build = Build(torch.bfloat16, CPU, TorchKernels(), SOLO)
    loaded = load_model(SafetensorsSource(tmp_path), ModelConfig.from_directory(tmp_path), build)
    expected = 1.0 + tensors["model.norm.weight"].float()
    assert torch.equal(loaded.norm.weight, expected)


def _of_gemma(tensors: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Gemma's checkpoint: a tied head, and two more norms in each layer."""
    for name, tensor in tensors.items():
        if name != "lm_head.weight":
            yield name, tensor
        if name.endswith("input_layernorm.weight"):
            for more in ("pre_feedforward_layernorm", "post_feedforward_layernorm"):
                yield name.replace("input_layernorm", more), tensor
