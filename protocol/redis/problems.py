"""Puts what went wrong with Redis into a sentence that says what to do."""

from __future__ import annotations

from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from protocol.config import hide_password

NEEDED = "it needs the keys ~{kvrelay}:*, the channels &* and the commands +@all"


def redis_problem(error: Exception, url: str) -> str:
    """Returns why the Redis of a URL is of no use, given one of REDIS_ERRORS. Passwords are hidden.

    A server that answers and refuses is told apart from one that does not answer: the remedies
    differ. Clients of a Cluster wrap what its servers said, which is looked for in their message.
    """
    where, said = hide_password(url), str(error).lower()
    if isinstance(error, AuthenticationError) or "authentication required" in said:
        return _unauthenticated(error, url)
    if "username-password" in said or "wrongpass" in said:
        return _unauthenticated(error, url)
    if isinstance(error, NoPermissionError) or "no permissions" in said:
        return f"Redis at {where} does not let its user do what kvrelay does ({error}); {NEEDED}"
    if "cluster mode is not enabled" in said:
        return f"Redis at {where} is no Cluster; name it as redis://host:port in --redis-url"
    if isinstance(error, ResponseError):
        return f"Redis at {where} answers with an error ({error}); correct --redis-url"
    return f"no Redis answers at {where} ({error}); start it, or name another with --redis-url"


def _unauthenticated(error: Exception, url: str) -> str:
    where = hide_password(url)
    if "@" in url:
        return f"Redis at {where} refuses the user or password ({error}); correct them in the URL"
    scheme, _, rest = where.partition("://")
    return (
        f"Redis at {where} asks for a password ({error}); put it into --redis-url, as "
        f"{scheme}://user:password@{rest} or {scheme}://:password@{rest}"
    )
