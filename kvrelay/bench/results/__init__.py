"""What was seen of a run, and what is told of it."""
