"""What happened to the cluster: nodes that came and went, drains, Redis, pauses. Pure."""
