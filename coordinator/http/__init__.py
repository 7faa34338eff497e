"""The HTTP edge: endpoints, their bodies, their errors."""
