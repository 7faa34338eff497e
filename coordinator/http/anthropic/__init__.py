"""Anthropic's dialect of HTTP: /v1/messages."""
