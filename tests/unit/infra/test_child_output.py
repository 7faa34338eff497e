"""The output of a child process is read whatever becomes of its log file and of who is told."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from infra.process import Child, OutputLines

NUM_LINES = 5_000
TALKER = (sys.executable, "-c", f"for i in range({NUM_LINES}): print(i, 'x' * 20)")
"""Ends only if somebody reads the 130 KB that it writes: a pipe holds 64."""


def test_a_log_file_that_cannot_be_made_stops_nobody(tmp_path: Path) -> None:
    told: list[str] = []
    missing = tmp_path / "missing" / "log"
    child = Child("one", TALKER, missing, lambda name, line: told.append(line))
    child.wait()
    assert child.process.returncode == 0
    assert told[0] == f"{missing} cannot be written; the output is not kept"
    assert told[-1].startswith(f"{NUM_LINES - 1} ")
    assert child.last_lines[-1].startswith(f"{NUM_LINES - 1} ")


def test_a_full_disk_stops_nobody() -> None:
    """Every write to /dev/full fails as on a full disk."""
    told: list[str] = []
    child = Child("one", TALKER, Path("/dev/full"), lambda name, line: told.append(line))
    child.wait()
    assert child.process.returncode == 0
    assert told[-1].startswith(f"{NUM_LINES - 1} ")


def test_a_reader_that_holds_a_line_stops_nobody(tmp_path: Path) -> None:
    goes_on = threading.Event()
    child = Child("one", TALKER, tmp_path / "log", lambda name, line: goes_on.wait() and None)
    try:
        assert child.process.wait(timeout=60) == 0
    finally:
        goes_on.set()
        child.wait()


def test_lines_that_are_dropped_are_counted_where_they_lack() -> None:
    lines = OutputLines(max_lines=2)
    for text in ("a", "b", "c", "d"):
        lines.put(text)
    assert [lines.take(), lines.take()] == ["a", "b"]
    lines.put("e")
    lines.close()
    assert [lines.take(), lines.take(), lines.take()] == ["(2 lines were dropped)\n", "e", None]
