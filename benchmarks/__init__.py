"""Measurements with their physics; results are committed under results/."""
