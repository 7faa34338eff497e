"""What happens when a coordinator leaves: in good order, or by its death."""
