"""How bytes travel: shared memory, gloo, NCCL, and which of them two nodes choose."""
