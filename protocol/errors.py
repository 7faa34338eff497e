"""`UserError`: what goes wrong outside of kvrelay and a person can mend. Pure."""

from __future__ import annotations


class UserError(Exception):
    """The message is a sentence with the remedy; commands print it instead of a traceback."""
