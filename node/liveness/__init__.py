"""How a node proves that it lives, whatever its main process does: a companion process speaks."""
