"""The played world of a life: clock, network, data plane, Redis, device and their oracle."""
