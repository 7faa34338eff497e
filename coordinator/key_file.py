"""Reads a file of API keys."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from coordinator.config import CoordinatorConfig
from protocol.config import ConfigError


def with_file_keys(config: CoordinatorConfig) -> CoordinatorConfig:
    """Returns `config` with the keys of its `api_key_file` among its API keys. Raises
    ConfigError."""
    if not config.api_key_file:
        return config
    return dataclasses.replace(config, api_key=(*config.api_key, *read_keys(config.api_key_file)))


def read_keys(file: str) -> tuple[str, ...]:
    """Returns the keys in a file, one a line; empty lines and those that begin with # are none.
    Raises ConfigError."""
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file} cannot be read ({error})") from error
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise ConfigError(f"--api-key-file {file} has no key; write one a line")
    return keys
