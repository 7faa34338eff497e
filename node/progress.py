"""How far the weights are: a bar on a terminal, else lines in the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

log = logging.getLogger(__name__)

LINE_EVERY_S = 1.0
LABEL = "loading weights"


@contextmanager
def weights_progress() -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows progress; it takes how many bytes are done and how many there
    are."""
    if sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield log_lines(time.monotonic)


def log_lines(clock: Callable[[], float]) -> Callable[[int, int], None]:
    """Returns a function that logs progress no more often than every LINE_EVERY_S, and at the
    end."""
    next_line = clock() + LINE_EVERY_S

    def show(done_bytes: int, total_bytes: int) -> None:
        nonlocal next_line
        if clock() >= next_line or done_bytes == total_bytes:
            next_line = clock() + LINE_EVERY_S
            percent = 100 * done_bytes // max(1, total_bytes)
            log.info("%s: %d %% of %.1f MB", LABEL, percent, total_bytes / 1e6)

    return show


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(LABEL), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(LABEL, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
