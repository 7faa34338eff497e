"""Scores a finished model folder on held-out cases, with greedy decoding through transformers.

It knows the folder's files only, as any user of the model would. The weights are taken as they are
stored (bfloat16) and computed with in float32.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import corpus
import torch
from cases import SUITES, Case
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

NUM_CASES = 200
BATCH_SIZE = 40
MAX_REPLY_TOKENS = {"story": 400, "completion": 400}
REPLY_TOKENS = 96
LOOP_WORDS = 12  # this many words in a row, seen twice in one text, count as a loop


@dataclass(frozen=True)
class Reply:
    """What the model said to a case, and whether it ended by itself."""

    text: str
    ended: bool


def evaluate(folder: Path, device: str, seed: int = 7) -> dict[str, dict[str, object]]:
    """Returns, for each suite of cases.py, the share of right replies and a few wrong ones."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    results: dict[str, dict[str, object]] = {}
    for name, make in SUITES.items():
        rng = random.Random(f"{name}-{seed}")
        cases = [make(rng, lambda text: len(tokenizer.encode(text))) for _ in range(NUM_CASES)]
        limit = MAX_REPLY_TOKENS.get(name, REPLY_TOKENS)
        replies = reply_all(model, tokenizer, cases, limit)
        judge = is_sane if name in MAX_REPLY_TOKENS else is_exact
        wrong = [
            {"expected": case.expected, "reply": reply.text}
            for case, reply in zip(cases, replies, strict=True)
            if not judge(case, reply)
        ]
        results[name] = {
            "cases": len(cases),
            "right": len(cases) - len(wrong),
            "share": round(1 - len(wrong) / len(cases), 4),
            "wrong_examples": wrong[:3],
        }
    return results


def is_exact(case: Case, reply: Reply) -> bool:
    """Returns True if the reply ended and is the expected text, character for character."""
    return reply.ended and reply.text == case.expected


def is_sane(case: Case, reply: Reply) -> bool:
    """Returns True if the reply ended by itself, has 20 words or more, names its hero and does not
    repeat any LOOP_WORDS words."""
    parts = reply.text.split()
    stretches = [tuple(parts[i : i + LOOP_WORDS]) for i in range(len(parts) - LOOP_WORDS + 1)]
    no_loop = len(stretches) == len(set(stretches))
    return reply.ended and len(parts) >= 20 and no_loop and case.expected in reply.text


def prompt_ids(tokenizer: PreTrainedTokenizerBase, case: Case) -> list[int]:
    """Returns the case as token ids, at whose end the model's reply begins."""
    if not case.messages:
        return tokenizer.encode(case.text)
    text = tokenizer.apply_chat_template(
        list(case.messages), add_generation_prompt=True, tokenize=False
    )
    return tokenizer.encode(text, add_special_tokens=False)


@torch.inference_mode()
def reply_all(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, cases: list[Case], limit: int
) -> list[Reply]:
    """Returns the greedy replies of at most `limit` tokens, in the order of the cases."""
    # In the order of length, so that the prompts of a batch need little padding.
    prompts = [prompt_ids(tokenizer, case) for case in cases]
    order = sorted(range(len(cases)), key=lambda i: len(prompts[i]))
    replies: dict[int, Reply] = {}
    stops = set(tokenizer.convert_tokens_to_ids([corpus.EOS, corpus.END]))
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        length = max(len(prompts[i]) for i in chosen)
        pads = [length - len(prompts[i]) for i in chosen]
        ids = torch.tensor(
            [
                [tokenizer.pad_token_id] * pad + prompts[i]
                for pad, i in zip(pads, chosen, strict=True)
            ]
        )
        mask = torch.tensor([[0] * pad + [1] * (length - pad) for pad in pads])
        outputs = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=sorted(stops),
            pad_token_id=tokenizer.pad_token_id,
        )
        for i, output in zip(chosen, outputs[:, length:].tolist(), strict=True):
            replies[i] = _cut(tokenizer, output, stops)
    return [replies[i] for i in range(len(cases))]


def _cut(tokenizer: PreTrainedTokenizerBase, ids: list[int], stops: set[int]) -> Reply:
    """Returns the tokens before the first stop token as text, and whether there was one."""
    end = next((position for position, token in enumerate(ids) if token in stops), None)
    return Reply(tokenizer.decode(ids[:end]), end is not None)


def print_table(results: dict[str, dict[str, object]]) -> None:
    """Prints the figures for people."""
    table = Table(title="held-out cases, greedy")
    for column in ("suite", "cases", "right", "share"):
        table.add_column(column, justify="left" if column == "suite" else "right")
    for name, result in results.items():
        table.add_row(name, str(result["cases"]), str(result["right"]), f"{result['share']:.1%}")
    Console().print(table)


if __name__ == "__main__":
    measured = evaluate(Path(sys.argv[1]), "cuda" if torch.cuda.is_available() else "cpu")
    print_table(measured)
    print(json.dumps(measured, ensure_ascii=False))
