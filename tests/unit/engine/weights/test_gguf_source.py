"""The tensors of a GGUF file under the names of Hugging Face: whole, in parts, in ranks' parts."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from engine.build import load_model_runner
from engine.kernels.gguf_blocks import dequantise_blocks
from engine.kernels.packed_weights import BlockWeight
from engine.model.families import UnsupportedModel
from engine.model.forms.block import BlockForm
from engine.model.linear_form import PLAIN
from engine.options import EngineOptions
from engine.weights.checkpoint import open_checkpoint
from engine.weights.fingerprint import model_fingerprint
from engine.weights.gguf.source import GgufSource
from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.parts import read_parts
from tests.support.engine.driving import CPU, PAGE_SIZE
from tests.support.gguf.edited_files import LLAMA, write_file
from tests.support.gguf.random_blocks import random_blocks
from tests.support.gguf.written_files import write_gguf
from tests.support.models.families import FAMILIES, random_model

LAYER = "model.layers.0"
HEAD_DIM, HEADS = 16, 4


def in_file_order(weight: Tensor, heads: int) -> Tensor:
    """As LlamaModel.permute of llama.cpp's converter reorders rows."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral of which every tensor that can be is in blocks of one kind or another."""
    file = tmp_path_factory.mktemp("mixed") / "model.gguf"
    kinds = {"attn_q": "Q4_0", "ffn_gate_exps": "Q5_0", "attn_output": "F16"}
    write_gguf(
        random_model(FAMILIES["mixtral"]),
        file,
        lambda name: kinds.get(name.split(".")[-2], "Q8_0"),
    )
    return file


def test_forms_are_those_of_the_file(mixed: Path) -> None:
    form_of = GgufSource(mixed).form_of
    assert form_of("model.embed_tokens") == form_of("lm_head") == BlockForm("Q8_0")
    assert form_of(f"{LAYER}.self_attn.q_proj") == BlockForm("Q4_0")
    assert form_of(f"{LAYER}.self_attn.k_proj") == BlockForm("Q8_0")
    assert form_of(f"{LAYER}.self_attn.o_proj") == PLAIN
    assert form_of(f"{LAYER}.mlp.experts.gate_proj") == BlockForm("Q5_0")
    assert form_of(f"{LAYER}.mlp.experts.down_proj") == BlockForm("Q8_0")


def test_parts_are_parts_of_the_whole(mixed: Path) -> None:
    source = GgufSource(mixed)
    names = [f"{LAYER}.self_attn.{one}" for one in ("q_proj.blocks", "o_proj.weight")]
    for name in [*names, f"{LAYER}.block_sparse_moe.experts.3.w1.blocks"]:
        whole = source.read(name)
        assert tuple(whole.shape) == source.tensors[name].shape
        for part in ((slice(5, 40),), (slice(None), slice(2, 9)), (slice(63, 64), slice(0, 18))):
            assert torch.equal(source.read(name, part), whole[part])


def test_rows_of_q_and_k_are_put_back_in_order(tmp_path: Path) -> None:
    numbers = torch.arange(HEADS * HEAD_DIM).float()[:, None].expand(-1, 64)
    blocks = torch.from_numpy(random_blocks("Q4_0", HEADS * HEAD_DIM, 64))
    shuffled = in_file_order(blocks, HEADS).numpy()
    settings = LLAMA | {"llama.attention.head_count_kv": HEADS}
    file = write_file(
        tmp_path / "m.gguf",
        settings,
        {
            "blk.0.attn_q.weight": in_file_order(numbers, HEADS).numpy(),
            "blk.0.attn_q.bias": in_file_order(numbers[:, :1], HEADS).flatten().numpy(),
            "blk.0.attn_v.weight": numbers.numpy(),
        },
    )
    add_blocks(file, settings, {"blk.0.attn_k.weight": shuffled}, tmp_path / "k.gguf")
    source = GgufSource(file)
    assert torch.equal(source.read(f"{LAYER}.self_attn.q_proj.weight"), numbers)
    assert torch.equal(source.read(f"{LAYER}.self_attn.q_proj.bias"), numbers[:, 0])
    assert torch.equal(source.read(f"{LAYER}.self_attn.v_proj.weight"), numbers)
    keys = GgufSource(tmp_path / "k.gguf").read(f"{LAYER}.self_attn.k_proj.blocks")
    assert torch.equal(keys, blocks)


def add_blocks(
    file: Path, settings: dict[str, object], blocks: dict[str, np.ndarray], target: Path
) -> None:
    """Writes a file with tensors of Q4_0."""
    writer = gguf.GGUFWriter(target, "llama")
    for key, value in settings.items():
        writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(
            key, value
        )
    for name, values in blocks.items():
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_experts_of_a_tensor_each_are_found_too(tmp_path: Path) -> None:
    """Mixtrals of 2023 were written so."""
    weights = {f"blk.0.ffn_down.{i}.weight": np.full((4, 8), i, np.float32) for i in range(3)}
    mixtral = LLAMA | {"llama.expert_count": 3, "llama.expert_used_count": 2}
    source = GgufSource(write_file(tmp_path / "m.gguf", mixtral, weights))
    for i in range(3):
        assert (source.read(f"{LAYER}.block_sparse_moe.experts.{i}.w2.weight") == i).all()


def test_a_router_in_blocks_is_unpacked(tmp_path: Path) -> None:
    blocks = random_blocks("Q4_0", 3, 64)
    mixtral = LLAMA | {"llama.expert_count": 3, "llama.expert_used_count": 2}
    file = tmp_path / "m.gguf"
    add_blocks(file, mixtral, {"blk.0.ffn_gate_inp.weight": blocks}, file)
    values = dequantise_blocks(BlockWeight(torch.from_numpy(blocks), "Q4_0"))
    name = f"{LAYER}.block_sparse_moe.gate.weight"
    source = GgufSource(file)
    assert source.tensors[name].dtype == "F32"
    assert torch.equal(source.read(name), values)
    assert torch.equal(source.read(name, (slice(1, 2), slice(3, 9))), values[1:2, 3:9])


def test_fingerprints_tell_weights_and_settings_apart(mixed: Path, tmp_path: Path) -> None:
    def fingerprint(file: Path) -> str:
        checkpoint = open_checkpoint(file, EngineOptions())
        return model_fingerprint(checkpoint.config, checkpoint.stored)

    whole = mixed.read_bytes()
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(whole)
    assert fingerprint(copy) == fingerprint(mixed)
    place = read_parts(mixed).tensors["blk.1.attn_v.weight"]
    changed = bytearray(whole)
    for offset in range(place.offset, place.offset + place.num_bytes, 7):
        changed[offset] ^= 1
    copy.write_bytes(changed)
    assert fingerprint(copy) != fingerprint(mixed)
    copy.write_bytes(with_value(whole, "llama.rope.freq_base", np.float32(123)))
    assert fingerprint(copy) != fingerprint(mixed)


def with_value(content: bytes, key: str, value: np.generic) -> bytes:
    """The content of a file with another value of a number of its metadata."""
    begin = content.index(key.encode()) + len(key) + 4  # behind the number of the type
    return content[:begin] + value.tobytes() + content[begin + value.nbytes :]


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    model = random_model(FAMILIES["llama2"])
    write_gguf(model, tmp_path / "m.gguf", lambda _: "Q8_0")
    whole = (tmp_path / "m.gguf").read_bytes()
    changed = with_value(whole, "llama.feed_forward_length", np.uint32(128))
    (tmp_path / "m.gguf").write_bytes(changed)
    with pytest.raises(ModelDirectoryError, match=r"gate_proj\.blocks in .*m\.gguf is \[96, 68\]"):
        load(tmp_path / "m.gguf")


def test_a_missing_and_an_unknown_tensor_are_refused(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": np.zeros((9, 64), np.float32)}
    with pytest.raises(ModelDirectoryError, match=r"the tensors of .*m\.gguf lack model\.norm"):
        load(write_file(tmp_path / "m.gguf", LLAMA, tensors))


def test_no_other_rounding_on_top_of_blocks(mixed: Path) -> None:
    options = EngineOptions(quantization="int8")
    with pytest.raises(UnsupportedModel, match=r"--quantization is int8, and .* is in GGUF"):
        open_checkpoint(mixed, options)


def load(file: Path) -> None:
    load_model_runner(file, EngineOptions("float32", PAGE_SIZE), lambda _: 4, CPU)
