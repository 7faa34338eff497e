"""Weights: where their bytes come from, and where each tensor goes."""
