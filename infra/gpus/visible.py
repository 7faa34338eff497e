"""Counts the GPUs that a process of this host would see. It asks the driver's tools, not torch: a
launcher that imported torch would start seconds later."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

DRIVER_TABLE = Path("/proc/driver/nvidia/gpus")
DEVICES = Path("/dev")
ASK_TIMEOUT_S = 20.0
"""How long `nvidia-smi` may take: it wakes cards that sleep."""
CARD = "GPU "
"""How the line of a card begins in what `nvidia-smi -L` prints; those of its parts are indented."""


def num_visible_gpus(environment: Mapping[str, str]) -> int:
    """Returns how many CUDA devices torch sees in a process that has this environment."""
    if not torch_uses_gpus():
        return 0
    return len(visible_of(installed_gpus(), environment.get("CUDA_VISIBLE_DEVICES")))


def visible_of(cards: Sequence[str], variable: str | None) -> list[str]:
    """Returns those of `cards` (UUIDs) that CUDA_VISIBLE_DEVICES lets a process see, in its order.

    As CUDA does, it reads the variable up to the first entry that names no card. None: the variable
    is not set, and all are seen.
    """
    if variable is None:
        return list(cards)
    seen: list[str] = []
    for entry in filter(None, (entry.strip() for entry in variable.split(","))):
        card = _card_of(entry, cards)
        if card is None or card in seen:
            break
        seen.append(card)
    return seen


def _card_of(entry: str, cards: Sequence[str]) -> str | None:
    """Returns the card that an entry names by its number, its UUID, or the beginning of that. A
    part of a card (MIG) counts as a card of its own."""
    if entry.isdecimal():
        return cards[int(entry)] if int(entry) < len(cards) else None
    if entry.startswith("MIG-"):
        return entry if cards else None
    return next((card for card in cards if card.startswith(entry)), None)


def installed_gpus() -> list[str]:
    """Returns the UUIDs of this host's cards in the order of their numbers. Where `nvidia-smi` is
    not there to tell them, as in small containers, it returns the names of the driver's table, or
    those of the device files."""
    if program := shutil.which("nvidia-smi"):
        try:
            told = subprocess.run(
                [program, "-L"], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True
            )
        except (OSError, subprocess.SubprocessError):
            pass  # no driver, or one that does not answer: its table says which
        else:
            return listed_gpus(told.stdout)
    tabled = sorted(path.name for path in DRIVER_TABLE.glob("*"))
    return tabled or sorted(path.name for path in DEVICES.glob("nvidia[0-9]*"))


def listed_gpus(text: str) -> list[str]:
    """Returns the UUIDs of the cards in what `nvidia-smi -L` prints.

    GPU 0: NVIDIA H200 (UUID: GPU-5c8f…)
      MIG 1g.18gb Device 0: (UUID: MIG-…)
    """
    cards = [line for line in text.splitlines() if line.startswith(CARD)]
    return [card.rpartition("UUID: ")[2].rstrip(")") for card in cards]


def torch_uses_gpus() -> bool:
    """Returns whether the torch that is installed was built for CUDA: many are for CPUs alone."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b[^=]*=\s*['\"]", text, re.MULTILINE) is not None
