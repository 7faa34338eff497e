"""GET /v1/loads and /get_load: how busy the nodes are, in the fields that SGLang's routers read."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from coordinator.http.documents.bodies import answers
from coordinator.http.replies import json_reply
from coordinator.http.requests import service_of
from coordinator.routing.registry import LiveNode
from coordinator.service import Service
from protocol.trust.versions import RELEASE

router = APIRouter(tags=["native"])

LOADS = {
    "timestamp": "2026-01-01T00:00:00Z",
    "version": RELEASE,
    "dp_rank_count": 1,
    "loads": [
        {
            "dp_rank": 0,
            "node": "d0",
            "role": "decode",
            "num_running_reqs": 2,
            "num_waiting_reqs": 0,
            "num_total_reqs": 2,
            "num_used_tokens": 1024,
            "num_cached_tokens": 4096,
            "max_total_num_tokens": 65536,
            "token_usage": 0.0156,
            "max_running_requests": 64,
            "utilization": 0.0313,
        }
    ],
    "aggregate": {
        "total_running_reqs": 2,
        "total_waiting_reqs": 0,
        "total_reqs": 2,
        "num_used_tokens": 1024,
        "max_total_num_tokens": 65536,
        "avg_token_usage": 0.0156,
        "avg_utilization": 0.0313,
    },
}
OLDER_LOADS = [{"dp_rank": 0, "num_reqs": 2, "num_waiting_reqs": 0, "num_tokens": 1024}]


@router.get("/v1/loads", response_model=None, responses=answers(LOADS))
async def loads(request: Request) -> Response:
    """Answers the load of each live node, and sums and means over all. `dp_rank` is the place of a
    node in the order of names.

    Requests that still wait at the coordinators are counted in `aggregate` alone.
    """
    service = service_of(request)
    counts = await service.count_everywhere()
    each = [_load(rank, live) for rank, live in enumerate(service.core.registry.live())]
    running = sum(load["num_running_reqs"] for load in each)
    waiting = sum(load["num_waiting_reqs"] for load in each) + counts.num_waiting
    return json_reply(
        {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "version": RELEASE,
            "dp_rank_count": len(each),
            "loads": each,
            "aggregate": {
                "total_running_reqs": running,
                "total_waiting_reqs": waiting,
                "total_reqs": running + waiting,
                "num_used_tokens": sum(load["num_used_tokens"] for load in each),
                "max_total_num_tokens": sum(load["max_total_num_tokens"] for load in each),
                "avg_token_usage": _mean([load["token_usage"] for load in each]),
                "avg_utilization": _mean([load["utilization"] for load in each]),
            },
        }
    )


@router.get("/get_load", response_model=None, responses=answers(OLDER_LOADS))
async def get_load(request: Request) -> Response:
    """Answers the load of each live node in the four fields of SGLang's older endpoint."""
    service: Service = service_of(request)
    each = [_load(rank, live) for rank, live in enumerate(service.core.registry.live())]
    return json_reply(
        [
            {
                "dp_rank": load["dp_rank"],
                "num_reqs": load["num_total_reqs"],
                "num_waiting_reqs": load["num_waiting_reqs"],
                "num_tokens": load["num_used_tokens"],
            }
            for load in each
        ]
    )


def _load(rank: int, live: LiveNode) -> dict[str, Any]:
    load, info = live.load, live.info
    page_size = info.layout.page_size
    return {
        "dp_rank": rank,
        "node": live.node.name,
        "role": load.role,
        "num_running_reqs": load.num_running,
        "num_waiting_reqs": load.num_waiting,
        "num_total_reqs": load.num_running + load.num_waiting,
        "num_used_tokens": load.held_pages * page_size,
        "num_cached_tokens": load.cached_pages * page_size,
        "max_total_num_tokens": info.num_pages * page_size,
        "token_usage": _share(load.held_pages, info.num_pages),
        "max_running_requests": info.max_running_requests,
        "utilization": _share(load.num_running, info.max_running_requests),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0
