"""What a process tells those who watch it: its log, and what it measures for Prometheus."""
