"""What shared pages save a program of the generation language, on a local cluster.

    .venv/bin/python -m benchmarks.features.language [--rounds N] [--out FILE]

Three programs begin with the same long text: a selection among eight choices, a fork of eight
branches, and a task flow that decomposes a task, lets three branches call a tool each, and answers.
Each runs as it is, and without shared pages: every request then has a namespace of its own, nothing
is computed in advance, and a choice is scored with all of its prompt. Ways take turns, and every
round has another text, so no run finds the pages of one before it.

The physics: with pages, what is computed is the text once, and for every branch and turn what is
new, rounded up to pages; without, the whole text each time. So for long texts the ratio of tokens
goes to the number of requests of the program. The ratio of times is smaller, since tokens that are
written take their time either way, and this model is small.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

import kvrelay
from benchmarks.machine import machine
from infra.cluster import ClusterPlan, LocalCluster
from infra.models import EMBEDDED
from infra.ports import free_port
from kvrelay import Client, Generated, HttpBackend, Program, ProgramState, gen, select
from kvrelay.language.backend import Decision, likeliest
from kvrelay.language.scoring import score_of

NUM_BRANCHES = 8
NUM_SENTENCES = 120
"""Of the text that a program begins with: about 1,500 tokens."""
SUBJECTS = ("The old clock", "The garden", "My neighbour", "The letter", "The boat", "A red kettle")
VERBS = ("stood near", "was seen behind", "was forgotten at", "came from", "lay beside")
PLACES = ("the window", "the road", "the river", "the library", "the market", "the village")
CHOICES = tuple(f"{place} {when}" for place in PLACES[:4] for when in ("today", "in the evening"))
SETTLE_TIMEOUT_S = 10.0


class UnsharedClient(Client):
    """Gives every prompt a namespace of its own, so that no two share pages."""

    _salts = itertools.count()

    def generate(self, prompt: Any, **params: Any) -> Generated:
        return super().generate(prompt, **{**params, "cache_salt": self._salt()})

    def generate_list(self, texts: Sequence[str], **params: Any) -> list[Generated]:
        salts = [self._salt() for _ in texts]
        return super().generate_list(texts, **{**params, "cache_salt": salts})

    def _salt(self) -> str:
        return f"unshared-{next(self._salts)}"


class UnsharedBackend(HttpBackend):
    """Computes nothing in advance, since nobody would share it."""

    def __init__(self, client: UnsharedClient, sampling: Mapping[str, Any]) -> None:
        super().__init__(client, sampling=sampling)
        self._unshared = client

    def warm(self, text: str) -> None:
        pass

    def select(self, prefix: str, choices: Sequence[str]) -> Decision:
        scored = self._unshared.generate_list(
            [prefix + choice for choice in choices],
            return_logprob=True,
            return_text_in_logprobs=True,
            logprob_start_len=0,
            max_new_tokens=0,
        )
        entries = [one.meta_info.input_token_logprobs or () for one in scored]
        return likeliest([score_of(0, *pair) for pair in zip(choices, entries, strict=True)])


@kvrelay.function
def selection(s: ProgramState, text: str) -> None:
    s += text + "In the end it stood near " + select("place", CHOICES)


@kvrelay.function
def fork(s: ProgramState, text: str) -> None:
    s += text
    forks = s.fork(NUM_BRANCHES)
    forks += lambda number: f"Question {number}:"
    forks += gen("part", max_new_tokens=8, ignore_eos=True)
    forks.join()


def count_words(words: list[str]) -> int:
    """The tool of the task flow."""
    return len(words)


@kvrelay.function
def task_flow(s: ProgramState, text: str) -> None:
    s += text + "Three parts of the task:\n"
    for number in range(1, 4):
        s += f"{number}. " + gen(f"part{number}", regex="[a-z]{3,8} [a-z]{3,8}", max_new_tokens=12)
        s += "\n"
    branches = s.fork(3)
    for number, branch in enumerate(branches, 1):
        branch += f"Part {number}, {s[f'part{number}']}: "
        branch += kvrelay.call("count", count_words, max_new_tokens=24)
    branches.join()
    s += f"The counts are {s['count']}. The answer:" + gen("answer", max_new_tokens=8)


PROGRAMS: Mapping[str, Program] = {"select": selection, "fork": fork, "task flow": task_flow}


def main() -> None:
    """Prints a table with a row for each program, and last one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    flags = {"model_path": str(EMBEDDED)}
    plan = ClusterPlan(
        num_prefill=1,
        num_decode=1,
        host="127.0.0.1",
        port=free_port(),
        redis_url=os.environ.get("KVRELAY_REDIS_URL", ""),
        coordinator_flags=flags,
        node_flags=flags | {"dtype": "float32", "max_total_tokens": "262144"},
    )
    with LocalCluster(plan) as cluster:
        rows = measured(cluster.url, options.rounds)
    _print(rows)
    report = {
        "bench": "language",
        "rounds": options.rounds,
        "programs": rows,
        "machine": machine("torch", "httpx"),
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report))


def measured(url: str, num_rounds: int) -> dict[str, dict[str, float]]:
    """Returns the figures of each program."""
    sampling = {"temperature": 0}
    with Client(url) as client, UnsharedClient(url) as unshared:
        ways = {
            "shared": HttpBackend(client, sampling=sampling),
            "unshared": UnsharedBackend(unshared, sampling),
        }
        return {
            name: _figures(client, name, program, ways, num_rounds)
            for name, program in PROGRAMS.items()
        }


def _figures(
    client: Client, name: str, program: Program, ways: Mapping[str, HttpBackend], num_rounds: int
) -> dict[str, float]:
    tokens: dict[str, list[int]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    num_same = 0
    for number in range(num_rounds + 1):  # the first one warms up
        text = notes(random.Random(f"{name} {number}"))
        written = set()
        for way, backend in ways.items():
            before = computed_tokens(client)
            started = time.perf_counter()
            written.add(program.run(backend, text=text).text())
            elapsed_s = time.perf_counter() - started
            if number:
                seconds[way].append(elapsed_s)
                tokens[way].append(computed_tokens(client) - before)
        num_same += len(written) == 1 and number > 0
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    means = {way: statistics.mean(counts) for way, counts in tokens.items()}
    return {
        **{f"computed_{way}": round(mean, 1) for way, mean in means.items()},
        "token_ratio": round(means["unshared"] / means["shared"], 2),
        "time_ratio": round(medians["unshared"] / medians["shared"], 2),
        "same_text": num_same / num_rounds,
    }


def notes(chance: random.Random) -> str:
    """Returns a text of short sentences."""
    choose: Callable[[Sequence[str]], str] = chance.choice
    return "".join(
        f"{choose(SUBJECTS)} {choose(VERBS)} {choose(PLACES)}. " for _ in range(NUM_SENTENCES)
    )


def computed_tokens(client: Client) -> int:
    """Returns how many tokens of prompts all nodes have computed, when all of them are at rest and
    have said so since now."""
    asked = time.monotonic()
    while True:
        nodes = client.nodes()
        elapsed_s = time.monotonic() - asked
        if all(
            node["last_heartbeat_s_ago"] < elapsed_s and node["load"]["held_pages"] == 0
            for node in nodes
        ):
            return sum(node["load"]["counters"]["computed_tokens"] for node in nodes)
        if elapsed_s > SETTLE_TIMEOUT_S:
            raise TimeoutError("the nodes did not come to rest")
        time.sleep(0.02)


def _print(rows: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(box=box.SIMPLE, title="tokens computed and time, without shared pages and with")
    table.add_column("program")
    for heading in next(iter(rows.values())):
        table.add_column(heading.replace("_", " "), justify="right")
    for name, row in rows.items():
        table.add_row(name, *(f"{figure:g}" for figure in row.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
