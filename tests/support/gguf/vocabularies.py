"""Vocabularies with the ids that llama.cpp has for some texts, and small cuts of them.

llama.cpp publishes vocabularies of well-known models as `ggml-vocab-NAME.gguf`, each beside texts
(`.inp`) and the ids that it expects for them (`.out`). The source archive of llama-cpp-python has
them in `vendor/llama.cpp/models`; `make gguf-files` fetches them. `python -m
tests.support.gguf.vocabularies` makes the cuts in `tests/data/vocabularies` of them: what none of
the texts needs is left out, and tokens are numbered anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import gguf
from tokenizers import Tokenizer

from protocol.model.gguf.parts import GgufParts, read_parts
from protocol.model.gguf.vocabulary import CONTROL, NORMAL, USER_DEFINED, Vocabulary
from protocol.model.numbers import MOST_TOKENS
from tests.support.gguf.fetched_files import FETCHED

CUTS = Path(__file__).resolve().parents[2] / "data" / "vocabularies"
CUT_NAMES = ("falcon", "gpt-2", "phi-3", "qwen2", "qwen35")
"""Those whose licences (Apache 2.0, MIT) let anyone pass a part on."""
BETWEEN_TEXTS = "\n__ggml_vocab_test__\n"
MOST_SPECIAL_TOKENS = 20
Case = tuple[str, list[int]]
"""A text and its ids, without any around it."""


def published_cases(file: Path) -> list[Case]:
    """The texts and ids beside a vocabulary."""
    texts = file.with_name(f"{file.name}.inp").read_text(encoding="utf-8").split(BETWEEN_TEXTS)
    lines = file.with_name(f"{file.name}.out").read_text().split("\n")
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


def cut_cases(name: str) -> list[Case]:
    return [(text, ids) for text, ids in json.loads((CUTS / f"{name}.json").read_text("utf-8"))]


def tokenizer_of(file: Path) -> Tokenizer:
    read = Vocabulary(read_parts(file), MOST_TOKENS).content()
    return Tokenizer.from_str(json.dumps(read.content))


def cut(file: Path, name: str) -> None:
    """Writes the cut of a vocabulary, and its cases."""
    parts, cases = read_parts(file), published_cases(file)
    content = Vocabulary(parts, MOST_TOKENS).content().content
    ids, merges = content["model"]["vocab"], content["model"]["merges"]
    pairs = [tuple(one.split(" ")) if isinstance(one, str) else one for one in merges]
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    tokenizer = tokenizer_of(file)
    used_ranks: set[int] = set()
    for text, _ in cases:
        for word in _words(tokenizer, text):
            used_ranks |= _used_merges(word, ranks)
    kept = {number for _, found in cases for number in found}
    kept |= {ids[part] for rank in used_ranks for part in (*pairs[rank], "".join(pairs[rank]))}
    kept |= {number for text, number in ids.items() if len(text) == 1 and number < 300}
    kept |= set(_bytes_and_special(parts))
    old = sorted(kept)
    _write(parts, file, name, old, [merges[rank] for rank in sorted(used_ranks)])
    new = {number: i for i, number in enumerate(old)}
    renumbered = [[text, [new[number] for number in found]] for text, found in cases]
    (CUTS / f"{name}.json").write_text(json.dumps(renumbered, ensure_ascii=False), "utf-8")


def _words(tokenizer: Tokenizer, text: str) -> Iterator[str]:
    """Yields what BPE is given, without what is found in a text before."""
    normalized = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    if tokenizer.pre_tokenizer is None:
        yield normalized
        return
    yield from (word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normalized))


def _used_merges(word: str, ranks: dict[tuple[str, str], int]) -> set[int]:
    """The ranks of the merges that are made in a word: the lowest first, from the left."""
    symbols, used = list(word), set()
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
        if not found:
            return used
        rank, i = min(found)
        used.add(rank)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


def _bytes_and_special(parts: GgufParts) -> list[int]:
    types = parts.array("tokenizer.ggml.token_type") or []
    special = [i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    others = [i for i, kind in enumerate(types) if kind not in (CONTROL, USER_DEFINED, NORMAL, 5)]
    named = [value for key, value in parts.metadata.items() if key.endswith("_token_id")]
    return [*special[:MOST_SPECIAL_TOKENS], *others, *named]


def _write(
    parts: GgufParts, file: Path, name: str, old: Sequence[int], merges: Sequence[str]
) -> None:
    new = {number: i for i, number in enumerate(old)}
    writer = gguf.GGUFWriter(CUTS / f"{name}.gguf", parts.metadata["general.architecture"])
    writer.add_tokenizer_model(parts.metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(parts.metadata.get("tokenizer.ggml.pre", "default"))
    texts = parts.array("tokenizer.ggml.tokens") or []
    writer.add_token_list([texts[i] for i in old])
    types = parts.array("tokenizer.ggml.token_type") or []
    writer.add_token_types([types[i] for i in old])
    if scores := parts.array("tokenizer.ggml.scores"):
        writer.add_token_scores([scores[i] for i in old])
    if "tokenizer.ggml.merges" in parts.metadata:
        writer.add_token_merges(merges)
    for key, value in parts.metadata.items():
        if key.endswith("_token_id"):
            writer.add_uint32(key, new[value])
        elif key.startswith("tokenizer.ggml.add_"):
            writer.add_bool(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    for chosen in CUT_NAMES:
        cut(FETCHED / "models" / f"ggml-vocab-{chosen}.gguf", chosen)
