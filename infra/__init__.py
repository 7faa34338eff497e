"""The `kvrelay` command, the local cluster launcher and what containers need."""
