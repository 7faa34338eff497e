"""Sessions over HTTP: opened, closed, and gone on with by /generate."""
