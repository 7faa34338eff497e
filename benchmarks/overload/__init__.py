"""What becomes of a cluster that is asked for more than it can do."""
