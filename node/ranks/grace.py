"""The last resort of a process whose other ranks are gone."""

from __future__ import annotations

import faulthandler

GRACE_S = 5.0
"""To end in order."""


def exit_at_last() -> None:
    """Ends this process with code 1 after GRACE_S, unless it has ended in order by then, and prints
    where it hung.

    A collective operation may wait for a lost rank for long, on a GPU forever; so may the end of
    its group, and without letting any other Python thread run.
    """
    faulthandler.dump_traceback_later(GRACE_S, exit=True)
