"""What a step computes: sequences cut into slices, and slices made into tensors."""
