"""Which versions of kvrelay a process can speak with, told wherever two processes meet. Pure.

Nodes tell their versions in heartbeats, in Redis and in the greeting of each link, coordinators in
Redis. So that this works with any version to come, those four only ever grow: fields are added at
their end, with defaults.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import msgspec

from protocol.trust.bounds import Count

PROTOCOL_VERSION = 4
"""The version of all that processes say to each other. It rises with a change that an older process
would misunderstand. A new message, or a new field with a default at the end of one, is none: who
does not know it leaves it unread."""
OLDEST_UNDERSTOOD = 4
"""The oldest version that this one still speaks."""
try:
    RELEASE = version("kvrelay")
    """The version of kvrelay that is installed."""
except PackageNotFoundError:  # run from a checkout that is not installed
    RELEASE = "0"


class Versions(msgspec.Struct, frozen=True):
    """What one process speaks. The defaults are those of processes that do not tell, as releases up
    to 0.1.0 do not."""

    newest: Count = 4
    oldest: Count = 4
    release: str = ""

    def __str__(self) -> str:
        spoken = f"{self.newest}"
        if self.oldest < self.newest:
            spoken = f"{self.oldest} to {self.newest}"
        release = f" (kvrelay {self.release})" if self.release else ""
        return f"protocol {spoken}{release}"


OURS = Versions(PROTOCOL_VERSION, OLDEST_UNDERSTOOD, RELEASE)


def refusal(who: str, theirs: Versions, ours: Versions = OURS) -> str:
    """Returns why the process `who` cannot be spoken with, as a sentence without a full stop; "" if
    it can: then both speak the lower one of their newest versions."""
    if theirs.oldest <= ours.newest and ours.oldest <= theirs.newest:
        return ""
    older = who if theirs.newest < ours.newest else "this process"
    return f"{who} speaks {theirs}, this process {ours}: upgrade {older}"


class _Named(msgspec.Struct):
    name: str


class _Introduction(msgspec.Struct):
    node: _Named
    versions: Versions = Versions()


class _AnyHeartbeat(msgspec.Struct, tag="Heartbeat", array_like=True):
    """What the heartbeats of all versions have in common."""

    info: _Introduction


_any_heartbeat = msgspec.msgpack.Decoder(_AnyHeartbeat)


def why_unreadable(raw: bytes) -> str:
    """Returns the `refusal` of the node that has sent a heartbeat which cannot be read; "" if it
    speaks with this process, and for any other message."""
    try:
        info = _any_heartbeat.decode(raw).info
    except (ValueError, RecursionError):
        return ""
    return refusal(f"node {info.node.name}", info.versions)
