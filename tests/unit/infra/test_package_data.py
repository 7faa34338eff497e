"""Whatever kvrelay reads at run time is in its wheel."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes.releases import own_files

PYPROJECT = Path("pyproject.toml")
NOT_INSTALLED = ("infra/docker/*", "infra/Dockerfile", "infra/chart/*", "infra/compose/*")
"""What is used from a checkout: containers and charts."""


@pytest.fixture(scope="module")
def setuptools_settings() -> Any:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")
    return tomllib.loads(PYPROJECT.read_text())["tool"]["setuptools"]


def test_an_editable_install_is_the_checkout_itself(setuptools_settings: Any) -> None:
    """Else `import kvrelay` beside a clone of that name finds the clone's folder."""
    assert setuptools_settings["package-dir"] == {"": "."}


def test_every_file_beside_the_programs_is_package_data(setuptools_settings: Any) -> None:
    found = setuptools_settings["packages"]["find"]
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, names in setuptools_settings["package-data"].items()
        for pattern in names
    ]
    tops = {name.rstrip("*").replace(".", "/") + "/" for name in found["include"]}
    files = [
        name for name in own_files() if name.startswith(tuple(tops)) and not name.endswith(".py")
    ]
    assert "models/tiny/config.json" in files and "engine/kernels/native/kernels.c" in files
    for name in files:
        is_left_out = any(fnmatch(name, pattern) for pattern in NOT_INSTALLED)
        is_data = any(fnmatch(name, pattern) for pattern in patterns)
        assert is_data or is_left_out, f"{name} is missing in package-data of {PYPROJECT}"


def test_there_is_one_version() -> None:
    """The changelog's newest release is the version of the package."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML by itself")
    version = tomllib.loads(PYPROJECT.read_text())["project"]["version"]
    headings = [line for line in Path("CHANGELOG.md").read_text().splitlines() if line[:3] == "## "]
    assert headings[0] == "## [Unreleased]" and headings[1].startswith(f"## [{version}] - ")
