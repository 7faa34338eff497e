"""What a user imports: the HTTP client of a kvrelay cluster."""
