"""The directory of a model: its configuration and its tokenizer."""
