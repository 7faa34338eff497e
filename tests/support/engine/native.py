"""The native kernels for tests of them, which are left out where they cannot be compiled."""

from __future__ import annotations

from ctypes import CDLL

import pytest

from engine.kernels.native.build import native_library


def compiled() -> CDLL:
    library = native_library()
    if library is None:
        pytest.skip("needs a C compiler")
    return library
