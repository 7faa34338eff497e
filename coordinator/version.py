"""The version of kvrelay that is installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("kvrelay")
except PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0"
