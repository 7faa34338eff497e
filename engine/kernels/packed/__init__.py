"""Triton kernels that multiply packed weights on CUDA: one file for each packed layout."""
