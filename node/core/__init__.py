"""What a node decides. Pure: no sockets, no tensors, no clock."""
