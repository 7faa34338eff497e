"""The other kernels of a layer: plain torch, C, Triton, deterministic."""
