"""What a request would cost on each node, for all nodes at once. Pure."""
