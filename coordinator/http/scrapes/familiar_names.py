"""The names that SGLang and vLLM give to what kvrelay measures too, so that dashboards, alerts and
endpoint pickers made for them work. Pure.

Nothing has a familiar name that does not mean exactly the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from coordinator.metrics import table
from protocol.metrics.metric import Measures, Metric, Sample


@dataclass(frozen=True)
class FamiliarName:
    """Another name of a metric. Series that differ only in labels which it lacks are added up."""

    name: str
    source: Metric
    labels: dict[str, str] = field(default_factory=dict)
    """Which label of the source each of its labels is."""
    only: tuple[str, str] | None = None
    """A label of the source and the value that it must have."""

    @property
    def metric(self) -> Metric:
        """Returns the definition under this name."""
        return dataclasses.replace(self.source, name=self.name, labels=tuple(self.labels))

    def samples(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Returns those of `samples` that are the source's, under this name."""
        for sample in samples:
            if sample.name != self.source.name:
                continue
            values = dict(zip(self.source.labels, sample.labels, strict=True))
            if self.only is None or values[self.only[0]] == self.only[1]:
                labels = tuple(values[label] for label in self.labels.values())
                yield Sample(self.name, labels, sample.value)


_STAGE = "stage"
NAMES = {
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


def familiar(families: Iterable[str], samples: list[Sample]) -> tuple[list[Metric], list[Sample]]:
    """Returns the metrics and samples of `samples` under the names of these families."""
    names = [name for family in families for name in NAMES[family]]
    measures = Measures()
    for name in names:
        for sample in name.samples(samples):
            measures.add(sample)
    return [name.metric for name in names], list(measures.samples())
