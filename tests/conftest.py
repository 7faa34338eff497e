"""Property tests look at few examples in `make test` and `make check`, at many in `make verify`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("full", max_examples=500, deadline=None)
settings.load_profile("quick")
