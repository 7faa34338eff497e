"""What a coordinator measures of its requests for Prometheus. Pure."""
