"""Where the time of each request goes, while it runs and for a while after. Pure."""
