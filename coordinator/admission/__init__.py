"""Modules that decide who waits for whom, how long that takes, and who is refused instead. Pure."""
