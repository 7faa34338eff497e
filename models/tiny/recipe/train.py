"""Trains, exports and evaluates the tiny model: the whole recipe in one command.

    python models/tiny/recipe/train.py --out models/tiny

Run it again after a kill: it goes on from the newest checkpoint.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from batches import Batches, Stage, load
from evaluate import evaluate, print_table
from export import export
from model import Shape, TinyLlama
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizer import train_tokenizer, write_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

NUM_KEPT_CHECKPOINTS = 2
SECONDS_BETWEEN_CHECKPOINTS = 120


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the weights, apart from rounding."""

    seed: int = 1
    shape: Shape = field(default_factory=Shape)
    stages: tuple[Stage, ...] = (
        Stage(num_steps=1556, num_rows=32, num_tokens=256, echo_share=0.15),
        Stage(num_steps=415, num_rows=8, num_tokens=1024, echo_share=0.05),
        Stage(num_steps=103, num_rows=4, num_tokens=2048, echo_share=0.03),
    )  # 17 million tokens
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    cooldown_share: float = 0.5
    weight_decay: float = 0.1
    other_weight: float = 0.1  # weight of the loss on tokens that the model never has to say
    max_gradient_norm: float = 1.0

    @property
    def num_steps(self) -> int:
        """The steps of all stages."""
        return sum(stage.num_steps for stage in self.stages)

    def rate(self, step: int) -> float:
        """Returns the learning rate of a step: it rises linearly in the warm-up, stays, and falls
        linearly to zero over the last `cooldown_share` of the steps."""
        left = (self.num_steps - step) / (self.num_steps * self.cooldown_share)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps, left)


@dataclass
class Trainer:
    """The state of a training: the model, its optimizers and how many steps are done."""

    plan: TrainingPlan
    model: TinyLlama
    optimizers: list[torch.optim.Optimizer]
    device: str
    step: int = 0
    seconds: float = 0.0  # spent training, over all resumes

    @classmethod
    def start(cls, plan: TrainingPlan, device: str) -> "Trainer":
        """Returns a trainer before its first step, with weights that the seed decides."""
        torch.manual_seed(plan.seed)
        model = TinyLlama(plan.shape).to(device)
        return cls(plan, model, make_optimizers(plan, model), device)

    def save(self, folder: Path) -> None:
        """Writes a checkpoint named by its step, and deletes all but the newest two."""
        state = {
            "plan": asdict(self.plan),
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        part = folder / "checkpoint.part"
        torch.save(state, part)
        os.replace(part, folder / f"step-{self.step:06d}.pt")
        for old in sorted(folder.glob("step-*.pt"))[:-NUM_KEPT_CHECKPOINTS]:
            old.unlink()

    def resume(self, folder: Path) -> None:
        """Takes over the state of the newest checkpoint of the same plan, if there is one."""
        for path in sorted(folder.glob("step-*.pt"), reverse=True):
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["plan"] != asdict(self.plan):
                continue
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.seconds = state["step"], state["seconds"]
            return


def make_optimizers(plan: TrainingPlan, model: TinyLlama) -> list[torch.optim.Optimizer]:
    """Returns Muon with weight decay for the matrices, and Adam without for embedding and norms."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in named if p.dim() != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices,
        lr=plan.learning_rate,
        weight_decay=plan.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(others, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0)
    return [muon, adam]


def weighted_loss(model: torch.nn.Module, ids: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted mean of the next-token losses. `ids` is [rows, tokens + 1], `weights`
    [rows, tokens]."""
    logits = model(ids[:, :-1])
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def train_step(trainer: Trainer, forward: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Updates the model once. Returns the loss, still on the device."""
    ids, weights = (tensor.to(trainer.device) for tensor in batch)
    with torch.autocast(trainer.device, dtype=torch.bfloat16):
        loss = weighted_loss(forward, ids, weights)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.plan.max_gradient_norm)
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = trainer.plan.rate(trainer.step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    trainer.step += 1
    return loss.detach()


def compiled(model: TinyLlama) -> torch.nn.Module:
    """Returns the model compiled by torch.compile, or as it is where no compiler works."""
    forward = torch.compile(model, dynamic=False)
    try:
        forward(torch.zeros((1, 8), dtype=torch.int64, device=next(model.parameters()).device))
    except Exception as error:  # the compiler's own errors share no base class
        print(f"torch.compile does not work here, going on without it: {error}"[:300])
        return model
    return forward


def train(trainer: Trainer, batches: Batches, checkpoints: Path) -> None:
    """Runs the steps that are left. Saves a checkpoint every two minutes and at the end."""
    forward = compiled(trainer.model)
    saved = last = time.monotonic()
    columns = (
        BarColumn(),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=len(batches), completed=trainer.step, loss=0, rate=0)
        for batch in load(batches, trainer.step, num_workers=1):
            loss = train_step(trainer, forward, batch).item()
            now = time.monotonic()
            rate = batch[1].numel() / (now - last)
            trainer.seconds, last = trainer.seconds + now - last, now
            progress.update(bar, completed=trainer.step, loss=loss, rate=rate)
            if now - saved > SECONDS_BETWEEN_CHECKPOINTS:
                trainer.save(checkpoints)
                saved = now
    trainer.save(checkpoints)


def main() -> None:
    """Trains the tokenizer and the model, exports and evaluates it. A training that was killed goes
    on from its newest checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    arguments = parser.parse_args()
    out: Path = arguments.out
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()

    plan = TrainingPlan()
    write_tokenizer(train_tokenizer(plan.seed), checkpoints)
    tokenizer_file = checkpoints / "tokenizer.json"
    trainer = Trainer.start(plan, device)
    trainer.resume(checkpoints)
    already_spent = trainer.seconds
    batches = Batches(tokenizer_file, plan.stages, plan.seed, plan.other_weight)
    train(trainer, batches, checkpoints)
    export(trainer.model, Tokenizer.from_file(str(tokenizer_file)), out)
    results = evaluate(out, device)
    print_table(results)
    record = {
        "suites": results,
        "training": {
            "tokens": sum(s.num_steps * s.num_rows * s.num_tokens for s in plan.stages),
            "minutes_in_all": round((already_spent + time.monotonic() - started) / 60, 1),
            "device": device,
            "threads": arguments.threads,
            "torch": torch.__version__,
            "machine": platform.machine(),
        },
    }
    (out / "evaluation.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
