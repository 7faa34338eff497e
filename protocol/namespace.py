"""`Namespace`: which requests may share cached pages. Pure."""

from __future__ import annotations

import msgspec


class Namespace(msgspec.Struct, frozen=True, array_like=True):
    """Requests share cached pages only with requests of an equal namespace.

    It travels as one value from the HTTP request to the page hash. Whatever else must keep the
    pages of requests apart becomes a field here. Weights and KV layout are not in it: they belong
    to the node and go into the page hash by themselves.
    """

    salt: str = ""
    """The `cache_salt` by which a tenant keeps its pages apart; "" if the request has none."""
    adapter: str = ""
    """The name of the adapter on top of the model's weights; "" if there is none."""


SHARED = Namespace()
"""The namespace of all requests that have neither salt nor adapter."""
