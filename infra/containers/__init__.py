"""What containers of kvrelay run beside the command: health checks, and their own name."""
