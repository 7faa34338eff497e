"""What travels between rank 0 and the other ranks of its node, and on what."""
