"""Container health checks: `python -m infra.healthcheck http URL` or `… node`.

Exit status 0 means healthy. A node is healthy when the coordinator lists it under its own host name
with a fresh heartbeat, which shows Redis and the channel too; its health port shows itself alone.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping

import httpx

TIMEOUT_S = 2.0
MAX_HEARTBEAT_AGE_S = 10.0


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if healthy, else 1, with a sentence on standard error."""
    try:
        match arguments:
            case ["http", url]:
                problem = check_http(url)
            case ["node"]:
                problem = check_node(
                    os.environ["KVRELAY_COORDINATOR_URL"],
                    os.environ.get("KVRELAY_ADMIN_TOKEN", "") or _first_key(os.environ),
                    socket.gethostname(),
                )
            case _:
                problem = "usage: python -m infra.healthcheck http URL | node"
    except httpx.HTTPError as error:
        problem = f"no answer: {error}"
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


def check_http(url: str) -> str:
    """Returns what is wrong at `url`; "" if it answers 200. Raises httpx.HTTPError."""
    response = httpx.get(url, timeout=TIMEOUT_S)
    return "" if response.status_code == 200 else f"{url} answered {response.status_code}"


def _first_key(environment: Mapping[str, str]) -> str:
    """Returns an API key, which opens /admin/* where no admin token is set."""
    return environment.get("KVRELAY_API_KEY", "").partition(",")[0]


def check_node(coordinator_url: str, token: str, host: str) -> str:
    """Returns what is wrong with the node on `host`; "" if the coordinator has just heard it.
    Raises httpx.HTTPError."""
    headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
    response = httpx.get(f"{coordinator_url}/admin/nodes", headers=headers, timeout=TIMEOUT_S)
    if response.status_code == 401:
        return "the coordinator wants another admin token than KVRELAY_ADMIN_TOKEN here"
    response.raise_for_status()
    ages = [n["last_heartbeat_s_ago"] for n in response.json() if host in n["name"]]
    if not ages:
        return f"the coordinator lists no node of host {host}"
    if min(ages) > MAX_HEARTBEAT_AGE_S:
        return f"the last heartbeat of {host} is {min(ages):.0f} s old"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
