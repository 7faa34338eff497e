"""The engines that `benchmarks.engine` compares, and what it asks of them."""
