"""How large the index of a coordinator gets, and what it takes to look into it.

Chains of 160 pages, as the prompts of this load have, lie each on two nodes, one that computed it
and one that answered, and every tenth on eight more. Memory is that of the process: dictionary,
keys, and masks of owners, which get longer with the number of nodes and are shared by pages with
the same owners.
"""

from __future__ import annotations

import gc
import os
import random
import time
from pathlib import Path

from benchmarks.scale.probes import cpu_us
from coordinator.ownership.index import PrefixIndex
from protocol.hashing import PAGE_HASH_BYTES, split_hashes
from protocol.ids import Node

CHAIN_PAGES = 160
NUM_MATCHES = 1_000


def index_figures(num_nodes: int, num_pages: int) -> dict[str, float]:
    """Returns bytes a page, the CPU time of a match, and how long it takes to forget a node. Call
    it in a process of its own, whose memory is that of nothing else."""
    chance = random.Random(1)
    nodes = [Node(f"n{number:04}", 1) for number in range(num_nodes)]
    chains = [
        chance.randbytes(CHAIN_PAGES * PAGE_HASH_BYTES) for _ in range(num_pages // CHAIN_PAGES)
    ]
    owners = [
        chance.sample(nodes, min(num_nodes, 10 if number % 10 == 0 else 2))
        for number in range(len(chains))
    ]
    index = PrefixIndex()
    gc.collect()
    before_bytes = _resident_bytes()
    for chain, of_chain in zip(chains, owners, strict=True):
        hashes = split_hashes(chain)
        for node in of_chain:
            index.stored(node, hashes)
    num_bytes = _resident_bytes() - before_bytes
    gc.collect()
    gc.freeze()
    prompts = [split_hashes(chain) for chain in chance.choices(chains, k=NUM_MATCHES)]
    match_us = cpu_us(index.match, prompts)
    began = time.process_time()
    index.forget(nodes[0])
    return {
        "pages": index.num_unique_pages,
        "bytes_per_page": num_bytes / index.num_unique_pages,
        "match_us": match_us,
        "forget_ms_per_million_pages": 1e9 * (time.process_time() - began) / num_pages,
    }


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
