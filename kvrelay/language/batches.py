"""Runs a program for many calls: some at a time, with a progress bar if it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


def run_all(
    run: Callable[[Mapping[str, Any]], T],
    batch: Sequence[Mapping[str, Any]],
    max_threads: int,
    shows_progress: bool,
) -> list[T]:
    """Runs every call of a batch, at most `max_threads` at a time, and returns the results in the
    order of the calls. After an error no call is begun, and it is raised."""
    if not batch:
        return []
    pool = ThreadPoolExecutor(max(1, min(max_threads, len(batch))), "kvrelay-batch")
    with Progress(console=Console(stderr=True), disable=not shows_progress) as progress:
        task = progress.add_task("running", total=len(batch))

        def run_one(arguments: Mapping[str, Any]) -> T:
            result = run(arguments)
            progress.advance(task)
            return result

        try:
            return list(pool.map(run_one, batch))
        finally:
            pool.shutdown(cancel_futures=True)


def common_arguments(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the arguments that all calls of a batch have, with the same value."""
    if not batch:
        return {}
    first, *others = batch
    return {
        name: value
        for name, value in first.items()
        if all(name in one and one[name] == value for one in others)
    }
