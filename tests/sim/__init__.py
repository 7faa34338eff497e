"""Whole clusters on a virtual clock: real cores and shells, a played world, faults as data."""
