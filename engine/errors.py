"""The engine's error that ends a process; who catches it needs no torch. Pure."""

from __future__ import annotations


class DeviceBroken(Exception):
    """The device computes nothing more in this process: a new process is needed."""
