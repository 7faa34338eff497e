"""Under which name a test of clients stands in docs/compatibility.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

SECTIONS = {"test_sglang_front_end": "front_end", "test_sglang_checks": "checks"}
"""The section of the document that a module's tests belong to."""


def title(test: Callable[..., Any]) -> str:
    """Returns the docstring of a test function as one line."""
    docstring = inspect.getdoc(test)
    assert docstring is not None, f"{test.__name__} needs a docstring: it is its name in a document"
    return " ".join(docstring.split())
