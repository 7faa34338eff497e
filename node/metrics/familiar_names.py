"""The names that SGLang and vLLM give to what a node measures. Pure.

They are those that an endpoint picker asks a model server for.
"""

from __future__ import annotations

from node.metrics import table
from protocol.telemetry.familiar import FamiliarName, Names

NAMES: Names = {
    "sglang": (
        FamiliarName("sglang:num_running_reqs", table.RUNNING),
        FamiliarName("sglang:num_queue_reqs", table.WAITING),
        FamiliarName("sglang:token_usage", table.USAGE),
        FamiliarName(
            "sglang:cache_config_info", table.INFO, {"page_size": "page_size", "num_pages": "pages"}
        ),
    ),
    "vllm": (
        FamiliarName("vllm:num_requests_running", table.RUNNING),
        FamiliarName("vllm:num_requests_waiting", table.WAITING),
        FamiliarName("vllm:kv_cache_usage_perc", table.USAGE),
        FamiliarName("vllm:num_preemptions_total", table.PREEMPTIONS),
        FamiliarName(
            "vllm:cache_config_info",
            table.INFO,
            {"block_size": "page_size", "num_gpu_blocks": "pages"},
        ),
    ),
}
