"""The HTTP surface: which module answers what, and errors in one shape."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp

from coordinator.answers.model_form import model_form
from coordinator.http import missing
from coordinator.http.admin import endpoints as admin
from coordinator.http.admin import requests as admin_requests
from coordinator.http.answering.endpoints import PostEndpoints, PostHandler
from coordinator.http.anthropic.endpoint import CountTokens, Messages
from coordinator.http.companions import cache, control, health, loads, model, tokenizing
from coordinator.http.documents import openapi
from coordinator.http.error_forms import error_form_of
from coordinator.http.errors import INTERNAL_ERROR, STATUS_CODES, ClientLeft
from coordinator.http.live import endpoint as live
from coordinator.http.live import page
from coordinator.http.live.feed import LiveFeed
from coordinator.http.native.generate import GenerateEndpoint
from coordinator.http.openai import models
from coordinator.http.openai.chats.endpoint import ChatCompletions
from coordinator.http.openai.completions.endpoint import Completions
from coordinator.http.replies import error_reply
from coordinator.http.responses.endpoint import Responses
from coordinator.http.scrapes import endpoint as scrapes
from coordinator.http.scrapes.endpoint import Scrapes
from coordinator.http.scrapes.responses import CountResponses
from coordinator.http.sessions import endpoints as sessions
from coordinator.http.wire.api_keys import ApiKeys
from coordinator.http.wire.cross_origin import CrossOrigin
from coordinator.http.wire.request_ids import RequestIds
from coordinator.service import Service
from protocol.trust.versions import RELEASE

ROUTERS = (
    health,
    model,
    cache,
    tokenizing,
    loads,
    sessions,
    control,
    models,
    admin,
    admin_requests,
    live,
    page,
    scrapes,
    openapi,
    missing,
)
"""The modules whose endpoints are served. What is missing comes last: any other goes before."""


def create_app(service: Service, first_look_s: float = 0.0) -> ASGIApp:
    """Makes the ASGI application. It starts `service` when the server starts and closes it at the
    end. Before the first request it looks for nodes that take requests, for `first_look_s` at
    most."""
    config = service.config
    api = PostEndpoints(
        RequestIds(create_api(service, first_look_s)),
        create_handlers(service),
        config.max_body_bytes,
    )
    measures = service.core.statistics.requests.measures
    app: ASGIApp = GenerateEndpoint(api, service)
    if config.api_key:
        app = ApiKeys(app, config.api_key, config.admin_token)
    if config.cors_origin:
        app = CrossOrigin(app, config.cors_origin)
    return CountResponses(app, measures)


def create_handlers(service: Service) -> dict[str, PostHandler]:
    """Makes what answers POST requests past FastAPI, by path. Raises ConfigError and
    ModelDirectoryError."""
    form = model_form(service.model_path, service.tokenizer.model, service.config)
    return {
        "/v1/chat/completions": ChatCompletions(service, form),
        "/v1/completions": Completions(service),
        "/v1/messages": Messages(service, form),
        "/v1/responses": Responses(service, form),
        "/v1/messages/count_tokens": CountTokens(service, form),
    }


def create_api(service: Service, first_look_s: float = 0.0) -> FastAPI:
    """Makes the part of the application that answers everything but /generate, and describes all
    of it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        await service.until_ready(first_look_s)
        await app.state.scrapes.siblings.start()
        yield
        await app.state.scrapes.siblings.close()
        await service.close()

    app = FastAPI(
        title="kvrelay", version=RELEASE, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    app.state.scrapes = Scrapes(service)
    app.state.live_feed = LiveFeed(service)
    for module in ROUTERS:
        app.include_router(module.router)
    openapi.describe_others(app)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientLeft, _left)
    app.add_exception_handler(Exception, _failed)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Answers an unknown path or method in the shape of every other error."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    headers = dict(error.headers or {})
    if error.status_code == 405:
        methods = headers["Allow"] = ", ".join(_allowed(request))
        message += f"; it takes {methods}"
    reply = error_reply(error.status_code, message, form=error_form_of(request.url.path))
    reply.headers.update(headers)
    return reply


def _allowed(request: Request) -> list[str]:
    """Returns the methods of a path. Starlette's own answer has those of one of its routes only."""
    routes = [route for module in ROUTERS for route in module.router.routes]
    return sorted(
        method
        for route in routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    )


async def _invalid(request: Request, error: Exception) -> Response:
    """Answers a query parameter of the wrong type or out of range with a 400."""
    assert isinstance(error, RequestValidationError)
    problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
    message = f"{request.method} {request.url.path}: {'; '.join(problems)}"
    param = str(error.errors()[0]["loc"][-1])
    return error_reply(400, message, param, form=error_form_of(request.url.path))


async def _left(request: Request, error: Exception) -> Response:
    """Answers nobody: the client has left within its body."""
    return error_reply(STATUS_CODES["client_left"], "the client has left")


async def _failed(request: Request, error: Exception) -> Response:
    """Answers a 500 for an error of our own, which the server logs."""
    return error_reply(500, INTERNAL_ERROR, form=error_form_of(request.url.path))
