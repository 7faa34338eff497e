"""What a coordinator knows and decides about nodes and requests. Pure."""
