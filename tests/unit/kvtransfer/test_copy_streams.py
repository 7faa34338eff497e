"""Links that follow one another copy on one stream; those that run side by side have one each."""

from __future__ import annotations

import itertools
from typing import Any, cast

from kvtransfer.pages.copy_streams import CopyStreams


def test_a_stream_is_used_again_but_never_by_two_links() -> None:
    numbers = itertools.count()
    streams = CopyStreams(cast(Any, lambda: next(numbers)))
    first, second = streams.take(), streams.take()
    assert first != second
    streams.give_back(first)
    assert streams.take() == first
    streams.give_back(second)
    streams.give_back(first)
    assert {streams.take(), streams.take()} == {first, second}
    assert next(numbers) == 2, "no more were made than were in use at once"
