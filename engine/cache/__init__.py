"""KV pages of one node: the pool, the radix tree, and both together."""
