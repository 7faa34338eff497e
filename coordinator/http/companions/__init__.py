"""Native endpoints beside /generate: health, information, tokenizing, loads, cache, control."""
