"""What both clients know of a connection: where it goes, and what its errors mean. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from kvrelay.calls import ApiCall
from kvrelay.errors import (
    AccessDenied,
    AnswerTimedOut,
    ClientError,
    ClusterUnreachable,
    ConnectionBroken,
    error_of,
)
from kvrelay.events import EventReader
from kvrelay.retries import RetryPolicy

DEFAULT_URL = "http://127.0.0.1:30000"
URL_VARIABLE = "KVRELAY_URL"
KEY_VARIABLE = "KVRELAY_API_KEY"
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0
LIMITS = httpx.Limits(
    max_connections=None,  # as many as there are calls at once, which callers bound
    max_keepalive_connections=None,
    keepalive_expiry=2.0,  # sooner than servers close them
)


@dataclass(frozen=True)
class Connection:
    """Where calls go, and with what tokens and patience."""

    url: str
    admin_token: str = field(default="", repr=False)
    """The token of calls for operators, if the cluster has one."""
    api_key: str = field(default="", repr=False)
    """The key of all other calls, if the cluster asks for one."""
    timeout_s: float = READ_TIMEOUT_S
    """The longest wait for the next part of an answer."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        """Raises ClientError if `url` is no HTTP URL."""
        if not self.url.startswith(("http://", "https://")):
            raise ClientError(
                f"the URL {self.url!r} must begin with http:// or https://, as {DEFAULT_URL}"
            )
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ClientError(f"{self.url!r} is no URL: {error}") from error

    def options(self) -> dict[str, Any]:
        """Returns the settings of an httpx client, synchronous or not."""
        timeout = httpx.Timeout(self.timeout_s, connect=min(CONNECT_TIMEOUT_S, self.timeout_s))
        return {"base_url": self.url, "timeout": timeout}

    def request(self, call: ApiCall[Any]) -> dict[str, Any]:
        """Returns a call as the arguments of httpx's `build_request`."""
        token = (self.admin_token if call.is_admin else "") or self.api_key
        headers = {"Authorization": f"Bearer {token}".encode()} if token else {}
        if call.last_event_id is not None:
            headers["Last-Event-ID"] = b"%d" % call.last_event_id
        content = None
        if call.body is not None:
            headers["Content-Type"] = b"application/json"
            content = _encoded(call.body)
        return {"method": call.method, "url": call.path, "headers": headers, "content": content}

    def wait_s(
        self, call: ApiCall[Any], num_failed: int, error: ClientError, chance: float
    ) -> float | None:
        """Returns how long to wait before a call that failed is made again; None: it is over.

        Calls for operators are made once: they are to show what is wrong.
        """
        if call.is_admin:
            return None
        return self.retry.wait_s(num_failed, error, chance, call.is_repeatable)

    def refusal(
        self, call: ApiCall[Any], status: int, body: bytes, headers: Mapping[str, str]
    ) -> ClientError:
        """Returns the error of a status other than 200."""
        if status in (401, 403):
            return AccessDenied(self._no_entry(call), status)
        return error_of(status, body, headers.get("retry-after"))

    def failure(self, error: httpx.HTTPError | httpx.StreamError) -> ClientError:
        """Returns the error of a call that got no answer, or only a part of one."""
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return ClusterUnreachable(
                f"no answer from {self.url} ({error}); "
                "is a cluster running there? `kvrelay up` starts one, --url names another"
            )
        if isinstance(error, httpx.TimeoutException):
            return AnswerTimedOut(
                f"no answer from {self.url} for {self.timeout_s:g} s; give the client a longer "
                "timeout_s if that is not enough"
            )
        return ConnectionBroken(f"no whole answer from {self.url} ({error or type(error)})")

    def require_finished(self, events: EventReader[Any]) -> None:
        """Raises ConnectionBroken if a stream is over that has not told its end."""
        if not events.is_finished:
            raise ConnectionBroken(f"a stream from {self.url} stopped before its end")

    def _no_entry(self, call: ApiCall[Any]) -> str:
        """Returns the message for a token or key that is missing or wrong."""
        if call.is_admin:
            what, given = "admin token", self.admin_token
            remedy = "--admin-token, a Client's admin_token or KVRELAY_ADMIN_TOKEN"
        else:
            what, given = "API key", self.api_key
            remedy = "--api-key, a Client's api_key or KVRELAY_API_KEY"
        problem = f"refused the {what}" if given else f"asks for an {what}"
        return f"the cluster at {self.url} {problem}; {remedy} gives it"


def url_of(given: str | None, environment: Mapping[str, str]) -> str:
    """Returns the URL to use: the one given, else that of the environment, else this host's."""
    return given if given is not None else environment.get(URL_VARIABLE) or DEFAULT_URL


def key_of(given: str | None, environment: Mapping[str, str]) -> str:
    """Returns the API key to show: the one given, else the first of the environment's, which may
    name several, separated by commas; "" shows none."""
    return given if given is not None else environment.get(KEY_VARIABLE, "").split(",")[0].strip()


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as error:  # a value of the caller's that JSON does not have
        raise ClientError(f"the parameters cannot be written as JSON: {error}") from error
