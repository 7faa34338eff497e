"""The OpenAPI document, and a page that shows it without anything from the internet."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi

from coordinator.http.documents.agents import agents_paths, agents_schemas
from coordinator.http.documents.generate import generate_path, generate_schemas
from coordinator.http.documents.openai import openai_paths, openai_schemas
from coordinator.http.documents.refusals import complete

router = APIRouter(include_in_schema=False)


@router.get("/docs", response_model=None)
@router.get("/redoc", response_model=None)
async def docs() -> Response:
    """Answers a page that reads /openapi.json and shows it."""
    return Response(_page(), media_type="text/html; charset=utf-8")


def describe_others(app: FastAPI) -> None:
    """Adds the endpoints that do not go through FastAPI to the document of `app`."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            others = {"/generate": generate_path()} | openai_paths() | agents_paths()
            schema["paths"] = others | schema["paths"]
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    complete(path, operation)
            components = schema.setdefault("components", {})
            described = generate_schemas() | openai_schemas() | agents_schemas()
            components["schemas"] = described
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


@cache
def _page() -> str:
    return (
        resources.files("coordinator.http.documents")
        .joinpath("page.html")
        .read_text(encoding="utf-8")
    )
