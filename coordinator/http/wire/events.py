"""The form of a server-sent event. Pure."""

from __future__ import annotations

from typing import Any

import msgspec


def event_of(data: dict[str, Any] | msgspec.Struct) -> bytes:
    """Returns a server-sent event with `data` as JSON."""
    return b"data: %b\n\n" % msgspec.json.encode(data)
