"""What is served, and with what settings: SGLang's endpoints of model and server information."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, fields
from typing import Any

from fastapi import APIRouter, Request, Response

from coordinator.config import CoordinatorConfig
from coordinator.http.documents.bodies import answers
from coordinator.http.documents.shapes import Variations
from coordinator.http.native.sglang import WEIGHT_VERSION
from coordinator.http.replies import json_reply
from coordinator.http.requests import service_of
from coordinator.routing.registry import LiveNode
from protocol.config import hide_password
from protocol.model.files import open_model
from protocol.trust.versions import RELEASE

router = APIRouter(tags=["native"])

ROOT = {
    "name": "kvrelay",
    "version": RELEASE,
    "model": "tiny",
    "docs": "/docs",
    "openapi": "/openapi.json",
    "ready": "/ready",
    "stats": "/admin/cache/stats",
}
MODEL = answers(
    {
        "model_path": "/models/tiny",
        "tokenizer_path": "/models/tiny",
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": WEIGHT_VERSION,
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "served_model_name": "tiny",
        "max_model_len": 2048,
        "vocab_size": 2100,
    },
    variations=Variations(nullable=("model_type", "architectures")),
)
WEIGHTS = answers({"weight_version": WEIGHT_VERSION})
SERVER = answers(
    {
        "served_model_name": "tiny",
        "policy": "cost",
        "admin_token": "***",
        "version": RELEASE,
        "worker": 0,
        "process_id": 4711,
        "weight_version": WEIGHT_VERSION,
        "page_size": 16,
        "max_model_len": 2048,
        "max_total_num_tokens": 65536,
        "max_running_requests": 64,
        "nodes": [
            {
                "name": "d0",
                "role": "decode",
                "device": "cpu",
                "num_pages": 4096,
                "max_running_requests": 64,
            }
        ],
        "internal_states": [],
        "status": "ready",
    },
    variations=Variations(nullable=("page_size", "max_total_num_tokens")),
)


@router.get("/", response_model=None, responses=answers(ROOT))
async def root(request: Request) -> Response:
    """Tells whoever opens the address what answers there, and where to read on."""
    return json_reply(ROOT | {"model": service_of(request).config.served_model_name})


@router.get("/get_model_info", response_model=None, responses=MODEL)
@router.get("/model_info", response_model=None, responses=MODEL)
async def model_info(request: Request) -> Response:
    """Tells what model is served."""
    service = service_of(request)
    config = service.config
    model = read_config_once(request)
    return json_reply(
        {
            "model_path": config.model_path,
            "tokenizer_path": config.model_path,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": WEIGHT_VERSION,
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "model_type": model.get("model_type"),
            "architectures": model.get("architectures"),
            "served_model_name": config.served_model_name,
            "max_model_len": service.max_model_len,
            "vocab_size": service.tokenizer.vocab_size,
        }
    )


@router.get("/get_weight_version", response_model=None, responses=WEIGHTS)
@router.get("/weight_version", response_model=None, responses=WEIGHTS)
async def weight_version() -> Response:
    """Tells the name of the weights, which is always the same: they are never exchanged."""
    return json_reply({"weight_version": WEIGHT_VERSION})


@router.get("/get_server_info", response_model=None, responses=SERVER)
@router.get("/server_info", response_model=None, responses=SERVER)
async def server_info(request: Request) -> Response:
    """Tells settings without their secrets, sizes, and the nodes that live now."""
    service = service_of(request)
    model = service.core.registry.model
    decode_nodes = service.core.registry.live("decode")
    return json_reply(
        _public_settings(service.config)
        | {
            "version": RELEASE,
            "worker": service.worker,
            "process_id": os.getpid(),
            "weight_version": WEIGHT_VERSION,
            "page_size": model.layout.page_size if model else None,
            "max_model_len": service.max_model_len,
            "max_total_num_tokens": service.core.max_total_tokens,
            "max_running_requests": sum(live.info.max_running_requests for live in decode_nodes),
            "nodes": [_node(live) for live in service.core.registry.live()],
            "internal_states": [],
            "status": "ready" if service.is_ready(time.monotonic()) else "not ready",
        }
    )


def read_config_once(request: Request) -> dict[str, Any]:
    """Returns the config.json of the model, which is read at the first call."""
    state = request.app.state
    if not hasattr(state, "model_config"):
        state.model_config = open_model(service_of(request).model_path).config()
    config: dict[str, Any] = state.model_config
    return config


def _public_settings(config: CoordinatorConfig) -> dict[str, Any]:
    secrets = {field.name for field in fields(config) if field.metadata["is_secret"]}
    return {
        name: ("***" if value else "")
        if name in secrets
        else hide_password(value)
        if isinstance(value, str)
        else value
        for name, value in asdict(config).items()
    }


def _node(live: LiveNode) -> dict[str, Any]:
    return {
        "name": live.node.name,
        "role": live.load.role,
        "device": live.info.device,
        "num_pages": live.info.num_pages,
        "max_running_requests": live.info.max_running_requests,
    }
