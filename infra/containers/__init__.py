"""What containers of kvrelay run beside the command: health checks, their own name, leaving."""
