"""`Namespace`: who may share cached pages. Pure."""

from __future__ import annotations

import msgspec


class Namespace(msgspec.Struct, frozen=True, array_like=True):
    """Requests share pages only with requests of an equal namespace.

    It travels as one value from the HTTP edge to the page hash. Whatever else must keep pages apart
    for a request becomes a field here; weights and KV layout are the node's and join in the hash.
    """

    salt: str = ""
    """The tenant's `cache_salt`; "" is the tenant that names none."""
    adapter: str = ""
    """The adapter on top of the model's weights; "" is none."""


SHARED = Namespace()
"""The namespace of requests that ask for none of their own."""
