"""A trace replayed on a virtual clock."""
