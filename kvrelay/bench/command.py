"""`kvrelay bench serve`: reads the workload, runs it, tells what was seen."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from kvrelay.bench.config import DEFAULT_CONCURRENCY, BenchConfig
from kvrelay.bench.dialects import DIALECTS, Asking
from kvrelay.bench.http_post import Target
from kvrelay.bench.results.picture import picture_of
from kvrelay.bench.results.record import AnswerRecord
from kvrelay.bench.results.report import RunReport, document_of, show
from kvrelay.bench.results.statistics import figures_of
from kvrelay.bench.runner import LoadOutcome, LoadPlan, LoadRunner
from kvrelay.bench.server_facts import ServerAdmin, ServerFacts
from kvrelay.bench.workloads.arrivals import at_own_times, at_rate
from kvrelay.bench.workloads.dialogue import Dialogue
from kvrelay.bench.workloads.sharegpt import sharegpt_dialogues
from kvrelay.bench.workloads.synthetic import Synthetic, synthetic_dialogues
from kvrelay.bench.workloads.trace import read_trace, trace_dialogues
from protocol.errors import UserError

REPORT_WIDTH = 120
DEFAULT_OUTPUT_TOKENS = 64


class NotAResult(UserError):
    """So many requests failed that the figures mean nothing."""


def run(config: BenchConfig) -> None:
    """Measures a server. The last line printed is JSON. Raises UserError, NotAResult too."""
    dialogues = dialogues_of(config)
    admin = ServerAdmin(config)
    facts = admin.facts()
    if config.warm_up_requests:
        _run_once(config, facts, _warm_up(config), "warm-up")
    reports = []
    records: list[AnswerRecord] = []
    for number in range(1, config.num_runs + 1):
        if config.flush_cache:
            admin.flush_cache()
        outcome = _run_once(config, facts, dialogues, f"run {number}")
        records = outcome.records
        reports.append(RunReport(figures_of(records, config.slos), outcome.health))
    _tell(config, facts, reports, records)


def dialogues_of(config: BenchConfig) -> list[Dialogue]:
    """Returns what is asked, with times if the load has any. Raises UserError."""
    dialogues = _cut(_workload(config), config.num_requests)
    if config.rate:
        return at_rate(dialogues, config.rate, random.Random(config.seed))
    if dialogues[0].arrival_s is not None and not config.concurrency:
        return at_own_times(dialogues, config.speedup)
    return dialogues


def _workload(config: BenchConfig) -> list[Dialogue]:
    if config.workload == "sharegpt":
        path = Path(config.dataset)
        return sharegpt_dialogues(path, config.turns, config.output_tokens)
    if config.workload == "mooncake":
        trace = read_trace(Path(config.dataset), speedup=1.0)
        limit = config.max_input_tokens
        fitting = [one for one in trace if not limit or one.num_tokens <= limit]
        if not fitting:
            raise UserError(
                f"no prompt of the trace has at most {limit} tokens (--max-input-tokens)"
            )
        return trace_dialogues(fitting, config.output_tokens)
    return synthetic_dialogues(_sizes(config, config.seed), config.num_requests)


def _sizes(config: BenchConfig, seed: int) -> Synthetic:
    return Synthetic(
        config.input_tokens,
        config.output_tokens or DEFAULT_OUTPUT_TOKENS,
        config.prefix_tokens,
        config.num_prefixes,
        config.turns,
        seed,
    )


def _cut(dialogues: Sequence[Dialogue], num_requests: int) -> list[Dialogue]:
    """Returns the first dialogues that have `num_requests` turns in all, the last one shortened."""
    kept = []
    left = num_requests
    for dialogue in dialogues:
        if left <= 0:
            break
        kept.append(Dialogue(dialogue.turns[:left], dialogue.arrival_s))
        left -= len(dialogue.turns)
    return kept


def _warm_up(config: BenchConfig) -> list[Dialogue]:
    """Returns dialogues of one turn that share nothing with those that are measured."""
    sizes = Synthetic(config.input_tokens, 8, 0, 1, 1, seed=-1 - abs(config.seed))
    return synthetic_dialogues(sizes, config.warm_up_requests)


def _run_once(
    config: BenchConfig, facts: ServerFacts, dialogues: Sequence[Dialogue], label: str
) -> LoadOutcome:
    """Runs the dialogues, with a bar on standard error."""
    asking = Asking(facts.model, facts.vocabulary, not config.end_at_eos)
    has_times = dialogues[0].arrival_s is not None
    concurrency = 0 if has_times else config.concurrency or DEFAULT_CONCURRENCY
    plan = LoadPlan(concurrency, config.timeout_s, not config.end_at_eos)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[failed]} failed"),
        console=Console(file=sys.stderr),
        refresh_per_second=2,  # drawing takes CPU time that the generator needs
    ) as progress:
        total = sum(len(dialogue.turns) for dialogue in dialogues)
        task = progress.add_task(label, total=total, failed=0)
        num_failed = 0

        def on_record(record: AnswerRecord) -> None:
            nonlocal num_failed
            num_failed += bool(record.failure)
            progress.update(task, advance=1, failed=num_failed)

        target = Target.parse(config.url, config.key)
        runner = LoadRunner(target, DIALECTS[config.api](asking), plan, on_record)
        return uvloop.run(runner.run(dialogues))


def _tell(
    config: BenchConfig,
    facts: ServerFacts,
    reports: Sequence[RunReport],
    records: Sequence[AnswerRecord],
) -> None:
    """Prints and writes the report. Raises NotAResult."""
    document = document_of(_settings(config, facts), reports, config.flush_cache, config.num_gpus)
    console = Console()
    show(document, reports, console if console.is_terminal else Console(width=REPORT_WIDTH))
    for failure in {record.failure: record for record in records if record.failure}.values():
        console.print(f"{failure.failure}: {failure.message[:300]}", markup=False, highlight=False)
    if config.plot:
        title = f"{config.api} at {config.url}"
        _write(config.plot, picture_of(title, records, config.slos))
    line = json.dumps(document)
    if config.output:
        _write(config.output, line + "\n")
    print(line, flush=True)
    if not document["is_result"]:
        raise NotAResult("too many requests failed for a result; the report says which way")


def _settings(config: BenchConfig, facts: ServerFacts) -> dict[str, Any]:
    """Returns the settings without secrets, and what the server told."""
    secrets = {one.name for one in fields(config) if one.metadata.get("is_secret")}
    shown = {name: value for name, value in asdict(config).items() if name not in secrets}
    return shown | {"model": facts.model, "vocab_size": facts.vocabulary.stop}


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
