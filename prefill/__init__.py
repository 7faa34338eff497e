"""The prefill node: computes prompt KV into pages and sends them to decode nodes."""
