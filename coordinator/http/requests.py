"""What endpoints need of a request: the service behind them, and the JSON that came."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from coordinator.http.checking import parse_object
from coordinator.http.wire.bodies import read_body
from coordinator.service import Service


def service_of(request: Request) -> Service:
    """Returns the service that the application was made for."""
    service: Service = request.app.state.service
    return service


async def object_of(request: Request) -> dict[str, Any]:
    """Returns the JSON object that came, whatever its content type says; {} if none came. Raises
    BadRequest, BodyTooLarge or ClientLeft.

    It is read here and not by FastAPI, which would read it before it looks at a token.
    """
    max_bytes = service_of(request).config.max_body_bytes
    raw = await read_body(request.scope, request.receive, max_bytes)
    return parse_object(raw) if raw else {}
