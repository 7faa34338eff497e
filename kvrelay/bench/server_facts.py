"""What a server tells of itself before it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from kvrelay.bench.config import BenchConfig
from protocol.errors import UserError

TIMEOUT_S = 10.0
FIRST_ID = 32
"""Special tokens of many vocabularies have lower ids."""
PRESUMED_VOCABULARY = 1024
"""Where the server does not tell: nearly every vocabulary is larger."""


class ServerNotMeasurable(UserError):
    """The server cannot be measured as the settings say; the message tells why and the remedy."""


@dataclass(frozen=True)
class ServerFacts:
    """What requests need to know of the server."""

    model: str
    vocabulary: range


class ServerAdmin:
    """Asks a server about itself, and for an empty cache."""

    def __init__(self, config: BenchConfig) -> None:
        self._config = config
        self._url = config.url.rstrip("/").removesuffix("/v1")

    def facts(self) -> ServerFacts:
        """Returns what the server tells, or what the settings say instead. Raises
        ServerNotMeasurable."""
        info = self._get("/get_model_info") or {}
        model = self._config.model or info.get("served_model_name") or self._first_model()
        if not model and self._config.api != "generate":
            raise ServerNotMeasurable(
                f"{self._config.url} does not tell its model's name; give --model"
            )
        size = self._config.vocab_size or info.get("vocab_size") or PRESUMED_VOCABULARY
        if size <= FIRST_ID:
            raise ServerNotMeasurable(f"--vocab-size is {size}; it must be above {FIRST_ID}")
        return ServerFacts(model or "", range(FIRST_ID, int(size)))

    def flush_cache(self) -> None:
        """Empties the server's cache. Raises ServerNotMeasurable if that was refused."""
        token = self._config.admin_token or self._config.key
        reply = self._request("POST", "/flush_cache", token)
        if reply.status_code != 200:
            raise ServerNotMeasurable(
                f"the server did not flush its cache (status {reply.status_code}: "
                f"{reply.text[:200]}); wait until nothing runs, or leave --flush-cache out"
            )

    def _first_model(self) -> str:
        models = (self._get("/v1/models") or {}).get("data") or [{}]
        return str(models[0].get("id", ""))

    def _get(self, path: str) -> dict[str, Any] | None:
        """Returns the JSON of an endpoint, None if the server does not have it."""
        reply = self._request("GET", path, self._config.key)
        if reply.status_code == 401:
            raise ServerNotMeasurable(f"{self._config.url} refused the API key; give --api-key")
        try:
            found = reply.json() if reply.status_code == 200 else None
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _request(self, method: str, path: str, token: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            return httpx.request(method, self._url + path, headers=headers, timeout=TIMEOUT_S)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerNotMeasurable(
                f"no answer from {self._config.url} ({error}); is a server running there? "
                "`kvrelay up` starts one, --url names another"
            ) from error
