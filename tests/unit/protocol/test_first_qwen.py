"""A directory of the first Qwen, as it was published: ranks in place of a tokenizer.json, and keys
of its own in config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coordinator.answers.template_sources import template_sources
from coordinator.answers.tokenizer import Tokenizer
from protocol.model.directory import ModelDirectoryError, read_config
from protocol.model.first_qwen import SPECIAL_TOKENS
from protocol.model.tokenizer import check_tokenizer, load_tokenizer
from tests.support.checkpoints.first_qwen import CHAT, PUBLISHED, write_ranks

RANKS = {bytes([value]): value for value in range(256)} | {b"he": 256, b"llo": 258, b"lo": 257}
END, BEGIN_MESSAGE, END_MESSAGE = 259, 260, 261
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "kv_channels": 16,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 8192,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "seq_length": 2048,
    "vocab_size": 512,
}
OLDEST = {
    "n_embd": 64,
    "ffn_hidden_size": 192,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 6144,
    "params_dtype": "torch.bfloat16",
}

RENAMED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "max_position_embeddings",
)


def write(path: Path, generation: dict[str, Any] | None = CHAT, **changes: Any) -> Path:
    (path / "config.json").write_text(json.dumps(PUBLISHED | SIZES | changes))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    tokenizer_config = {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"}
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    write_ranks(path, RANKS)
    return path


def test_config_has_llamas_keys_too(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    expected = {
        "head_dim": 16,
        "intermediate_size": 96,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000,
        "torch_dtype": "float32",
    }
    assert expected.items() <= config.items()


def test_the_oldest_config_says_the_same(tmp_path: Path) -> None:
    new = read_config(write(tmp_path))
    others = {key: one for key, one in (PUBLISHED | SIZES).items() if key not in RENAMED}
    (tmp_path / "config.json").write_text(json.dumps({**others, **OLDEST, "fp32": False}))
    old = read_config(tmp_path)
    assert {key: old[key] for key in RENAMED} == {key: new[key] for key in RENAMED}
    assert old["torch_dtype"] == "torch.bfloat16"


def test_ids_are_ranks_and_special_tokens_follow(tmp_path: Path) -> None:
    model = load_tokenizer(write(tmp_path))
    assert model.tokenizer.encode("hello<|im_end|>").ids == [256, 258, END_MESSAGE]
    assert model.tokenizer.decode([256, 258, END], skip_special_tokens=True) == "hello"
    assert model.tokenizer.token_to_id(SPECIAL_TOKENS[-1]) == END + len(SPECIAL_TOKENS) - 1


@pytest.mark.parametrize(
    ("generation", "ends"),
    [
        ({**CHAT, "eos_token_id": END}, (END, BEGIN_MESSAGE, END_MESSAGE)),
        ({"chat_format": "raw", "eos_token_id": END}, (END,)),
        (None, (END,)),
    ],
)
def test_marks_of_messages_end_the_answers_of_models_that_chat(
    tmp_path: Path, generation: dict[str, Any] | None, ends: tuple[int, ...]
) -> None:
    write(tmp_path, generation)
    assert load_tokenizer(tmp_path).end_token_ids == ends
    assert bool(template_sources(tmp_path, "")) == (len(ends) > 1), "only they have a template"


def test_a_chat_is_written_as_the_models_own_code_does(tmp_path: Path) -> None:
    template = Tokenizer(write(tmp_path)).chat_template
    assert template is not None
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
    ]
    own = "<|im_start|>system\nBe brief.<|im_end|>\n"
    text = (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
        "<|im_start|>user\nbye<|im_end|>\n<|im_start|>assistant\n"
    )
    default = own.replace("Be brief.", "You are a helpful assistant.")
    assert template.render(chat) == default + text
    assert template.render([{"role": "system", "content": "Be brief."}, *chat]) == own + text


def test_the_directorys_own_files_go_first(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "mine"}))
    assert template_sources(tmp_path, "") == {"default": "mine"}
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelDirectoryError, match=r"tokenizer\.json"):
        check_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "no file of tokens.*git lfs"),
        ("aGk= 0\naG8= 2\n", "not those from 0 on"),
        ("aGk= 0\n", "the byte 0 is no token"),
        ("\U0001f642 0\n", "no file of tokens"),
    ],
)
def test_a_damaged_file_of_ranks_is_refused(tmp_path: Path, content: str, reason: str) -> None:
    (write(tmp_path) / "qwen.tiktoken").write_text(content)
    with pytest.raises(ModelDirectoryError, match=reason):
        check_tokenizer(tmp_path)
