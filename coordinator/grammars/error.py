"""`GrammarError`: why a grammar of a client's cannot be used. Pure."""

from __future__ import annotations


class GrammarError(Exception):
    """A grammar is invalid or not supported; the message is for the client to read."""
