"""What grammars cost, and what forced tokens save: `python -m benchmarks.features.grammars`.

Masks: a row's mask is computed by walking the parser over a trie of the vocabulary, some ten
microseconds where a lexer was there before, and then applied to its logits, which on a CPU writes
four bytes per token of the vocabulary. Measured are both, in CPU time per token and row, in answers
of JSON and of free text inside quotes, over vocabularies of 32k and 128k tokens that are made up
from bytes by chance. What a row takes of the step's own thread is its application; the rest is done
beside the forward pass, if a core is free.

Throughput: steps of a batch of 8 on a real `ModelRunner`, every row with a grammar over steps in
which none has one; medians of turns that alternate, jump-forward left out.

Jump-forward: the same answers token by token, and with what is forced taken at once. A prompt of
several tokens costs a step little more than one token does, so a step may give several.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.engines.random_model import CONFIG, save_random_model
from benchmarks.machine import machine
from coordinator.answers.grammars import GrammarCompiler
from coordinator.grammars.kinds import GrammarKind
from engine.batches.sequence import Slice
from engine.build import load_model_runner
from engine.kernels.native.build import native_library
from engine.options import EngineOptions
from engine.sampling.grammar_masks import TokenMasks
from engine.sampling.grammars import Grammars
from engine.steps.runner import ModelRunner
from infra.models import EMBEDDED
from protocol.sampling import Sampling

VOCABULARIES = (32_000, 128_000)
BATCH = 8
PAGE_SIZE = 16
PAGES_PER_ROW = 40
PROMPT_TOKENS = 16
WARM_UP_STEPS = 5
MAX_NEW_TOKENS = 600
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "postcode": {"type": "integer"}},
            "required": ["street", "postcode"],
            "additionalProperties": False,
        },
        "skills": {"type": "array", "items": {"enum": ["python", "rust", "go"]}, "maxItems": 5},
    },
    "required": ["name", "age", "address", "skills"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
SOURCES: dict[str, tuple[GrammarKind, str]] = {
    "json": ("json_schema", json.dumps({"type": "array", "items": PERSON, "minItems": 3})),
    "text": ("regex", r'"[^"\n]{100,}"'),
    "person": ("json_schema", json.dumps(PERSON)),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-grammars", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40, help="steps of each turn")
    parser.add_argument("--turns", type=int, default=5, help="turns of each kind that alternate")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"bench": "grammars", "steps": options.steps, "turns": options.turns}
    report["masks"] = {str(size): mask_costs(size, options.steps) for size in VOCABULARIES}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in (("embedded", EMBEDDED), ("random", Path(folder) / "model")):
            if name == "random":
                save_larger_model(path)
            runner = load_model_runner(
                path,
                EngineOptions("float32", PAGE_SIZE),
                lambda _: BATCH * PAGES_PER_ROW,
                torch.device("cpu"),
            )
            compiler = GrammarCompiler((path / "tokenizer.json").read_text(encoding="utf-8"))
            report[name] = {
                "throughput_ratio": throughput(runner, compiler, options.steps, options.turns),
                "jump_forward": jump_forward(runner, compiler, options.turns),
            }
    report["machine"] = machine("torch", "llguidance")
    show(report)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def made_up_tokenizer(num_tokens: int) -> str:
    """Returns a tokenizer.json of byte-level BPE: each token joins two earlier ones, the same at
    every call. Most are letters, as in a real vocabulary."""
    chance = random.Random(1)
    alphabet = [chr(byte) if 33 <= byte < 127 else chr(256 + byte) for byte in range(256)]
    letters = [*"etaoinshrdlucmfwypvbgkjqxz"] * 4 + [chr(256 + 32)] * 20 + [*'0123456789",:{}[]._-']
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    known, merges = list(letters), []
    while len(vocabulary) < num_tokens:
        pair = chance.choice(known), chance.choice(known)
        token = "".join(pair)
        if len(token) <= 12 and token not in vocabulary:
            vocabulary[token] = len(vocabulary)
            known.append(token)
            merges.append(list(pair))
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges, "ignore_merges": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    parts = {"pre_tokenizer": {**byte_level, "use_regex": True}, "decoder": byte_level}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model, **parts})


def mask_costs(num_tokens: int, num_steps: int) -> dict[str, Any]:
    """Returns microseconds per token and row over one vocabulary, with random logits."""
    text = made_up_tokenizer(num_tokens)
    compiler, library = GrammarCompiler(text), native_library()
    costs: dict[str, Any] = {}
    for name in ("json", "text"):
        sampling = sampling_of(compiler, name)
        grammars = Grammars(lambda: text, num_tokens)
        computing, applying = [], []
        tokens = [[0] for _ in range(BATCH)]
        logits = torch.randn(BATCH, num_tokens)
        for _ in range(num_steps):
            parts = [
                Slice(
                    [row[-1]], len(row) - 1, [], sampling, None, i, row[:-1] if len(row) < 3 else []
                )
                for i, row in enumerate(tokens)
            ]
            masked = logits.clone()
            started = time.process_time()
            bits = grammars.masks([(part, part.token_ids) for part in parts])
            computed = time.process_time()
            masked = TokenMasks(range(BATCH), bits, library).apply(masked)
            applying.append(time.process_time() - computed)
            computing.append(computed - started)
            drawn = torch.softmax(masked, -1).multinomial(1)
            for row, token in zip(tokens, drawn.flatten().tolist(), strict=True):
                row.append(token)
        costs[name] = {
            "compute_us": in_microseconds(computing[WARM_UP_STEPS:]),
            "compute_mean_us": round(statistics.mean(computing[WARM_UP_STEPS:]) / BATCH * 1e6, 1),
            "apply_us": in_microseconds(applying),
        }
    return costs


def in_microseconds(seconds: list[float]) -> float:
    """Returns the median, per row."""
    return round(statistics.median(seconds) / BATCH * 1e6, 1)


def sampling_of(compiler: GrammarCompiler, name: str) -> Sampling:
    grammar = compiler.compile_now(*SOURCES[name])
    return Sampling(
        temperature=1.0,
        seed=1,
        grammar=grammar,
        prompt_length=1,
        end_token_ids=(1,),
        max_new_tokens=MAX_NEW_TOKENS,
    )


class Answers:
    """Some answers on a runner, step by step, each with pages of its own."""

    def __init__(
        self, runner: ModelRunner, sampling: Sampling, jumps: bool, restarts: bool = False
    ) -> None:
        """`restarts`: an answer that ends begins again, so that every step has as many rows."""
        self._runner = runner
        self._restarts = restarts
        self._jumps = jumps
        chance = random.Random(3)
        prompts = [[chance.randrange(9, 999) for _ in range(PROMPT_TOKENS)] for _ in range(BATCH)]
        self._tokens = prompts
        self._num_fed = [0] * BATCH
        self._samplings = [
            Sampling(
                temperature=sampling.temperature,
                seed=i,
                grammar=sampling.grammar,
                prompt_length=PROMPT_TOKENS,
                end_token_ids=sampling.end_token_ids,
                max_new_tokens=sampling.max_new_tokens,
            )
            for i in range(BATCH)
        ]
        self.num_tokens = 0
        self.running = list(range(BATCH))

    def step(self) -> None:
        """Gives every running answer its next token, or several that are forced."""
        parts = []
        for row in self.running:
            begin, tokens = self._num_fed[row], self._tokens[row]
            pages = range(row * PAGES_PER_ROW, (row + 1) * PAGES_PER_ROW)
            parts.append(Slice(tokens[begin:], begin, pages, self._samplings[row], None, row))
            self._num_fed[row] = len(tokens)
        sampled = self._runner.start(parts).sampled()
        for row, each in zip(list(self.running), sampled, strict=True):
            assert each is not None
            new = each.tokens if self._jumps else each.tokens[:1]
            self._tokens[row] += new
            self.num_tokens += len(new)
            is_full = len(self._tokens[row]) >= PAGES_PER_ROW * PAGE_SIZE - 32
            if is_full or new[-1] in self._samplings[row].end_token_ids:
                self._runner.end_sequence(row)
                self._tokens[row], self._num_fed[row] = self._tokens[row][:PROMPT_TOKENS], 0
                if not self._restarts:
                    self.running.remove(row)

    def end(self) -> None:
        for row in range(BATCH):
            self._runner.end_sequence(row)


def throughput(
    runner: ModelRunner, compiler: GrammarCompiler, num_steps: int, num_turns: int
) -> dict[str, float]:
    """Returns tokens per second with a grammar over those without, by grammar."""
    ratios = {}
    for name in ("json", "text"):
        with_grammar = sampling_of(compiler, name)
        plain = Sampling(temperature=1.0, end_token_ids=())
        turns = alternate(
            [partial(steps_per_s, runner, how, num_steps) for how in (with_grammar, plain)],
            num_turns,
        )
        ratios[name] = round(turns[0] / turns[1], 3)
    return ratios


def steps_per_s(runner: ModelRunner, sampling: Sampling, num_steps: int) -> float:
    answers = Answers(runner, sampling, jumps=False, restarts=True)
    answers.step()  # the prompts
    started = time.perf_counter()
    for _ in range(num_steps):
        answers.step()
    elapsed = time.perf_counter() - started
    answers.end()
    return num_steps / elapsed


def jump_forward(
    runner: ModelRunner, compiler: GrammarCompiler, num_turns: int
) -> dict[str, float]:
    """Returns what a schema with fixed spaces gains."""
    sampling = sampling_of(compiler, "person")
    per_step: dict[bool, float] = {}

    def tokens_per_s(jumps: bool) -> float:
        answers = Answers(runner, sampling, jumps)
        num_rows, started = 0, time.perf_counter()
        while answers.running:
            num_rows += len(answers.running)
            answers.step()
        elapsed = time.perf_counter() - started
        answers.end()
        per_step[jumps] = answers.num_tokens / num_rows
        return answers.num_tokens / elapsed

    fast, slow = alternate([partial(tokens_per_s, True), partial(tokens_per_s, False)], num_turns)
    return {
        "tokens_per_step": round(per_step[True], 2),
        "tokens_per_s_over_single_steps": round(fast / slow, 2),
    }


def alternate(measures: list[Callable[[], float]], num_turns: int) -> list[float]:
    """Returns the median of each, after a turn to warm up."""
    turns = [[measure() for measure in measures] for _ in range(num_turns + 1)]
    return [statistics.median(values) for values in zip(*turns[1:], strict=True)]


def save_larger_model(path: Path) -> None:
    save_random_model(path, {**CONFIG, "vocab_size": 32_000, "eos_token_id": 1})
    (path / "tokenizer.json").write_text(made_up_tokenizer(32_000))


def rows_of(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for size, costs in report["masks"].items():
        for name, cost in costs.items():
            what = f"mask per token and row, vocabulary {size}, {name}"
            yield what, f"{cost['compute_us']} µs to compute, {cost['apply_us']} µs to apply"
    for name in ("embedded", "random"):
        for grammar, ratio in report[name]["throughput_ratio"].items():
            yield f"throughput with a grammar ÷ without, {name} model, {grammar}", f"{ratio}"
        gain = report[name]["jump_forward"]
        yield (
            f"jump-forward, {name} model",
            f"{gain['tokens_per_step']} tokens a step, "
            f"{gain['tokens_per_s_over_single_steps']} × the tokens per second",
        )


def show(report: dict[str, Any]) -> None:
    table = Table("measured", "figure", box=box.SIMPLE, title="Grammars")
    for row in rows_of(report):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
