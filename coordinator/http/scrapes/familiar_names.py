"""The names that SGLang and vLLM give to what a coordinator measures of its cluster. Pure."""

from __future__ import annotations

from coordinator.metrics import table
from protocol.telemetry.familiar import FamiliarName, Names

_STAGE = "stage"
NAMES: Names = {
    "sglang": (
        FamiliarName("sglang:time_to_first_token_seconds", table.FIRST_TOKEN),
        FamiliarName("sglang:inter_token_latency_seconds", table.TOKEN_GAP),
        FamiliarName("sglang:e2e_request_latency_seconds", table.END_TO_END),
        FamiliarName("sglang:queue_time_seconds", table.QUEUE),
        FamiliarName("sglang:prompt_tokens_total", table.PROMPT_TOKENS),
        FamiliarName("sglang:generation_tokens_total", table.GENERATION_TOKENS),
        FamiliarName("sglang:num_requests_total", table.REQUESTS),
        FamiliarName("sglang:token_usage", table.CACHE_USAGE),
        FamiliarName("sglang:num_queue_reqs", table.IN_PROGRESS, only=(_STAGE, "waiting")),
        FamiliarName("sglang:num_running_reqs", table.RUNNING),
        FamiliarName(
            "sglang:cache_config_info",
            table.CACHE_INFO,
            {"page_size": "page_size", "num_pages": "pages"},
        ),
    ),
    "vllm": (
        FamiliarName("vllm:time_to_first_token_seconds", table.FIRST_TOKEN),
        FamiliarName("vllm:inter_token_latency_seconds", table.TOKEN_GAP),
        FamiliarName("vllm:e2e_request_latency_seconds", table.END_TO_END),
        FamiliarName("vllm:request_queue_time_seconds", table.QUEUE),
        FamiliarName("vllm:request_prefill_time_seconds", table.PREFILL),
        FamiliarName("vllm:request_prompt_tokens", table.PROMPT_LENGTH),
        FamiliarName("vllm:request_generation_tokens", table.ANSWER_LENGTH),
        FamiliarName("vllm:prompt_tokens_total", table.PROMPT_TOKENS),
        FamiliarName("vllm:generation_tokens_total", table.GENERATION_TOKENS),
        FamiliarName("vllm:prefix_cache_queries_total", table.PROMPT_TOKENS),
        FamiliarName("vllm:prefix_cache_hits_total", table.CACHED_TOKENS),
        FamiliarName("vllm:request_success_total", table.REQUESTS, {"finished_reason": "outcome"}),
        FamiliarName("vllm:num_requests_waiting", table.IN_PROGRESS, only=(_STAGE, "waiting")),
        FamiliarName("vllm:num_requests_running", table.RUNNING),
        FamiliarName("vllm:kv_cache_usage_perc", table.CACHE_USAGE),
        FamiliarName(
            "vllm:cache_config_info",
            table.CACHE_INFO,
            {"block_size": "page_size", "num_gpu_blocks": "pages"},
        ),
    ),
}
