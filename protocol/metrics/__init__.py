"""What a process counts and measures for Prometheus, and how it writes that."""
