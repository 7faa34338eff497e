"""The engine's errors; who catches them needs no torch. Pure."""

from __future__ import annotations

from protocol.errors import UserError


class DeviceBroken(Exception):
    """The device computes nothing more in this process: a new process is needed."""


class RequestFailed(Exception):
    """A request asks for what no node can compute; the message is for the client to read."""


class OptionUnavailable(UserError):
    """An option asks for what this machine does not have; the message has the remedy."""
