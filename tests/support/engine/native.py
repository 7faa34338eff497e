"""The native kernels for tests of them, which are left out where they cannot be compiled."""

from __future__ import annotations

from ctypes import CDLL
from pathlib import Path

import pytest

from engine.kernels.native import build
from engine.kernels.native.build import native_library

ONE_FUNCTION = '__attribute__((visibility("default"))) void linear(void) {}'


def compiled() -> CDLL:
    library = native_library()
    if library is None:
        pytest.skip("needs a C compiler")
    return library


def little_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has one function in `folder` compiled in place of all kernels, which takes a moment."""
    folder.mkdir()
    (folder / "linear.c").write_text(ONE_FUNCTION, encoding="utf-8")
    monkeypatch.setattr(build, "FOLDER", folder)
    monkeypatch.setattr(build, "ARGUMENTS", {"linear": []})
