"""A cluster whose nodes join and are killed under load, and what its pairs of nodes cost."""
