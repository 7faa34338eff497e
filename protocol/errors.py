"""`UserError`: the base of errors that a person can mend. Pure."""

from __future__ import annotations


class UserError(Exception):
    """Something outside of kvrelay is wrong, such as a setting or a file.

    The message is a sentence with the remedy; commands print it instead of a traceback.
    """
