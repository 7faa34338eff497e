"""Property tests look at few examples in `make test` and `make check`, at many in `make verify`."""

from __future__ import annotations

from hypothesis import settings

# The quick profile has the same examples in every run, so that a change is judged by what it
# changes; the full one, of `make verify`, has new ones each time.
settings.register_profile("quick", max_examples=50, deadline=None, derandomize=True)
settings.register_profile("full", max_examples=500, deadline=None)
settings.load_profile("quick")
