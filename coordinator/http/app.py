"""The HTTP surface: which module answers what, and errors in one shape."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from coordinator.http import admin, info, not_yet
from coordinator.http.generate import GenerateEndpoint
from coordinator.http.replies import error_reply
from coordinator.service import Service


def create_app(service: Service) -> FastAPI:
    """Makes the ASGI application. It starts `service` when the server starts and closes it at the
    end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.close()

    app = FastAPI(title="kvrelay", version=info.VERSION, lifespan=lifespan)
    app.state.service = service
    app.include_router(info.router)
    app.include_router(admin.router)
    app.include_router(not_yet.router)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(GenerateEndpoint, service=service)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Answers an unknown path or method in the shape of every other error."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    reply = error_reply(error.status_code, message)
    reply.headers.update(error.headers or {})
    return reply


async def _invalid(request: Request, error: Exception) -> Response:
    """Answers a query parameter of the wrong type or out of range with a 400."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    return error_reply(400, f"{request.method} {request.url.path}: {'; '.join(problems)}")


async def _failed(request: Request, error: Exception) -> Response:
    """Answers a 500 for an error of our own, which the server logs."""
    return error_reply(500, "internal error; the coordinator's log has the details")
