"""Whom a process believes, and what: the cluster's secret, and the bounds of messages."""
