"""Packed weights beside the plain form of the same model and beside llama.cpp."""
