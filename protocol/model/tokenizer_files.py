"""Reads the tokenizer of a model directory as transformers would: tokenizer.json, with what the
other files say of added tokens, special tokens and the tokens around a text.

Coordinators and nodes must agree on every id, so both take the tokenizer from here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from protocol.model import first_qwen
from protocol.model.directory import ModelDirectoryError, read_json
from protocol.model.tiktoken_ranks import read_ranks, tokenizer_of_ranks

NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The keys of tokenizer_config.json and special_tokens_map.json that name one special token."""
LISTED_TOKENS = ("additional_special_tokens", "extra_special_tokens")
IMAGE_TOKENS = ("<image_soft_token>",)
"""Tokens that stand for an image. Text models of families that also see keep them in their
tokenizers, beyond their vocabularies (Gemma 3 1B); no text has them, so they are left out."""
ID = re.compile("[0-9]{1,10}")
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}


class TokenizerFiles:
    """The files of one model directory that concern its tokenizer."""

    def __init__(self, path: Path) -> None:
        """Raises ModelDirectoryError."""
        self.path = path
        self.config = read_json(path / "tokenizer_config.json") or {}
        special_tokens_map = read_json(path / "special_tokens_map.json") or {}
        defaults = first_qwen.NAMED_TOKENS if _has_ranks_alone(path) else {}
        self.special_tokens = _special_tokens([defaults, special_tokens_map, self.config])
        """The text of each token that has a name: "bos_token", "eos_token" and so on."""
        self._listed = _listed_tokens([special_tokens_map, self.config], path)

    def merged(self, vocab_size: int) -> dict[str, Any]:
        """Returns the content of tokenizer.json with everything merged into it. What it puts around
        a text stays, whatever tokenizer_config.json says of add_bos_token, as in transformers 5.

        Raises ModelDirectoryError if two files give one id to two tokens or one token two ids, and
        if an id is not below `vocab_size`, the number of rows of the model's embedding.
        """
        content = _tokenizer_of(self.path)
        # transformers leaves both to the caller of each text; obeyed, they would cut prompts.
        content["truncation"] = content["padding"] = None
        vocabulary = _vocabulary_of(content, self.path)
        added = _AddedTokens(self.path, content.get("added_tokens") or [], vocabulary, vocab_size)
        for token in self._declared_tokens():
            added.declare(token)
        named = [*self.special_tokens.values(), *self._listed]
        for text in dict.fromkeys(named):
            added.mark_special(text)
        content["added_tokens"] = added.tokens()
        _require_ids_below(vocab_size, {**vocabulary, **added.ids()}, self.path)
        _keep_ids(content, vocabulary)
        return content

    def _declared_tokens(self) -> Iterator[dict[str, Any]]:
        """Yields what tokenizer_config.json adds, and what older directories have in
        added_tokens.json."""
        declared = self.config.get("added_tokens_decoder") or {}
        older = read_json(self.path / "added_tokens.json") or {}
        if not isinstance(declared, Mapping):
            raise self._wrong("tokenizer_config.json", "added_tokens_decoder", declared)
        texts = set()
        for number, token in declared.items():
            text = _text_of(token)
            if not text or ID.fullmatch(str(number)) is None:
                raise self._wrong("tokenizer_config.json", number, token)
            texts.add(text)
            yield _declared(text, int(number), token if isinstance(token, Mapping) else {})
        for text, number in older.items():
            if not _is_id(number):
                raise self._wrong("added_tokens.json", text, number)
            if text not in texts:
                is_special = text in (*self.special_tokens.values(), *self._listed)
                yield _declared(text, number, {"special": is_special})

    def _wrong(self, file: str, key: object, value: object) -> ModelDirectoryError:
        return ModelDirectoryError(
            f"{self.path}/{file} has {key!r:.80}: {value!r:.80} among its added tokens, each of "
            "which has a text and an id; fetch it again"
        )


class _AddedTokens:
    """The added tokens of a tokenizer, by their texts."""

    def __init__(
        self,
        path: Path,
        tokens: Iterable[dict[str, Any]],
        vocabulary: Mapping[str, int],
        vocab_size: int,
    ) -> None:
        """`tokens` are those of tokenizer.json; `vocab_size` is the number of ids of the model."""
        self._path = path
        self._vocab_size = vocab_size
        self._vocabulary = vocabulary
        self._tokens: dict[str, dict[str, Any]] = {}
        self._texts = {number: text for text, number in vocabulary.items()}
        for token in tokens:
            if not self._is_left_out(token):
                self._keep(token)

    def declare(self, token: dict[str, Any]) -> None:
        """Adds a token of another file, whose flags go before those of tokenizer.json."""
        text, number = token["content"], token["id"]
        if self._is_left_out(token):
            return
        known = self._id_of(text)
        if known is not None and known != number:
            raise ModelDirectoryError(
                f"{self._path} gives the token {text!r:.80} two ids: {known} in tokenizer.json and "
                f"{number} in tokenizer_config.json or added_tokens.json; fetch both again"
            )
        other = self._texts.get(number, text)
        if other != text:
            raise ModelDirectoryError(
                f"{self._path} gives the id {number} to two tokens: {other!r:.80} in "
                f"tokenizer.json and {text!r:.80} in tokenizer_config.json or added_tokens.json; "
                "fetch both again"
            )
        self._keep(token)

    def mark_special(self, text: str) -> None:
        """Makes a token special that has a name. One that no file gives an id gets the next one,
        as in transformers, unless the model has no more: then no answer can have it either."""
        token = self._tokens.get(text)
        number = self._id_of(text)
        if number is None:
            number = max(self._texts, default=-1) + 1
            if number >= self._vocab_size:
                return
        if token is None:
            self._keep(_declared(text, number, {"special": True}))
        else:
            self._keep({**token, "special": True})

    def tokens(self) -> list[dict[str, Any]]:
        return sorted(self._tokens.values(), key=lambda token: int(token["id"]))

    def ids(self) -> dict[str, int]:
        return {text: int(token["id"]) for text, token in self._tokens.items()}

    def _is_left_out(self, token: Mapping[str, Any]) -> bool:
        return token["content"] in IMAGE_TOKENS and int(token["id"]) >= self._vocab_size

    def _id_of(self, text: str) -> int | None:
        token = self._tokens.get(text)
        return int(token["id"]) if token is not None else self._vocabulary.get(text)

    def _keep(self, token: dict[str, Any]) -> None:
        self._tokens[token["content"]] = token
        self._texts[int(token["id"])] = token["content"]


def _declared(text: str, number: int, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an added token in tokenizer.json's form, with transformers' defaults."""
    is_special = bool(flags.get("special"))
    defaults = {**FLAGS, "normalized": not is_special, "special": is_special}
    known = {key: flags[key] for key in defaults if key in flags}
    return {**defaults, **known, "id": number, "content": text}


def tokenizer_file(path: Path) -> Path:
    """Returns the file of the model directory `path` that its tokenizer is read from; it need not
    be there."""
    return path / (first_qwen.RANKS_FILE if _has_ranks_alone(path) else "tokenizer.json")


def _has_ranks_alone(path: Path) -> bool:
    """Returns True for a directory of the first Qwen as it was published, whose tokenizer is code
    beside a file of ranks."""
    is_ranked = (path / first_qwen.RANKS_FILE).is_file()
    return is_ranked and not (path / "tokenizer.json").is_file()


def _tokenizer_of(path: Path) -> dict[str, Any]:
    if not _has_ranks_alone(path):
        return _read_tokenizer_json(path / "tokenizer.json")
    ranks = read_ranks(path / first_qwen.RANKS_FILE)
    return tokenizer_of_ranks(ranks, first_qwen.PATTERN, first_qwen.SPECIAL_TOKENS)


def _read_tokenizer_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelDirectoryError(
            f"{file.parent} has no tokenizer.json; save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(…).save_pretrained(…) writes it)"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error) from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise unreadable(file, ValueError("it has no model"))
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise unreadable(file, ValueError("its added_tokens are no list"))
    for token in added:
        if not isinstance(token, dict) or not _is_id(token.get("id")) or not _text_of(token):
            raise unreadable(file, ValueError(f"it has the added token {token!r:.80}"))
    return content


def unreadable(file: Path, error: Exception) -> ModelDirectoryError:
    """Returns the error for a tokenizer.json that is damaged or not there as a whole."""
    return ModelDirectoryError(
        f"{file} cannot be read ({error}); fetch it again, and if git did it, with git lfs pull"
    )


def _vocabulary_of(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Returns the ids of the tokens that are not added ones, by text."""
    vocabulary, file = content["model"].get("vocab"), path / "tokenizer.json"
    if isinstance(vocabulary, list):  # Unigram's: pairs of text and score
        if not all(isinstance(piece, list) and piece for piece in vocabulary):
            raise unreadable(file, ValueError("its vocab is no list of pairs"))
        return {str(piece[0]): number for number, piece in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict):
        raise unreadable(file, ValueError("its model has no vocab"))
    if not all(map(_is_id, vocabulary.values())):
        raise unreadable(file, ValueError("its vocab has values that are no ids"))
    return vocabulary


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _require_ids_below(vocab_size: int, ids: Mapping[str, int], path: Path) -> None:
    text, highest = max(ids.items(), key=lambda item: item[1], default=("", -1))
    if highest >= vocab_size:
        raise ModelDirectoryError(
            f"the tokenizer in {path} has ids up to {highest} ({text!r}), and the model a "
            f"vocab_size of {vocab_size}; tokenizer and model do not belong together"
        )


def _keep_ids(content: dict[str, Any], vocabulary: dict[str, int]) -> None:
    """Makes the library give added tokens the ids that they have. It numbers those that are not in
    the vocabulary on from its size; where that is wrong, they are put into the vocabulary."""
    outside = [token for token in content["added_tokens"] if token["content"] not in vocabulary]
    wanted = [int(token["id"]) for token in outside]
    in_order = list(range(len(vocabulary), len(vocabulary) + len(outside)))
    if wanted != in_order and isinstance(content["model"]["vocab"], dict):
        content["model"]["vocab"] = vocabulary | {
            token["content"]: int(token["id"]) for token in outside
        }


def _special_tokens(sources: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the named tokens of several files; the last one that has a name decides."""
    tokens: dict[str, str] = {}
    for source in sources:
        tokens |= {name: text for name in NAMED_TOKENS if (text := _text_of(source.get(name)))}
    return tokens


def _listed_tokens(sources: Iterable[Mapping[str, Any]], path: Path) -> list[str]:
    found: list[str] = []
    for source in sources:
        for name in LISTED_TOKENS:
            values = source.get(name) or []
            values = [*values.values()] if isinstance(values, Mapping) else values
            if not isinstance(values, list):
                raise ModelDirectoryError(
                    f"{path} has {name} {values!r:.80} in tokenizer_config.json or "
                    "special_tokens_map.json; it must be a list of tokens; fetch both again"
                )
            found += [text for value in values if (text := _text_of(value))]
    return found


def _text_of(token: Any) -> str:
    """Returns the text of a token as files write it: a string, or an object with its content."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""
