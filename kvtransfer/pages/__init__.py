"""Which bytes of a KV pool travel, and where they arrive."""
