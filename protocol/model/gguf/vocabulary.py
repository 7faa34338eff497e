"""Makes a tokenizer.json of the vocabulary in a GGUF file.

Two kinds are known. "gpt2" is byte-level BPE, whose merges are in the file. "llama" is
SentencePiece's BPE, which has a score for each token in place of merges: of two neighbours, those
are joined first whose token has the highest score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from protocol.model.directory import ModelDirectoryError
from protocol.model.gguf.header import damaged
from protocol.model.gguf.parts import GgufParts
from protocol.model.gguf.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from protocol.model.tokenizer_content import TokenizerContent

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""The types of tokens that matter here; the others are bytes and rows that nothing uses."""
NAMES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "mask_token": "mask",
}
"""The keys of the metadata by the names that templates have for tokens; one is misspelt there."""
KINDS = ("gpt2", "llama")
MOST_TOKEN_CHARACTERS = 1 << 12
"""No vocabulary has a longer token, and each is tried in all its halves."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Stands for a space in the tokens of SentencePiece."""
KEEPING_SPACE = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""The special tokens of a Phi-3 that leave a space behind them alone; the others swallow it."""


class Vocabulary:
    """The vocabulary of one model."""

    def __init__(self, parts: GgufParts, vocab_size: int) -> None:
        """`vocab_size` is the number of rows of the embedding. Raises ModelDirectoryError."""
        self._parts = parts
        self._kind = parts.metadata.get("tokenizer.ggml.model", "none")
        if self._kind not in KINDS:
            raise ModelDirectoryError(
                f"{parts.file} has a tokenizer of the kind {self._kind:.40}; of GGUF this engine "
                f"supports {' and '.join(KINDS)}"
            )
        self._tokens = self._texts(vocab_size)
        self._types: Sequence[int] = self._column("token_type") or [NORMAL] * len(self._tokens)
        self._ids = {text: number for number, text in enumerate(self._tokens)}
        if len(self._ids) != len(self._tokens):
            repeated = next(t for i, t in enumerate(self._tokens) if self._ids[t] != i)
            raise ModelDirectoryError(
                f"{parts.file} has two tokens {repeated!r}; convert the model again"
            )

    def content(self) -> TokenizerContent:
        """Returns the tokenizer. Raises ModelDirectoryError."""
        named = self._special_tokens()
        parts = self._byte_level() if self._kind == "gpt2" else self._sentence_piece(named)
        adds_bos, model = parts.pop("adds_bos"), parts.pop("model")
        content = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._added_tokens(),
            **parts,
            "post_processor": self._post_processor(adds_bos),
            "model": {"type": "BPE", "vocab": self._ids, **model},
        }
        return TokenizerContent(self._parts.file, content, named)

    def _byte_level(self) -> dict[str, Any]:
        form = self._pre_tokenizer()
        merges = self._parts.array("tokenizer.ggml.merges")
        if merges is None:
            raise ModelDirectoryError(
                f"{self._parts.file} has no tokenizer.ggml.merges; convert the model again"
            )
        cuts = [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }
            for pattern in form.patterns
        ]
        byte_level = {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": False,
            "use_regex": False,
        }
        return {
            "normalizer": {"type": "NFC"} if form.composes else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
            "decoder": byte_level,
            "model": {"merges": merges, "ignore_merges": form.ignores_merges},
            "adds_bos": form.adds_bos,
        }

    def _pre_tokenizer(self) -> PreTokenizer:
        name = self._parts.metadata.get("tokenizer.ggml.pre")
        if name not in PRE_TOKENIZERS:
            raise ModelDirectoryError(
                f"{self._parts.file} has the tokenizer.ggml.pre {name!r:.40}, which does not tell "
                f"how a text is cut into words; this engine knows {len(PRE_TOKENIZERS)} names, "
                "such as llama-bpe, qwen2 and tekken: convert the model again with a current "
                "llama.cpp, or use its *.safetensors"
            )
        return PRE_TOKENIZERS[name]

    def _sentence_piece(self, named: Mapping[str, str]) -> dict[str, Any]:
        scores = self._column("scores")
        if scores is None:
            raise ModelDirectoryError(
                f"{self._parts.file} has no tokenizer.ggml.scores; convert the model again"
            )
        has_prefix = self._parts.metadata.get("tokenizer.ggml.add_space_prefix", True)
        steps = [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
        undo: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if has_prefix:
            steps.insert(0, {"type": "Prepend", "prepend": SPACE})
            undo.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        return {
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": None,
            "decoder": {"type": "Sequence", "decoders": undo},
            "model": {
                "merges": self._merges(scores),
                "unk_token": named.get("unk_token"),
                "fuse_unk": True,
                "byte_fallback": True,
            },
            "adds_bos": True,
        }

    def _merges(self, scores: Sequence[float]) -> list[tuple[str, str]]:
        """Returns every way to make a token of two others, the highest score first."""
        normal = [i for i, kind in enumerate(self._types) if kind == NORMAL]
        ids, tokens = self._ids, self._tokens
        merges = []
        for number in sorted(normal, key=lambda number: -scores[number]):
            text = tokens[number]
            splits = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
            merges += [pair for pair in splits if pair[0] in ids and pair[1] in ids]
        return merges

    def _added_tokens(self) -> list[dict[str, Any]]:
        """Returns the tokens that are found in a text before it is cut."""
        architecture = self._parts.metadata.get("general.architecture")
        is_phi3 = architecture == "phi3" and self._kind == "llama"
        return [
            {
                "id": number,
                "content": self._tokens[number],
                "single_word": False,
                "lstrip": False,
                "rstrip": is_phi3 and self._tokens[number] not in KEEPING_SPACE,
                "normalized": False,
                "special": kind != USER_DEFINED,
            }
            for number, kind in enumerate(self._types)
            if kind in (CONTROL, USER_DEFINED, UNKNOWN)
        ]

    def _post_processor(self, adds_bos: bool) -> dict[str, Any] | None:
        """Returns what puts tokens around a text; None if there are none."""
        metadata = self._parts.metadata
        has_bos = metadata.get("tokenizer.ggml.add_bos_token", adds_bos)
        has_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
        before = [one for one in [self._token("bos")] if has_bos and one is not None]
        behind = [one for one in [self._token("eos")] if has_eos and one is not None]
        if not before and not behind:
            return None
        template = [
            *({"SpecialToken": {"id": one, "type_id": 0}} for one in before),
            {"Sequence": {"id": "A", "type_id": 0}},
            *({"SpecialToken": {"id": one, "type_id": 0}} for one in behind),
        ]
        return {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                one: {"id": one, "ids": [self._ids[one]], "tokens": [one]}
                for one in [*before, *behind]
            },
        }

    def _special_tokens(self) -> dict[str, str]:
        found = {name: self._token(key) for name, key in NAMES.items()}
        return {name: text for name, text in found.items() if text is not None}

    def _token(self, key: str) -> str | None:
        """Returns the text of a token that the metadata names."""
        number = self._parts.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is None or not 0 <= number < len(self._tokens):
            return None
        return self._tokens[number]

    def _texts(self, vocab_size: int) -> list[str]:
        tokens = self._parts.array("tokenizer.ggml.tokens")
        if tokens is None:
            raise ModelDirectoryError(
                f"{self._parts.file} has no tokenizer.ggml.tokens; fetch another file of the model"
            )
        if len(tokens) > vocab_size:
            raise ModelDirectoryError(
                f"{self._parts.file} has {len(tokens)} tokens, and its token_embd.weight rows for "
                f"{vocab_size}; fetch the model again"
            )
        if max(map(len, tokens), default=0) > MOST_TOKEN_CHARACTERS:
            raise damaged(
                self._parts.file, f"it has a token of more than {MOST_TOKEN_CHARACTERS} characters"
            )
        return [text or f"[EMPTY_{number}]" for number, text in enumerate(tokens)]

    def _column(self, name: str) -> list[Any] | None:
        """Returns an array with a value for each token."""
        values = self._parts.array(f"tokenizer.ggml.{name}")
        if values is not None and len(values) != len(self._tokens):
            raise ModelDirectoryError(
                f"{self._parts.file} has {len(values)} values in tokenizer.ggml.{name} for "
                f"{len(self._tokens)} tokens; convert the model again"
            )
        return values


def chat_templates(parts: GgufParts) -> dict[str, str]:
    """Returns the chat templates of a model by name."""
    key = "tokenizer.chat_template"
    found = {}
    if isinstance(default := parts.metadata.get(key), str):
        found["default"] = default
    named: Iterable[str] = parts.array("tokenizer.chat_templates") or ()
    for name in named:
        if isinstance(text := parts.metadata.get(f"{key}.{name}"), str):
            found[name] = text
    return found
