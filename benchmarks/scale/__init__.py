"""Clusters larger than any machine here, on a virtual clock, from the real cores."""
