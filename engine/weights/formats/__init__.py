"""How checkpoints store packed weights: one file for each format, each read as the tensors of a
form."""
