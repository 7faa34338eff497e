"""Endpoints that SGLang has and this version lacks: each says so with a 501."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from coordinator.http.error_forms import error_form_of
from coordinator.http.replies import error_reply

OF_SGLANG = (
    "/generate_from_file",
    "/encode",
    "/classify",
    "/parse_function_call",
    "/separate_reasoning",
    "/configure_logging",
    "/set_internal_state",
    "/freeze_gc",
    "/slow_down",
    "/start_profile",
    "/stop_profile",
    "/clear_hicache_storage_backend",
    "/start_expert_distribution_record",
    "/stop_expert_distribution_record",
    "/dump_expert_distribution_record",
    "/update_weights_from_disk",
    "/update_weights_from_tensor",
    "/update_weights_from_distributed",
    "/update_weights_from_ipc",
    "/update_weight_version",
    "/init_weights_update_group",
    "/destroy_weights_update_group",
    "/init_weights_send_group_for_remote_instance",
    "/send_weights_to_remote_instance",
    "/get_weights_by_name",
    "/weights_checker",
    "/release_memory_occupation",
    "/resume_memory_occupation",
    "/load_lora_adapter",
    "/unload_lora_adapter",
    "/v1/embeddings",
    "/v1/classify",
    "/v1/score",
    "/v1/rerank",
    "/v1/responses/{response_id}",
    "/v1/responses/{response_id}/cancel",
    "/invocations",
    "/vertex_generate",
)
"""What SGLang 0.5.6 has besides."""
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH"]

router = APIRouter(include_in_schema=False)


async def missing(request: Request) -> Response:
    """Answers 501: the endpoint is known and not in this version."""
    path = request.url.path
    message = f"{path} is not supported by this version of kvrelay"
    return error_reply(501, message, form=error_form_of(path))


for path in OF_SGLANG:
    router.add_api_route(path, missing, methods=METHODS, response_model=None)
