"""Where a request runs: candidates, costs, policies, and whose turn it is. Pure."""
