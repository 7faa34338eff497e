"""Prefill and decode nodes without a model, to measure everything around the model.

They speak the real protocol over the real channel. A node is instant (`InstantNode`), to measure
the coordinator alone, or with --simulate the product's own node whose computing and fetching takes
modelled time (`ModelledNode`).

    .venv/bin/python -m benchmarks.clusters.stub_nodes decode --name d0 --redis-url redis://127.0.0.1:6379/0
"""

from __future__ import annotations

import argparse
import logging
import signal
import time

from benchmarks.clusters.instant_node import InstantNode
from benchmarks.clusters.modelled_engine import Pace
from benchmarks.clusters.modelled_node import ModelledNode, Paces
from protocol.channel import Channel
from protocol.ids import Node
from protocol.layout import KVLayout
from protocol.messages import NodeInfo

HOST = "127.0.0.1"
LEASE_S = 3.0
MAX_RUNNING_REQUESTS = 256
MAX_QUEUED_REQUESTS = 4096
LAYOUT = KVLayout(num_layers=2, page_size=16, num_kv_heads=2, head_dim=16, dtype="float32")


def info_of(name: str, channel: Channel, num_pages: int) -> NodeInfo:
    return NodeInfo(
        node=Node(name, time.time_ns()),
        control_address=channel.address,
        data_addresses=(channel.address,),  # nobody connects to it
        layout=LAYOUT,
        model_fingerprint="stub",
        num_pages=num_pages,
        max_running_requests=MAX_RUNNING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        device="none",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A node without a model.")
    parser.add_argument("role", choices=("prefill", "decode"))
    parser.add_argument("--name", required=True)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--num-pages", type=int, default=100_000)
    parser.add_argument("--prefill-tokens-per-s", type=float, default=0.0, help="0: instant")
    parser.add_argument("--prefill-base-s", type=float, default=0.0)
    parser.add_argument("--fetch-tokens-per-s", type=float, default=0.0, help="0: instant")
    parser.add_argument("--fetch-base-s", type=float, default=0.0)
    parser.add_argument("--step-s", type=float, default=0.0, help="of a token; 0: all at once")
    parser.add_argument("--simulate", action="store_true", help="a real node in modelled time")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    channel = Channel(HOST)
    info = info_of(given.name, channel, given.num_pages)
    node: InstantNode | ModelledNode
    if given.simulate:
        paces = Paces(
            prefill=Pace(given.prefill_tokens_per_s, given.prefill_base_s),
            fetch=Pace(given.fetch_tokens_per_s, given.fetch_base_s),
        )
        node = ModelledNode(given.role, info, channel, given.redis_url, LEASE_S, paces)
    else:
        node = InstantNode(given.role, info, channel, given.redis_url, LEASE_S, given.step_s)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: node.stop())
    node.run()


if __name__ == "__main__":
    main()
