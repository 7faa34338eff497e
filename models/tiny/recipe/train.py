"""Trains, exports and evaluates the tiny model: the whole recipe in one command.

    python models/tiny/recipe/train.py --out models/tiny

Run it again after a kill: it goes on from the newest checkpoint.
"""

import argparse
import json
import os
import platform
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch import Tensor

from batches import Batches, Stage, load
from evaluate import evaluate, print_table
from export import export
from model import Shape, TinyLlama
from tokenizer import train_tokenizer

NUM_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Plan:
    """Everything that decides the weights, apart from rounding."""

    seed: int = 1
    shape: Shape = field(default_factory=Shape)
    stages: tuple[Stage, ...] = (
        Stage(num_steps=1700, num_rows=32, num_tokens=256, echo_share=0.15),
        Stage(num_steps=900, num_rows=8, num_tokens=1024, echo_share=0.05),
        Stage(num_steps=300, num_rows=4, num_tokens=2048, echo_share=0.03),
    )
    optimizer: str = "adamw"
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    cooldown_share: float = 0.5
    weight_decay: float = 0.1
    other_weight: float = 0.1  # of the loss on tokens that the model never has to say
    max_gradient_norm: float = 1.0

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages)

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, constant, linear to zero over the cooldown."""
        left = (self.num_steps - step) / (self.num_steps * self.cooldown_share)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps, left)


@dataclass
class Trainer:
    """Model, optimizers and the step reached."""

    plan: Plan
    model: TinyLlama
    optimizers: list[torch.optim.Optimizer]
    device: str
    step: int = 0
    seconds: float = 0.0  # spent training, over all resumes

    @classmethod
    def start(cls, plan: Plan, device: str) -> "Trainer":
        torch.manual_seed(plan.seed)
        model = TinyLlama(plan.shape).to(device)
        return cls(plan, model, make_optimizers(plan, model), device)

    def save(self, folder: Path) -> None:
        """A checkpoint named by its step; older ones but one are deleted."""
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
        """Goes on from the newest checkpoint of the same plan, if there is one."""
        for path in sorted(folder.glob("step-*.pt"), reverse=True):
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["plan"] != asdict(self.plan):
                continue
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.seconds = state["step"], state["seconds"]
            return


def make_optimizers(plan: Plan, model: TinyLlama) -> list[torch.optim.Optimizer]:
    """Matrices with weight decay; embedding and norms without."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.dim() == 2 and "embed" not in name]
    others = [p for name, p in named if p.dim() != 2 or "embed" in name]
    betas = (0.9, 0.98)
    if plan.optimizer == "muon":
        muon = torch.optim.Muon(
            matrices,
            lr=plan.learning_rate,
            weight_decay=plan.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return [muon, torch.optim.AdamW(others, lr=plan.learning_rate, betas=betas, weight_decay=0)]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, lr=plan.learning_rate, betas=betas)]


def weighted_loss(model: torch.nn.Module, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean next-token loss under the weights."""
    logits = model(ids[:, :-1])
    losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum() / weights.sum()


def train_step(trainer: Trainer, forward: torch.nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """One update; returns the loss, still on the device."""
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
