"""What a node does: its loop, its steps on the device, heartbeats, its record in Redis."""
