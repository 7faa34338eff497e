"""The generation language: Python functions that write prompts, and what a model adds to them."""
