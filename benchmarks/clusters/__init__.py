"""Real and stub nodes that benchmarks drive."""
