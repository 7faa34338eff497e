"""`Client`: a running cluster over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from protocol.errors import UserError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0


class ClientError(UserError):
    """The cluster is not reachable or refused the request; the message is its own."""


class Client:
    """Synchronous. Use as a context manager, or call `close`.

    Answers are the objects of POST /generate: `text`, `output_ids`, `meta_info`.
    """

    def __init__(self, url: str) -> None:
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._http = httpx.Client(base_url=url, timeout=timeout)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(self, text: str, **sampling_params: Any) -> dict[str, Any]:
        """The whole answer. Raises ClientError."""
        body = {"text": text, "sampling_params": sampling_params}
        return dict(self._json("POST", "/generate", body))

    def stream(self, text: str, **sampling_params: Any) -> Iterator[dict[str, Any]]:
        """The answer as it grows: each object has all text so far. Raises ClientError."""
        body = {"text": text, "sampling_params": sampling_params, "stream": True}
        try:
            with self._http.stream("POST", "/generate", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ClientError(_message(response))
                for line in response.iter_lines():
                    payload = line.removeprefix("data: ")
                    if not payload or payload == "[DONE]":
                        continue
                    update = json.loads(payload)
                    if error := update.get("error"):
                        raise ClientError(error["message"])
                    yield update
        except httpx.HTTPError as error:
            raise ClientError(self._unreachable(error)) from error

    def cache_stats(self) -> dict[str, Any]:
        return dict(self._json("GET", "/admin/cache/stats"))

    def nodes(self) -> list[dict[str, Any]]:
        return list(self._json("GET", "/admin/nodes"))

    def flush_cache(self) -> dict[str, Any]:
        """Every node forgets its cached pages. Raises ClientError while requests run."""
        return dict(self._json("POST", "/flush_cache"))

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ClientError(self._unreachable(error)) from error
        if response.status_code != 200:
            raise ClientError(_message(response))
        return response.json()

    def _unreachable(self, error: httpx.HTTPError) -> str:
        return (
            f"no answer from {self._http.base_url} ({error}); "
            "is a cluster running there? `kvrelay up` starts one, --url names another"
        )


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return f"status {response.status_code}: {response.text[:200]}"
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else body.get("message")
    return str(message or f"status {response.status_code}")
