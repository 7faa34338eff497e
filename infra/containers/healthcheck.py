"""The health check of a container: `python -m infra.containers.healthcheck URL`.

Exit status 0 means that the URL answers 200. It is asked of this container alone, /health of a
coordinator or /ready of a node's health port, so that what others do makes nobody unhealthy.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 2.0


def problem_of(url: str) -> str:
    """Returns what is wrong at `url`; "" if it answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            status = response.status
    except urllib.error.HTTPError as error:
        return f"{url} answered {error.code}: {error.read(1000).decode(errors='replace')}"
    except OSError as error:
        return f"{url} does not answer: {error}"
    return "" if status == 200 else f"{url} answered {status}"


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 if healthy, else 1, with a sentence on standard error."""
    match arguments:
        case [url]:
            problem = problem_of(url)
        case _:
            problem = "usage: python -m infra.containers.healthcheck URL"
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
