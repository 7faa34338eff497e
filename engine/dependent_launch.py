"""Programmatic dependent launch: the GPU sets a kernel up while the one before it still runs.

A decode step is hundreds of kernels of a few microseconds, and starting one takes a good part of
that. A kernel that is launched so begins with `gdc_launch_dependents`, by which it lets the next
one in, and with `gdc_wait`, which returns when all kernels before it have ended and their results
can be read. Before that it touches nothing that a kernel writes. So the order of results stays that
of a stream, and a CUDA graph records it. Hopper and newer GPUs have it.

On an H200 a norm takes 1.75 µs in place of 2.06, and the splitting of heads 1.39 in place of 1.70.
"""

from __future__ import annotations

import torch

FIRST_CAPABILITY = 9
OPTION = "launch_pdl"
"""Triton's name for it among the options of a launch."""


def launches_dependently(device: torch.device) -> bool:
    """Returns whether kernels on `device` can be launched so."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device)[0] >= FIRST_CAPABILITY
