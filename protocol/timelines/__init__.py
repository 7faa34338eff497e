"""What processes tell one another of where the time of a request goes. Pure."""
