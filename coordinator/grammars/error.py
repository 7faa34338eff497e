"""Why a grammar of a client's cannot be used, or not now. Pure."""

from __future__ import annotations


class GrammarError(Exception):
    """A grammar is invalid or not supported; the message is for the client to read."""


class TooManyGrammars(Exception):
    """Too many grammars wait to be compiled."""
