"""GET /v1/models: what is served, in OpenAI's form."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from coordinator.http.documents.bodies import answers
from coordinator.http.openai.errors import OPENAI_ERRORS
from coordinator.http.openai.served import require_served
from coordinator.http.replies import FAULTS, fault_reply, json_reply
from coordinator.http.requests import service_of
from protocol.model.files import open_model

router = APIRouter(tags=["openai"])

MODEL = {
    "id": "tiny",
    "object": "model",
    "created": 1767225600,
    "owned_by": "kvrelay",
    "root": "tiny",
    "parent": None,
    "max_model_len": 2048,
}
MODELS = {"object": "list", "data": [MODEL]}


@router.get("/v1/models", response_model=None, responses=answers(MODELS))
async def models(request: Request) -> Response:
    """Answers the models that are served, which is one."""
    return json_reply({"object": "list", "data": [_model(request)]})


@router.get(
    "/v1/models/{model:path}",
    response_model=None,
    responses=answers(MODEL, {404: "the model is not served"}),
)
async def model(request: Request, model: str) -> Response:
    """Answers what is known of a model; 404 if it is not served."""
    if not model:
        return await models(request)
    try:
        require_served(model, service_of(request).config)
    except FAULTS as error:
        return fault_reply(error, OPENAI_ERRORS)
    return json_reply(_model(request))


def _model(request: Request) -> dict[str, Any]:
    service = service_of(request)
    return {
        "id": service.config.served_model_name,
        "object": "model",
        "created": int(open_model(service.model_path).modified_s),
        "owned_by": "kvrelay",
        "root": service.config.served_model_name,
        "parent": None,
        "max_model_len": service.max_model_len,
    }
