"""A link is one direction of one pair of ranks: its handshake, its frames, its end."""
