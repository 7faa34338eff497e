"""Checks a model against the settings of a node before a process is started for it.

What config.json says is enough for that. Neither torch nor the weights are read. Pure, but for the
files of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.model.config import ModelConfig
from engine.model.families import FAMILIES, UnsupportedModel
from engine.model.quantisation import read_quantisation, require_method
from engine.model.split import require_split
from node.config import NodeConfig
from protocol.model.files import open_model
from protocol.model.gguf.parts import is_gguf

NO_CODE = "no code that comes with a model is ever run"


def check_model(config: NodeConfig, sizes: Iterable[int] = ()) -> str:
    """Checks the model of `config`, whose path is a directory, for nodes of these numbers of ranks;
    without any, for the one that `config` names.

    Returns what --trust-remote-code comes to, in a sentence; "" without the flag. Raises
    ModelDirectoryError or UnsupportedModel.
    """
    path = Path(config.model_path)
    try:
        model = ModelConfig.from_directory(path, config.context_length)
    except UnsupportedModel as error:
        if config.trust_remote_code and _needs_code(path):
            raise UnsupportedModel(
                f"{error}; --trust-remote-code does not help: {NO_CODE}"
            ) from error
        raise
    if not is_gguf(path):
        require_method(read_quantisation(open_model(path).config()), config.quantization)
    for size in sizes or (config.tensor_parallel_size,):
        require_split(model, size)
    if not config.trust_remote_code:
        return ""
    return f"--trust-remote-code: {NO_CODE}; {model.architecture} is computed by kvrelay's own"


def _needs_code(path: Path) -> bool:
    """Returns True if the model brings code of its own for an architecture that is unknown here."""
    config = open_model(path).config()
    architectures = config.get("architectures") or []
    return bool(config.get("auto_map")) and not any(name in FAMILIES for name in architectures)
