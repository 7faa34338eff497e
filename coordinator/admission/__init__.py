"""Who waits for whom, how long that takes, and who is refused instead. Pure."""
