"""Models in one GGUF file, or in a split set of them, as llama.cpp writes them. No torch."""
