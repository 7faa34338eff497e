"""The OpenAPI document of a coordinator, without one that runs."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from coordinator.http.app import ROUTERS
from coordinator.http.documents.openapi import describe_others
from protocol.trust.versions import RELEASE


def openapi_document() -> dict[str, Any]:
    """Returns what GET /openapi.json answers."""
    app = FastAPI(title="kvrelay", version=RELEASE, docs_url=None, redoc_url=None)
    for module in ROUTERS:
        app.include_router(module.router)
    describe_others(app)
    return app.openapi()
