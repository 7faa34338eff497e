"""`Client`: talks to a running cluster over HTTP."""

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
    """The cluster cannot be reached or has refused the request, for the reason in the message."""


class Client:
    """A synchronous client. Use it as a context manager, or call `close`.

    `generate` and `stream` return the objects of POST /generate: `text`, `output_ids` and
    `meta_info`, which has logprobs if `return_logprob` asks for them. The other methods are for
    operators, and need the `admin_token` if the cluster has one; they return what /admin/* answers,
    which /docs of a coordinator describes. All need an `api_key` where the cluster has some. Every
    method raises ClientError.
    """

    def __init__(
        self,
        url: str,
        admin_token: str = "",
        timeout_s: float = READ_TIMEOUT_S,
        api_key: str = "",
    ) -> None:
        """Does not connect yet. Raises ClientError if `url` is no HTTP URL. `timeout_s` is the
        longest wait for the next part of an answer."""
        if not url.startswith(("http://", "https://")):
            raise ClientError(
                f"the URL {url!r} must begin with http:// or https://, as http://127.0.0.1:30000"
            )
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        headers = _bearer(api_key)
        try:
            self._http = httpx.Client(base_url=url, timeout=timeout, headers=headers)
        except httpx.InvalidURL as error:
            raise ClientError(f"{url!r} is no URL: {error}") from error
        self._admin_token = admin_token
        self._api_key = api_key

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def generate(
        self,
        text: str,
        *,
        return_logprob: bool = False,
        top_logprobs_num: int = 0,
        **sampling_params: Any,
    ) -> dict[str, Any]:
        """Answers `text` and returns the whole answer. `sampling_params` are those of
        POST /generate, such as `max_new_tokens` and `temperature`."""
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
        """Answers `text` and yields the answer as it grows: each object has all text so far."""
        body = _generate_body(text, return_logprob, top_logprobs_num, sampling_params)
        body["stream"] = True
        try:
            with self._http.stream("POST", "/generate", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ClientError(self._refusal(response, "/generate"))
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
        """Makes every node forget its cached pages. The cluster refuses while requests run."""
        return dict(self._json("POST", "/flush_cache"))

    def cache_stats(self) -> dict[str, Any]:
        """Returns pages, hits and moved pages, for the cluster and for each node."""
        return dict(self._json("GET", "/admin/cache/stats"))

    def prefixes(self, limit: int = 20) -> list[dict[str, Any]]:
        """Returns the `limit` prefixes with the most hits, and who owns them."""
        return list(self._json("GET", f"/admin/cache/prefixes?limit={limit}")["prefixes"])

    def flush(self, node: str | None = None, cache_salt: str | None = None) -> dict[str, Any]:
        """Makes nodes forget cached pages that no request holds: one node or all (None), the pages
        of one tenant ("" is the one without a cache_salt) or all (None)."""
        given = {"node": node, "cache_salt": cache_salt}
        body = {name: value for name, value in given.items() if value is not None}
        return dict(self._json("POST", "/admin/cache/flush", body))

    def audit(self, repair: bool = True) -> dict[str, Any]:
        """Compares the pages that nodes hold with the record in Redis and with the coordinator's
        mirror of it. Corrects what differs, if `repair`."""
        path = f"/admin/cache/audit?repair={'true' if repair else 'false'}"
        return dict(self._json("POST", path))

    def nodes(self) -> list[dict[str, Any]]:
        """Returns every live node with its load."""
        return list(self._json("GET", "/admin/nodes"))

    def drain(self, node: str) -> dict[str, Any]:
        """Keeps new requests from a node until `undrain`. Its pages can still be fetched."""
        return dict(self._json("POST", f"/admin/nodes/{quote(node, safe='')}/drain"))

    def undrain(self, node: str) -> dict[str, Any]:
        """Lets a node get requests again."""
        return dict(self._json("POST", f"/admin/nodes/{quote(node, safe='')}/undrain"))

    def explain(
        self, prompt: str | list[int], cache_salt: str = "", **sampling_params: Any
    ) -> dict[str, Any]:
        """Returns where a prompt (a text or token ids) would go now, and why. Runs nothing."""
        body = {
            "text" if isinstance(prompt, str) else "input_ids": prompt,
            "cache_salt": cache_salt,
            "sampling_params": sampling_params,
        }
        return dict(self._json("POST", "/admin/route/explain", body))

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Sends a request and returns the JSON of its answer. Raises ClientError."""
        headers = _bearer(self._admin_token) if path.startswith("/admin/") else []
        try:
            response = self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise ClientError(self._unreachable(error)) from error
        if response.status_code != 200:
            raise ClientError(self._refusal(response, path))
        return response.json()

    def _refusal(self, response: httpx.Response, path: str) -> str:
        """Returns the message for a response that is no answer."""
        return self._no_entry(path) if response.status_code == 401 else _message(response)

    def _no_entry(self, path: str) -> str:
        """Returns the message for an admin token or an API key that is missing or wrong."""
        if path.startswith("/admin/") and (self._admin_token or not self._api_key):
            problem = "refused the admin token" if self._admin_token else "asks for an admin token"
            flag, variable = "--admin-token", "KVRELAY_ADMIN_TOKEN"
        else:
            problem = "refused the API key" if self._api_key else "asks for an API key"
            flag, variable = "--api-key", "KVRELAY_API_KEY"
        return f"the cluster at {self._http.base_url} {problem}; {flag} or {variable} gives it"

    def _unreachable(self, error: httpx.HTTPError) -> str:
        """Returns the message for a cluster that does not answer."""
        return (
            f"no answer from {self._http.base_url} ({error}); "
            "is a cluster running there? `kvrelay up` starts one, --url names another"
        )


def _bearer(token: str) -> list[tuple[bytes, bytes]]:
    """Returns the headers that show a token; none for ""."""
    return [(b"Authorization", f"Bearer {token}".encode())] if token else []


def _generate_body(
    text: str, return_logprob: bool, top_logprobs_num: int, sampling_params: dict[str, Any]
) -> dict[str, Any]:
    """Returns the body of a POST /generate."""
    return {
        "text": text,
        "return_logprob": return_logprob,
        "top_logprobs_num": top_logprobs_num,
        "sampling_params": sampling_params,
    }


def _message(response: httpx.Response) -> str:
    """Returns the reason in an error response."""
    try:
        body = response.json()
    except ValueError:
        return f"status {response.status_code}: {response.text[:200]}"
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or f"status {response.status_code}")
