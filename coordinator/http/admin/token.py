"""The bearer token of operators: a FastAPI dependency of the routes that ask for it."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

bearer = HTTPBearer(auto_error=False, description="needed if the coordinator has an admin token")


def require_token(
    request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> None:
    """Raises a 401 unless the request has the operators' token, if one is set."""
    expected = request.app.state.service.config.admin_token
    token = given.credentials if given else ""
    # A header is read as Latin-1; encoded again it is the bytes that were sent.
    if expected and not secrets.compare_digest(token.encode("latin-1"), expected.encode()):
        raise HTTPException(
            401, "send the admin token as `Authorization: Bearer …`", {"WWW-Authenticate": "Bearer"}
        )
