"""`Client`: a running cluster over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx

from protocol.errors import UserError

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0


class ClientError(UserError):
    """The cluster is not reachable or refused the request; the message is its own."""


class Client:
    """Synchronous. Use as a context manager, or call `close`. Every method raises ClientError.

    Answers of `generate` and `stream` are the objects of POST /generate: `text`, `output_ids`,
    `meta_info`, which has logprobs if `return_logprob` asks for them. The methods below them are
    the operators', who need the `admin_token` of a cluster that has one; what they return is what
    /admin/* answers (see /docs of a coordinator).
    """

    def __init__(self, url: str, admin_token: str = "", timeout_s: float = READ_TIMEOUT_S) -> None:
        """Raises ClientError for a `url` that is none. `timeout_s`: between two parts of an
        answer."""
        if not url.startswith(("http://", "https://")):
            raise ClientError(
                f"the URL {url!r} must begin with http:// or https://, as http://127.0.0.1:30000"
            )
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            self._http = httpx.Client(base_url=url, timeout=timeout)
        except httpx.InvalidURL as error:
            raise ClientError(f"{url!r} is no URL: {error}") from error
        self._admin_token = admin_token

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(
        self,
        text: str,
        *,
        return_logprob: bool = False,
        top_logprobs_num: int = 0,
        **sampling_params: Any,
    ) -> dict[str, Any]:
        """The whole answer."""
        body = _generate_body(text, return_logprob, top_logprobs_num, sampling_params)
        return dict(self._json("POST", "/generate", body))

    def stream(
        self,
        text: str,
        *,
        return_logprob: bool = False,
        top_logprobs_num: int = 0,
        **sampling_params: Any,
    ) -> Iterator[dict[str, Any]]:
        """The answer as it grows: each object has all text so far."""
        body = _generate_body(text, return_logprob, top_logprobs_num, sampling_params)
        body["stream"] = True
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

    def flush_cache(self) -> dict[str, Any]:
        """Every node forgets its cached pages. Refused while requests run."""
        return dict(self._json("POST", "/flush_cache"))

    def cache_stats(self) -> dict[str, Any]:
        """Pages, hits and moved pages, of the cluster and of each node."""
        return dict(self._json("GET", "/admin/cache/stats"))

    def prefixes(self, limit: int = 20) -> list[dict[str, Any]]:
        """The prefixes with the most hits."""
        return list(self._json("GET", f"/admin/cache/prefixes?limit={limit}")["prefixes"])

    def flush(self, node: str | None = None, cache_salt: str | None = None) -> dict[str, Any]:
        """Forgets cached pages that no request holds: of one node, of one tenant ("": those
        without a cache_salt), or all."""
        given = {"node": node, "cache_salt": cache_salt}
        body = {name: value for name, value in given.items() if value is not None}
        return dict(self._json("POST", "/admin/cache/flush", body))

    def audit(self, repair: bool = True) -> dict[str, Any]:
        """Compares what nodes hold with Redis and with the coordinator's mirror."""
        path = f"/admin/cache/audit?repair={'true' if repair else 'false'}"
        return dict(self._json("POST", path))

    def nodes(self) -> list[dict[str, Any]]:
        """Every live node with its load."""
        return list(self._json("GET", "/admin/nodes"))

    def drain(self, node: str) -> dict[str, Any]:
        """Gives the node no new requests, until `undrain`."""
        return dict(self._json("POST", f"/admin/nodes/{quote(node, safe='')}/drain"))

    def undrain(self, node: str) -> dict[str, Any]:
        return dict(self._json("POST", f"/admin/nodes/{quote(node, safe='')}/undrain"))

    def explain(
        self, prompt: str | list[int], cache_salt: str = "", **sampling_params: Any
    ) -> dict[str, Any]:
        """Where a request with this text (or these ids) would go now and why; runs nothing."""
        body = {
            "text" if isinstance(prompt, str) else "input_ids": prompt,
            "cache_salt": cache_salt,
            "sampling_params": sampling_params,
        }
        return dict(self._json("POST", "/admin/route/explain", body))

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = []
        if self._admin_token and path.startswith("/admin/"):
            headers = [(b"Authorization", f"Bearer {self._admin_token}".encode())]
        try:
            response = self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise ClientError(self._unreachable(error)) from error
        if response.status_code == 401:
            raise ClientError(self._no_entry())
        if response.status_code != 200:
            raise ClientError(_message(response))
        return response.json()

    def _no_entry(self) -> str:
        problem = "refused the admin token" if self._admin_token else "asks for an admin token"
        return (
            f"the cluster at {self._http.base_url} {problem}; "
            "--admin-token or KVRELAY_ADMIN_TOKEN gives it"
        )

    def _unreachable(self, error: httpx.HTTPError) -> str:
        return (
            f"no answer from {self._http.base_url} ({error}); "
            "is a cluster running there? `kvrelay up` starts one, --url names another"
        )


def _generate_body(
    text: str, return_logprob: bool, top_logprobs_num: int, sampling_params: dict[str, Any]
) -> dict[str, Any]:
    return {
        "text": text,
        "return_logprob": return_logprob,
        "top_logprobs_num": top_logprobs_num,
        "sampling_params": sampling_params,
    }


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return f"status {response.status_code}: {response.text[:200]}"
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else body.get("message")
    return str(message or f"status {response.status_code}")
