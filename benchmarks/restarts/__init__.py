"""What restarts of a cluster's processes cost its clients, window by window."""
