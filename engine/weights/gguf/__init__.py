"""The weights of models in GGUF."""
