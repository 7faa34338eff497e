"""`make gpu`: every test that needs CUDA devices, the contract of links over NCCL among them.

Says first which devices there are, and last what was skipped and why. With none it fails: tests
that were all skipped would look like tests that passed.
"""

from __future__ import annotations

import os
import sys

import torch

from benchmarks.machine import cards


def main() -> None:
    """Replaces this process with pytest, which then begins without CUDA in use."""
    num_devices = torch.cuda.device_count()
    if num_devices == 0:
        sys.exit(
            f"make gpu: torch {torch.__version__} sees no CUDA device, so nothing can be tested; "
            "it needs NVIDIA GPUs that CUDA_VISIBLE_DEVICES shows, and a torch built for CUDA"
        )
    print(f"make gpu: {num_devices} CUDA devices: {'; '.join(cards())}")
    if num_devices == 1:
        print(
            "make gpu: links over NCCL, nodes of two ranks and one node per GPU need a second one"
        )
    sys.stdout.flush()
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", *sys.argv[1:]]
    os.execv(sys.executable, words)


if __name__ == "__main__":
    main()
