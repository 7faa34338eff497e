"""`kvrelay demo`: what the cluster does, shown and checked."""
