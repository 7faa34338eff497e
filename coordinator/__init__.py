"""HTTP, tokenizer, registry, prefix ownership, routing and request tracking; no torch."""
