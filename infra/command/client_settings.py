"""The settings of commands that talk to a running cluster, and the clients that they make."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, TypeVar

from protocol.config import option, resolve

if TYPE_CHECKING:
    from kvrelay.client import Client

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ClientConfig:
    """Settings of the commands that talk to a running cluster."""

    url: str = option("http://127.0.0.1:30000", "where the coordinator listens")
    api_key: tuple[str, ...] = option(
        (), "an API key of the cluster, if it asks for one", is_secret=True
    )


@dataclasses.dataclass(frozen=True)
class OperatorConfig(ClientConfig):
    """Settings of the commands for operators."""

    admin_token: str = option("", "the cluster's admin token, if it has one", is_secret=True)


def operator(flags: dict[str, Any]) -> Client:
    """Returns a client with the operator's token."""
    # A command imports only what it needs: most need no HTTP client.
    from kvrelay.client import Client

    config = settings(OperatorConfig, flags)
    return Client(config.url, config.admin_token, api_key=first_of(config.api_key))


def settings(config: type[T], flags: dict[str, Any]) -> T:
    """Returns the settings `config` of a command; `flags` may have other arguments besides them."""
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    return resolve(config, {k: v for k, v in flags.items() if k in names}, os.environ)


def first_of(keys: tuple[str, ...]) -> str:
    """Returns the first of several API keys; "" if there is none. A client needs one, and shares
    the variable KVRELAY_API_KEY with coordinators, which take several."""
    return keys[0] if keys else ""
