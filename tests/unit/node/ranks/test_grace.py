"""A rank whose node is gone ends, whatever it hangs in."""

from __future__ import annotations

import subprocess
import sys

DEADLINE_S = 30.0
HANGS = """
import ctypes
from node.ranks import grace
grace.GRACE_S = 0.2
grace.exit_at_last()
ctypes.PyDLL(None).sleep(600)  # without letting any other Python thread run
"""


def test_a_process_that_hangs_with_python_in_its_hands_ends_and_says_where() -> None:
    command = [sys.executable, "-c", HANGS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == 1
    assert 'File "<string>", line 6' in ended.stderr
