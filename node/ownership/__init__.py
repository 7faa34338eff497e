"""What a node writes to Redis about the pages that it owns. Pure."""
