"""Between the endpoints and the server: bodies, responses, request ids, connections."""
