"""The record of coordinators in Redis: where each receives messages, and what versions it speaks.

    {kvrelay}:coordinators            sorted set: control address by the time its lease ends
    {kvrelay}:coordinators:versions   hash: control address → `Versions` as JSON; absent for those
                                      that do not tell

Knows no connection; callers run the scripts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from protocol.redis.ownership import TAG, text_of
from protocol.trust.versions import OURS, Versions, refusal

log = logging.getLogger(__name__)

COORDINATORS_KEY = f"{TAG}:coordinators"
VERSIONS_KEY = f"{COORDINATORS_KEY}:versions"
KEYS = [COORDINATORS_KEY, VERSIONS_KEY]
OUR_VERSIONS = msgspec.json.encode(OURS)

# Renews the lease of a coordinator and drops those that have ended. KEYS as above; ARGV versions
# address lease_ms. Returns Redis's time in µs: the clocks of other hosts are not used.
ANNOUNCE = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
for _, address in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ms)) do
  redis.call('ZREM', KEYS[1], address)
  redis.call('HDEL', KEYS[2], address)
end
redis.call('ZADD', KEYS[1], ms + ARGV[3], ARGV[2])
redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
return now[1] * 1000000 + now[2]
"""

# Removes a coordinator that ends. KEYS as above; ARGV address
WITHDRAW = """
redis.call('HDEL', KEYS[2], ARGV[1])
return redis.call('ZREM', KEYS[1], ARGV[1])
"""

# Lists address and versions of each coordinator whose lease has not ended. KEYS as above
LIST_COORDINATORS = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local found = {}
for _, address in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], ms, '+inf')) do
  found[#found + 1] = address
  found[#found + 1] = redis.call('HGET', KEYS[2], address) or ''
end
return found
"""


class SpokenWith:
    """Tells which coordinators this process can speak with, and says once of each other one that it
    cannot."""

    def __init__(self) -> None:
        self._refused: frozenset[str] = frozenset()

    def among(self, listed: Sequence[bytes]) -> list[str]:
        """Returns the addresses of those that can be spoken with, out of a reply of
        LIST_COORDINATORS."""
        problems = {
            text_of(address): _problem(text_of(address), versions)
            for address, versions in zip(listed[::2], listed[1::2], strict=True)
        }
        for address, problem in problems.items():
            if problem and address not in self._refused:
                log.error("nothing is said to a coordinator: %s", problem)
        self._refused = frozenset(address for address, problem in problems.items() if problem)
        return [address for address, problem in problems.items() if not problem]


def _problem(address: str, raw: bytes) -> str:
    """Returns why a coordinator cannot be spoken with; "" if it can."""
    try:
        versions = msgspec.json.decode(raw, type=Versions) if raw else Versions()
    except (ValueError, RecursionError) as error:
        return f"what Redis has of the versions of {address} makes no sense: {error}"
    return refusal(f"coordinator {address}", versions)
