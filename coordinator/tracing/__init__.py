"""Traces of requests for OpenTelemetry, made by the coordinator of what nodes have told."""
