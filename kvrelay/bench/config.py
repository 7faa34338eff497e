"""The settings of `kvrelay bench serve`, and its flags."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvrelay.bench.results.slo import Slo
from protocol.config import add_flags, option, require, resolve

DEFAULT_CONCURRENCY = 4


@dataclass(frozen=True)
class BenchConfig:
    """What load is put on which server, and what is told of it."""

    url: str = option("http://127.0.0.1:30000", "the server, with or without /v1")
    api: str = option("generate", "which API is asked", ("generate", "completions", "chat"))
    model: str = option("", "the model's name in requests; none: what the server tells")
    api_key: tuple[str, ...] = option(
        (), "an API key of the server, if it asks for one; of several the first", is_secret=True
    )
    workload: str = option("synthetic", "what is asked", ("synthetic", "mooncake", "sharegpt"))
    dataset: str = option("", "the file of the workload mooncake or sharegpt")
    num_requests: int = option(64, "how many requests a run has, warm-up apart")
    rate: float = option(0.0, "requests begin at so many a second, as a Poisson process")
    concurrency: int = option(
        0,
        f"so many users wait for one answer before they ask again; 0: {DEFAULT_CONCURRENCY}, "
        "unless --rate or a trace says when requests begin",
    )
    speedup: float = option(1.0, "how much faster than its own times a trace is sent")
    input_tokens: int = option(256, "synthetic: tokens that a turn has of its own")
    output_tokens: int = option(0, "tokens of each answer; 0: what the workload says, else 64")
    prefix_tokens: int = option(256, "synthetic: tokens of the beginning that dialogues share")
    num_prefixes: int = option(4, "synthetic: how many such beginnings there are")
    turns: int = option(1, "turns of a dialogue (synthetic), or at most so many (sharegpt)")
    max_input_tokens: int = option(0, "mooncake: leave out longer prompts; 0: none")
    seed: int = option(0, "the chance of made-up prompts and of arrivals follows from it")
    vocab_size: int = option(0, "made-up token ids are below it; 0: what the server tells")
    end_at_eos: bool = option(False, "let answers end by themselves: lengths are not checked")
    warm_up_requests: int = option(1, "requests of other prompts that are sent and not counted")
    num_runs: int = option(1, "runs of the same load; three or more show the spread")
    flush_cache: bool = option(False, "empty the server's cache before each run: all are cold")
    admin_token: str = option("", "the token that --flush-cache needs, if any", is_secret=True)
    timeout_s: float = option(600.0, "longest wait for a whole answer, in seconds")
    num_gpus: int = option(
        0, "GPUs of the server, prefill and decode: goodput is also told per GPU"
    )
    output: str = option("", "a file for the JSON line, which is also the last line printed")
    plot: str = option("", "an .svg file for a picture of the last run")
    slo: tuple[str, ...] = option(
        (),
        "a limit in milliseconds that a good request keeps: ttft=200, itl=50 (95 percent of the "
        "gaps of an answer keep it), tpot or e2e; the flag may be given several times",
    )

    @property
    def key(self) -> str:
        """The API key that is sent, "" if there is none."""
        return next(iter(self.api_key), "")

    @property
    def slos(self) -> tuple[Slo, ...]:
        """The limits of `slo`. Raises ConfigError."""
        return tuple(Slo.parse(text) for text in self.slo)

    def __post_init__(self) -> None:
        """Raises ConfigError for settings that do not fit together."""
        for name in ("num_requests", "num_prefixes", "turns", "num_runs", "input_tokens"):
            self._require_at_least(1, name)
        for name in ("rate", "concurrency", "output_tokens", "prefix_tokens", "warm_up_requests"):
            self._require_at_least(0, name)
        for name in ("speedup", "timeout_s"):
            value = getattr(self, name)
            require(value > 0, f"{flag_of(name)} is {value:g}; it must be above 0")
        assert self.slos is not None  # read here, so that a wrong one stops the start
        require(
            not (self.rate and self.concurrency),
            "--rate and --concurrency are both given; a load has either times of its own or users "
            "who wait, so leave one out",
        )
        require(
            self.workload == "synthetic" or bool(self.dataset),
            f"--workload {self.workload} needs its file: give --dataset",
        )
        require(
            not self.plot or self.plot.endswith(".svg"),
            f"--plot is {self.plot!r}; pictures are SVG, so its name must end with .svg",
        )

    def _require_at_least(self, least: int, name: str) -> None:
        value = getattr(self, name)
        require(value >= least, f"{flag_of(name)} is {value:g}; it must be {least} or more")


def flag_of(name: str) -> str:
    """Returns the flag of a setting."""
    return "--" + name.replace("_", "-")


def add_to(commands: Any, run: Callable[[BenchConfig], None]) -> Any:
    """Adds `bench serve`, which `run` does, to the subcommands of a parser; returns its parser."""
    help_text = "measure a server under load"
    bench = commands.add_parser("bench", help=help_text, description=help_text, allow_abbrev=False)
    benches = bench.add_subparsers(required=True, metavar="BENCH")
    help_text = "put a load on any OpenAI or SGLang server and tell how it was served"
    serve = benches.add_parser("serve", help=help_text, description=help_text, allow_abbrev=False)
    add_flags(serve, BenchConfig)
    serve.set_defaults(run=lambda flags: run(resolve(BenchConfig, flags, os.environ)))
    return serve
