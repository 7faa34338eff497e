"""Settings of quantisation as producers write them are read, or refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.model.config import ModelConfig
from engine.model.quantisation import SUPPORTED_METHODS, read_quantisation
from protocol.errors import UserError
from protocol.model.directory import read_config
from tests.support.quantised.quantization_configs import CASES, Case

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_read_or_refused(case: Case, tmp_path: Path) -> None:
    write(tmp_path, case)
    try:
        settings = read_quantisation(read_config(tmp_path))
        ModelConfig.from_directory(tmp_path)
    except UserError as error:
        assert case.expected != "supported", error
        assert str(error).startswith("the model "), "one sentence"
        assert SUPPORTED_METHODS in str(error), "which says what to choose instead"
        return
    assert case.expected != "refused"
    assert (settings is None) == case.is_plain


def test_the_table_has_all_kinds() -> None:
    assert {case.expected for case in CASES} == {"supported", "refused", "either"}
    assert any(case.is_plain for case in CASES)


def write(path: Path, case: Case) -> None:
    config: dict[str, Any] = BASE | case.config
    (path / "config.json").write_text(json.dumps(config))
    for name, content in case.files.items():
        (path / name).write_text(json.dumps(content))
