"""How K and V are kept in pages, and what the checkpoint says of their scales."""
