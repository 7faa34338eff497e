"""What a node tells Prometheus. Pure."""
