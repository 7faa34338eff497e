"""Model directories with small tokenizers, written file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tests.support.models import tokenizers

VOCAB_SIZE = 300
CONFIG: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 64}


def write_tokenizer(
    path: Path,
    tokenizer: Tokenizer | None = None,
    config: dict[str, Any] | None = None,
    **files: Any,
) -> Path:
    """Writes a tokenizer.json, a config.json and other files: `tokenizer_config={…}` becomes
    tokenizer_config.json. The default tokenizer is a byte-level one."""
    tokenizer = tokenizer or tokenizers.byte_level()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def change_tokenizer(path: Path, **changes: Any) -> None:
    """Changes keys of the tokenizer.json in `path`."""
    file = path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def added_token(text: str, is_special: bool) -> dict[str, Any]:
    """Returns a token as tokenizer_config.json writes it."""
    return {
        "content": text,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": is_special,
    }
