"""Which GPUs this host has, and which node of a cluster computes on which."""
