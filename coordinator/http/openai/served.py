"""Which model is served, and the sampling parameters that it comes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coordinator.config import CoordinatorConfig
from coordinator.http.errors import BadRequest, NotServed
from coordinator.http.native.sampling_params import parse_sampling
from protocol.model.directory import ModelDirectoryError
from protocol.model.files import open_model
from protocol.trust.versions import RELEASE

DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What generation_config.json may recommend."""
FINGERPRINT = f"kvrelay-{RELEASE}"
"""Stands for what the answer to a seed depends on."""
ANY = ("", "default")
"""Names that stand for the model that is served, whatever its name is."""


def require_served(name: str, config: CoordinatorConfig) -> None:
    """Raises NotServed unless `name` is that of the model; its path is a name of it, too."""
    if name not in (*ANY, config.served_model_name, config.model_path):
        raise NotServed(
            f"the model {name!r} is not served; {config.served_model_name!r} is",
            "model",
            "model_not_found",
        )


def model_defaults(model_path: Path) -> dict[str, Any]:
    """Returns the sampling parameters that a model's generation_config.json recommends. Raises
    ModelDirectoryError if they are none."""
    config = open_model(model_path).generation_config()
    defaults = {key: config[key] for key in DEFAULTS if config.get(key) is not None}
    if defaults.get("top_k") == 0:
        defaults["top_k"] = -1
    try:
        parse_sampling(dict(defaults))
    except BadRequest as error:
        raise ModelDirectoryError(
            f"{model_path}/generation_config.json: {error}; correct it there"
        ) from None
    return defaults
