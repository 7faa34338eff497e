"""What the live page shows: one picture of the cluster, made of what the core knows. Pure."""
