"""What a node tells of itself in its heartbeats: counters, rates, links. Pure."""
