"""Bytes of KV pages from one node to another; knows no model and no request."""
