"""Reads the JSON files of a model directory in Hugging Face format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from protocol.errors import UserError
from protocol.model.first_qwen import canonical_config, is_first_qwen

TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {"max_position_embeddings": 131_072, "vocab_size": 262_208}
}
"""By model type: values that published models of text and images leave out of their `text_config`,
since `transformers` has them as defaults."""

OF_THE_WHOLE = (
    "architectures",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "quantization_config",
    "dtype",
    "torch_dtype",
)
"""Keys of a model of text and images that go before those of its text part."""


QUANTISATION_FILES = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}
"""Files beside config.json in which AutoGPTQ, AutoAWQ and ModelOpt once wrote how a model is
quantised."""


class ModelDirectoryError(UserError):
    """A model directory lacks something or cannot be read; the message has the remedy."""


def read_config(path: Path) -> dict[str, Any]:
    """Returns the config.json of the model directory `path`. Raises ModelDirectoryError.

    For a model of text and images it is that of the text part, with the outer settings that the
    text part lacks, and those that concern the model as a whole. What the first Qwen calls by names
    of its own stands under Llama's too.
    """
    if not path.is_dir():
        raise ModelDirectoryError(
            f"there is no model directory {path}; --model-path must name a directory with "
            "config.json, *.safetensors and tokenizer.json, a GGUF file, or a model of the Hugging "
            "Face hub as org/name or org/name/file.gguf"
        )
    config = read_json(path / "config.json")
    if config is None:
        raise ModelDirectoryError(
            f"{path} has no config.json; --model-path must name a directory in Hugging Face "
            "format (config.json, *.safetensors, tokenizer.json), or a GGUF file"
        )
    _add_quantisation(config, path)
    text = config.get("text_config")
    if not isinstance(text, dict):
        return canonical_config(config) if is_first_qwen(config) else config
    outer = {key: value for key, value in config.items() if value is not None}
    inner = {key: value for key, value in text.items() if value is not None}
    of_the_whole = {key: outer[key] for key in OF_THE_WHOLE if key in outer}
    return {**TEXT_DEFAULTS.get(str(text.get("model_type")), {}), **outer, **inner, **of_the_whole}


def _add_quantisation(config: dict[str, Any], path: Path) -> None:
    """Gives `config` the settings of quantisation that older producers wrote into a file of their
    own."""
    for name, method in QUANTISATION_FILES.items():
        settings = read_json(path / name)
        if settings is not None and not config.get("quantization_config"):
            config["quantization_config"] = {"quant_method": method, **settings}


def read_json(file: Path) -> dict[str, Any] | None:
    """Returns the JSON object in `file`; None if there is no such file. Raises
    ModelDirectoryError if the file is something else."""
    try:
        if not file.is_file():
            return None
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise ModelDirectoryError(f"{file} is no JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise ModelDirectoryError(f"{file} is no JSON object; fetch it again")
    return content


def unreadable(file: Path, error: OSError) -> ModelDirectoryError:
    """Returns the error for a file that is there and may not be opened, or whose disk fails."""
    return ModelDirectoryError(f"{file} cannot be read ({error.strerror}); look at its permissions")
