"""Which device each rank of a node computes on."""

from __future__ import annotations

import torch

from protocol.config import ConfigError


def devices_of(name: str, num_ranks: int) -> list[torch.device]:
    """Returns the device of each rank. `name` is what --device says, the device of rank 0; the
    other ranks have those that follow, and behind the last one the first.

    On a CPU all ranks share it. Raises ConfigError.
    """
    first = _first_device(name)
    if first.type != "cuda":
        return [first] * num_ranks
    begin, count = first.index or 0, torch.cuda.device_count()
    if begin >= count or num_ranks > count:
        raise ConfigError(
            f"--tensor-parallel-size {num_ranks} with --device {name} needs {num_ranks} devices, "
            f"cuda:{begin} among them, but torch sees {count}; choose an earlier first device or a "
            "smaller size"
        )
    return [torch.device("cuda", (begin + rank) % count) for rank in range(num_ranks)]


def _first_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device is {name}, but torch sees no CUDA device; use --device cpu")
    return device
