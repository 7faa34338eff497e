"""Attention over pages: the interface, its implementations, and which one is chosen."""
