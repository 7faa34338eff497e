"""`Wrong`: what a life must never show."""

from __future__ import annotations


class Wrong(BaseException):
    """A promise of the cluster was broken; the message says which.

    It is no Exception, so that nobody who survives the failure of a step survives this.
    """
