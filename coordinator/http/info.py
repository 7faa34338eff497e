"""Health, model and server information, and the cache flush: SGLang's native companions."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Depends, Request, Response

from coordinator.answers.request import Request as GenerateRequest
from coordinator.core.core import NO_NODE
from coordinator.core.errors import RequestRefused
from coordinator.http.admin_token import require_token
from coordinator.http.replies import error_reply, json_reply
from coordinator.service import Service
from protocol.config import hide_password
from protocol.sampling import Sampling

try:
    VERSION = version("kvrelay")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0"

HEALTH_TIMEOUT_S = 20.0
FLUSH_TIMEOUT_S = 5.0

router = APIRouter()


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("/health", response_model=None)
async def health() -> Response:
    """Answers 200 while this process is up."""
    return Response(status_code=200)


@router.get("/ready", response_model=None)
async def ready(request: Request) -> Response:
    """Answers 200 when a request would find a node."""
    if _service(request).core.is_ready:
        return Response(status_code=200)
    return error_reply(503, NO_NODE)


@router.get("/health_generate", response_model=None)
async def health_generate(request: Request) -> Response:
    """Answers 200 after it has really generated one token."""
    service = _service(request)
    one_token = GenerateRequest(tokens=[0], sampling=Sampling(temperature=0.0), max_new_tokens=1)
    try:
        mailbox = service.submit(one_token)
    except RequestRefused as error:
        return error_reply(503, str(error))
    answer = mailbox.answer
    try:
        await mailbox.finished(HEALTH_TIMEOUT_S)
    except asyncio.TimeoutError:
        service.cancel(answer.request_id)
        return error_reply(503, f"no token within {HEALTH_TIMEOUT_S:g} s")
    if answer.error is not None:
        return error_reply(503, answer.error.message)
    return Response(status_code=200)


@router.get("/get_model_info", response_model=None)
@router.get("/model_info", response_model=None)
async def model_info(request: Request) -> Response:
    """Tells what model is served."""
    service = _service(request)
    config = service.config
    return json_reply(
        {
            "model_path": config.model_path,
            "tokenizer_path": config.model_path,
            "is_generation": True,
            "served_model_name": config.served_model_name,
            "weight_version": "default",
            "max_model_len": service.max_model_len,
            "vocab_size": service.tokenizer.vocab_size,
        }
    )


@router.get("/get_server_info", response_model=None)
@router.get("/server_info", response_model=None)
async def server_info(request: Request) -> Response:
    """Tells settings, sizes and the nodes that live now."""
    service = _service(request)
    model = service.core.registry.model
    settings = asdict(service.config) | {
        "redis_url": hide_password(service.config.redis_url),
        "admin_token": "***" if service.config.admin_token else "",
    }
    return json_reply(
        settings
        | {
            "version": VERSION,
            "page_size": model.layout.page_size if model else None,
            "max_total_num_tokens": service.core.max_total_tokens,
            "nodes": [
                {"name": live.node.name, "role": live.load.role, "device": live.info.device}
                for live in service.core.registry.live()
            ],
        }
    )


@router.api_route(
    "/flush_cache",
    methods=["GET", "POST"],
    response_model=None,
    dependencies=[Depends(require_token)],
)
async def flush_cache(request: Request) -> Response:
    """Makes every node forget its cached pages; answers 400 while requests run. Asks for the admin
    token if one is set."""
    service = _service(request)
    if num_unfinished := service.core.num_unfinished:
        return error_reply(
            400, f"{num_unfinished} requests are running; flush when they have ended"
        )
    nodes = service.core.registry.live()
    flushed = await service.flush_cache(nodes, None, FLUSH_TIMEOUT_S)
    if len(flushed) < len(nodes):
        return error_reply(503, "not every node answered in time; try again")
    return json_reply({"message": "cache flushed", "pages": flushed})
