"""Every file of a model directory has its say about the tokenizer, as with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from protocol.model.directory import ModelDirectoryError
from protocol.model.tokenizer import check_tokenizer, load_tokenizer
from tests.support.models import tokenizers
from tests.support.models.model_directories import (
    VOCAB_SIZE,
    added_token,
    change_tokenizer,
    write_tokenizer,
)

TRUNCATION = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 24},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "!",
}
NEXT = tokenizers.byte_level().get_vocab_size()
"""The first id that the byte-level tokenizer has no token for."""
BOS = {"bos_token": tokenizers.SPECIAL}


def ids_of(path: Path, text: str) -> list[int]:
    return list(load_tokenizer(path).tokenizer.encode(text).ids)


def test_truncation_and_padding_are_nobodys_wish(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    plain = ids_of(tmp_path, "a long text")
    change_tokenizer(tmp_path, truncation=TRUNCATION, padding=PADDING)
    assert ids_of(tmp_path, "a long text") == plain and len(plain) > 4
    model = load_tokenizer(tmp_path)
    assert model.tokenizer.truncation is None and model.tokenizer.padding is None
    assert Tokenizer.from_str(model.json_text).encode("a long text").ids == plain


@pytest.mark.parametrize("is_special", [False, True])
@pytest.mark.parametrize("number", [NEXT, NEXT + 5])
def test_tokens_of_tokenizer_config_have_their_ids_and_flags(
    tmp_path: Path, is_special: bool, number: int
) -> None:
    declared = {str(number): added_token("<tool>", is_special)}
    write_tokenizer(tmp_path, tokenizer_config={"added_tokens_decoder": declared})
    model = load_tokenizer(tmp_path)
    ids = model.tokenizer.encode("a<tool>b").ids
    assert ids[1] == number and len(ids) == 3
    shown = model.tokenizer.decode(ids, skip_special_tokens=True)
    assert shown == ("ab" if is_special else "a<tool>b")
    assert model.tokenizer.token_to_id(tokenizers.SPECIAL) == NEXT - 2, "others keep theirs"


def test_tokens_of_added_tokens_json_count_in_older_directories(tmp_path: Path) -> None:
    write_tokenizer(
        tmp_path,
        tokenizer_config={"additional_special_tokens": ["<x>"]},
        added_tokens={"<tool>": NEXT, "<x>": NEXT + 1},
    )
    model = load_tokenizer(tmp_path)
    assert model.tokenizer.encode("<tool><x>").ids == [NEXT, NEXT + 1]
    assert model.tokenizer.decode([NEXT, NEXT + 1]) == "<tool>"


def test_tokens_of_both_files_are_merged(tmp_path: Path) -> None:
    write_tokenizer(
        tmp_path,
        tokenizer_config={"added_tokens_decoder": {str(NEXT): added_token("<one>", True)}},
        added_tokens={"<one>": NEXT, "<two>": NEXT + 1},
    )
    model = load_tokenizer(tmp_path)
    ids = model.tokenizer.encode("<one><two>").ids
    assert ids == [NEXT, NEXT + 1] and model.tokenizer.decode(ids) == "<two>"


def test_the_flags_of_tokenizer_config_go_first(tmp_path: Path) -> None:
    plain = tokenizers.byte_level().token_to_id(tokenizers.PLAIN)
    declared = {str(plain): added_token(tokenizers.PLAIN, True)}
    write_tokenizer(tmp_path, tokenizer_config={"added_tokens_decoder": declared})
    assert load_tokenizer(tmp_path).tokenizer.decode([plain]) == ""


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {str(NEXT): added_token("<tool>", False)}}},
        {"added_tokens": {"<tool>": NEXT}},
        {"tokenizer_config": {"eos_token": "<eos>", "additional_special_tokens": ["<tool>"]}},
        {"tokenizer_config": {"eos_token": "he", "add_bos_token": False}},
        {"tokenizer_config": {**BOS, "add_bos_token": True}},
        {"tokenizer_config": {**BOS, "eos_token": "he", "add_eos_token": True}},
        {"special_tokens_map": {"eos_token": added_token("llo", True)}},
    ],
)
def test_ids_and_texts_are_those_of_transformers(tmp_path: Path, files: dict[str, Any]) -> None:
    tokenizer = tokenizers.byte_level()
    special = tokenizers.SPECIAL
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special} $A", special_tokens=[(special, tokenizer.token_to_id(special))]
    )
    write_tokenizer(tmp_path, tokenizer, **files)
    reference = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    model = load_tokenizer(tmp_path)
    for text in ("hello <tool> wörld", f"<think>{special}<eos> he", "👍"):
        ids = model.tokenizer.encode(text).ids
        assert ids == reference(text)["input_ids"]
        for skips in (False, True):
            decoded = model.tokenizer.decode(ids, skip_special_tokens=skips)
            assert decoded == reference.decode(ids, skip_special_tokens=skips)


@pytest.mark.parametrize(
    ("of_config", "of_generation", "of_tokenizer", "expected"),
    [
        (7, None, None, (7,)),
        (7, {"eos_token_id": None}, None, (7,)),
        (7, {}, None, (7,)),
        (7, {"eos_token_id": [8, 7]}, None, (7, 8)),
        (None, {"eos_token_id": 8}, tokenizers.SPECIAL, (8, NEXT - 2)),
        (7, {"eos_token_id": 8}, {"content": tokenizers.SPECIAL}, (7, 8, NEXT - 2)),
        (None, None, None, ()),
    ],
)
def test_what_ends_an_answer_is_the_union_of_all_files(
    tmp_path: Path, of_config: Any, of_generation: Any, of_tokenizer: Any, expected: Any
) -> None:
    files = {} if of_generation is None else {"generation_config": of_generation}
    config = {"eos_token_id": of_config}
    write_tokenizer(tmp_path, config=config, tokenizer_config={"eos_token": of_tokenizer}, **files)
    assert load_tokenizer(tmp_path).end_token_ids == expected


def test_a_special_token_that_the_model_has_no_row_for_is_left_out(tmp_path: Path) -> None:
    tokenizer_config = {"pad_token": "[PAD]"}
    write_tokenizer(tmp_path, config={"vocab_size": NEXT}, tokenizer_config=tokenizer_config)
    assert load_tokenizer(tmp_path).tokenizer.token_to_id("[PAD]") is None
    image = {str(NEXT): added_token("<image_soft_token>", True)}
    tokenizer_config = {"added_tokens_decoder": image}
    write_tokenizer(tmp_path, config={"vocab_size": NEXT}, tokenizer_config=tokenizer_config)
    assert load_tokenizer(tmp_path).tokenizer.token_to_id("<image_soft_token>") is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"config": {"vocab_size": NEXT - 1}},
            rf"ids up to {NEXT - 1} \('<think>'\).*vocab_size of {NEXT - 1}",
        ),
        (
            {"added_tokens": {"<tool>": VOCAB_SIZE}},
            rf"ids up to {VOCAB_SIZE} \('<tool>'\).*vocab_size of {VOCAB_SIZE}",
        ),
        (
            {"added_tokens": {"<tool>": 5}},
            "the id 5 to two tokens: .* in tokenizer.json and '<tool>'",
        ),
        (
            {"added_tokens": {"<think>": NEXT}},
            rf"'<think>' two ids: {NEXT - 1} in tokenizer.json and {NEXT}",
        ),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": "y"}}}, "'x': 'y' among its added"),
        ({"tokenizer_config": {"added_tokens_decoder": [1]}}, r"\[1\] among its added tokens"),
        ({"added_tokens": {"<tool>": "7"}}, "'<tool>': '7' among its added tokens"),
        ({"config": {"vocab_size": 10**12}}, "vocab_size 1000000000000; .*4194304"),
        ({"config": {"vocab_size": None}}, "no vocab_size"),
        ({"config": {"eos_token_id": VOCAB_SIZE}}, rf"eos_token_id {VOCAB_SIZE}.*{VOCAB_SIZE - 1}"),
        (
            {"generation_config": {"eos_token_id": [1, -1]}},
            "generation_config.json.*eos_token_id -1",
        ),
        ({"config": {"eos_token_id": "</s>"}}, "eos_token_id '</s>'"),
    ],
)
def test_files_that_disagree_are_refused_with_both_values(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    write_tokenizer(tmp_path, **changes)
    with pytest.raises(ModelDirectoryError, match=says):
        load_tokenizer(tmp_path)


def test_a_node_checks_the_same_without_building_it(tmp_path: Path) -> None:
    check_tokenizer(tmp_path)  # there is none
    write_tokenizer(tmp_path)
    check_tokenizer(tmp_path)
    write_tokenizer(tmp_path, config={"vocab_size": 100})
    with pytest.raises(ModelDirectoryError, match="vocab_size of 100"):
        check_tokenizer(tmp_path)


def test_damaged_files_are_explained(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    broken: list[dict[str, Any]] = [
        {},
        {"model": {"type": "BPE"}},
        {"model": {"vocab": {}}, "added_tokens": [{"id": 1}]},
        {"model": {"vocab": {}}, "added_tokens": 1},
        {"model": {"vocab": {}}, "added_tokens": [{"id": True, "content": "a"}]},
        {"model": {"vocab": {"a": "0"}}},
        {"model": {"vocab": {"a": -1}}},
        {"model": {"vocab": [[]]}},
        {"model": {"vocab": ["a"]}},
    ]
    nested = "[" * 100_000
    for content in ("version https://git-lfs", "[]", nested, *map(json.dumps, broken)):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ModelDirectoryError, match=r"cannot be read.*git lfs pull"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ModelDirectoryError, match=r"no tokenizer\.json.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("number", ["²", "-1", "1" * 5000])
def test_added_tokens_have_ids_of_digits(tmp_path: Path, number: str) -> None:
    write_tokenizer(tmp_path, tokenizer_config={"added_tokens_decoder": {number: "<new>"}})
    with pytest.raises(ModelDirectoryError, match=r"tokenizer_config\.json has .* '<new>' among"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("tokens", ["<new>", 1])
def test_special_tokens_without_names_are_a_list(tmp_path: Path, tokens: Any) -> None:
    write_tokenizer(tmp_path, tokenizer_config={"additional_special_tokens": tokens})
    with pytest.raises(ModelDirectoryError, match=r"additional_special_tokens .* must be a list"):
        load_tokenizer(tmp_path)
