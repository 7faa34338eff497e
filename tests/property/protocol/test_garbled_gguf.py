"""A GGUF file with any bytes in it is a model, or is refused with a sentence."""

from __future__ import annotations

import itertools
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.config import ModelConfig
from engine.weights.gguf.source import GgufSource
from protocol.errors import UserError
from protocol.model.files import open_model
from protocol.model.gguf.parts import read_parts
from protocol.model.tokenizer import load_tokenizer
from tests.support.gguf.edited_files import LLAMA, write_file

SETTINGS = LLAMA | {
    "llama.rope.freq_base": 10_000.0,
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 2.0,
    "llama.rope.scaling.original_context_length": 64,
    "llama.expert_count": 2,
    "llama.expert_used_count": 1,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.chat_template": "{{ messages }}",
    "general.sampling.temp": 0.5,
}
TENSORS = {
    "token_embd.weight": np.ones((6, 64), dtype=np.float32),
    "blk.0.attn_q.weight": np.ones((64, 64), dtype=np.float16),
    "blk.0.ffn_gate_exps.weight": np.ones((2, 4, 64), dtype=np.float16),
    "rope_freqs.weight": np.ones(8, dtype=np.float32),
}
names = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("garbled")


@lru_cache
def content_of(folder: Path) -> tuple[bytes, int]:
    """A whole file, and the length of its header."""
    file = write_file(folder / "whole.gguf", SETTINGS, TENSORS)
    read_everything(file)
    begin = min(place.offset for place in read_parts(file).tensors.values())
    return file.read_bytes(), begin


def read_everything(file: Path) -> None:
    model = open_model(file)
    config = model.config()
    ModelConfig.from_config(config, file)
    model.generation_config()
    model.chat_templates()
    load_tokenizer(file)
    source = GgufSource(file)
    for name in source.tensors:
        source.read(name)
        source.form_of(name.rpartition(".")[0])


@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=3),
    share=st.just(1.0) | st.floats(0.5, 1.0),
)
def test_any_bytes(folder: Path, edits: list[tuple[float, bytes]], share: float) -> None:
    content, header = content_of(folder)
    garbled = bytearray(content[: int(len(content) * share)])
    for where, replacement in edits:
        begin = int(where * header)
        garbled[begin : begin + len(replacement)] = replacement
    # A name of its own: headers are kept by name, size and time of writing.
    file = folder / f"{next(names)}.gguf"
    file.write_bytes(garbled)
    try:
        read_everything(file)
    except UserError as error:
        assert str(error)
    finally:
        file.unlink()


@given(
    key=st.sampled_from(sorted(SETTINGS)),
    value=st.none()
    | st.integers(0, 2**32 - 1)
    | st.floats(-65536.0, 65536.0, width=32)
    | st.booleans()
    | st.text(max_size=5)
    | st.lists(st.integers(0, 9), min_size=1, max_size=7)
    | st.lists(st.text(max_size=3), min_size=1, max_size=7),
)
def test_any_value(folder: Path, key: str, value: object) -> None:
    file = write_file(folder / f"{next(names)}.gguf", SETTINGS | {key: value}, TENSORS)
    try:
        read_everything(file)
    except UserError as error:
        assert str(error)
    finally:
        file.unlink()
