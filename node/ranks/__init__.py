"""A tensor-parallel node: rank 0 schedules and tells the worker processes of the other ranks what
to do; to the shell they look like one runner and one transport.
"""
