"""Models that answer with scripts: whoever speaks last names one, by its marker.

They have the tokenizer of the embedded model, and a chat template of their family. The pieces of
scripts are tokens that no text is encoded as, a few characters each, so that marks and
names are cut anywhere. A chat without a marker gets an empty answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from coordinator.answers.token_pieces import BYTE_ALPHABET
from infra.models import EMBEDDED
from tests.support.models import scripted_weights
from tests.support.models.chat_templates import FAMILIES, Family
from tests.support.models.model_directories import added_token
from tests.support.models.scripted_weights import Transition

PIECE_LENGTHS = (3, 4, 5, 6, 7, 8, 10, 12, 2)
"""Characters; short ones first, so that marks are cut."""
CHARACTERS = {byte: character for character, byte in BYTE_ALPHABET.items()}
CLOSING = {'"': 2.5, "}": 2.0, "]": 1.5, ")": 1.0, "0": 0.5}
"""Where a grammar leads away from a script, what brings it to its end."""


def marker(script: int) -> str:
    """Returns the text that the last message of a chat has, for the answer to be that script."""
    return f"<|script-{script}|>"


def scripted_model(directory: Path, family: str, scripts: Sequence[str]) -> Path:
    """Writes a model of the family (a key of FAMILIES) to the directory, and returns that. Marks
    in `scripts` that are special tokens of the family are written with these."""
    vocabulary = _Vocabulary(FAMILIES[family], len(scripts))
    transitions: list[Transition] = []
    for number, script in enumerate(scripts):
        transitions += vocabulary.transitions(number, script)
    vocabulary.require_distinct(transitions)
    ids, size = vocabulary.ids, len(vocabulary.ids)
    end = FAMILIES[family].end
    config = scripted_weights.config(transitions, size)
    config |= {"bos_token_id": ids["<|bos|>"], "eos_token_id": ids[end]}
    preferred = {ids[text]: logit for text, logit in CLOSING.items()} | {ids[end]: 3.0}
    places = sorted(vocabulary.places)
    shared = sorted({t.own for t in transitions if t.own is not None} - vocabulary.places)
    tensors = scripted_weights.weights(transitions, places, shared, preferred, size)
    save_file(tensors, directory / "model.safetensors")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": end,
        "chat_template": FAMILIES[family].template,
    }
    for name, content in (
        ("config", config),
        ("tokenizer", vocabulary.tokenizer()),
        ("tokenizer_config", tokenizer_config),
        ("generation_config", {"eos_token_id": ids[end]}),
    ):
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


class _Vocabulary:
    """The embedded tokenizer with the tokens of a family, markers and pieces of scripts."""

    def __init__(self, family: Family, num_scripts: int) -> None:
        self._content: dict[str, Any] = json.loads(
            (EMBEDDED / "tokenizer.json").read_text(encoding="utf-8")
        )
        self.ids: dict[str, int] = dict(self._content["model"]["vocab"])
        """By the text of added tokens, and by what the byte alphabet makes of others."""
        self._family = family
        self._added = [
            {**added_token(text, text in family.special), "id": self._new(text)}
            for text in (*family.special, *family.plain, *map(marker, range(num_scripts)))
        ]
        self.places = {self.ids[marker(number)] for number in range(num_scripts)}
        """Tokens that come once in all scripts, and the markers."""

    def transitions(self, number: int, script: str) -> Iterator[Transition]:
        """Says what follows what in a script, and before it, and behind it."""
        seen, own = self.ids[marker(number)], None
        for token in [*self._tokens(script), self.ids[self._family.end]]:
            yield Transition(seen, own, token)
            seen, own = token if token in self.places else seen, token

    def require_distinct(self, transitions: Sequence[Transition]) -> None:
        states = [(transition.seen, transition.own) for transition in transitions]
        assert len(set(states)) == len(states), "a script repeats itself where nothing tells it"

    def tokenizer(self) -> dict[str, Any]:
        content = self._content
        content["added_tokens"] += self._added
        content["model"]["vocab"] = self.ids
        return content

    def _tokens(self, script: str) -> list[int]:
        marks = "|".join(map(re.escape, self._family.special))
        return [
            token
            for part in re.split(f"({marks})", script)
            for token in ([self.ids[part]] if part in self._family.special else self._cut(part))
        ]

    def _cut(self, text: str) -> Iterator[int]:
        """Cuts a text into pieces that no script has yet."""
        cuts, dead_ends = [0], set[int]()
        while cuts[-1] < len(text):
            taken = {text[begin:end] for begin, end in pairwise(cuts)}
            end = next(self._ends(text, cuts[-1], taken, dead_ends), None)
            if end is not None:
                cuts.append(end)
                continue
            assert len(cuts) > 1, f"all pieces of {text!r} are in other scripts; change a word"
            dead_ends.add(cuts.pop())
        for begin, end in pairwise(cuts):
            token = self._new(_bytes(text[begin:end]))
            self.places.add(token)
            yield token

    def _ends(self, text: str, begin: int, taken: set[str], dead_ends: set[int]) -> Iterator[int]:
        for length in PIECE_LENGTHS:
            end, piece = begin + length, text[begin : begin + length]
            is_new = piece not in taken and _bytes(piece) not in self.ids
            if end <= len(text) and end not in dead_ends and is_new:
                yield end

    def _new(self, text: str) -> int:
        self.ids[text] = len(self.ids)
        return self.ids[text]


def _bytes(text: str) -> str:
    return "".join(CHARACTERS[byte] for byte in text.encode())
