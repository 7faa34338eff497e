"""Moves the bytes of KV pages from one node to another. Knows no model and no request."""
