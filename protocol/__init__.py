"""What all processes of a cluster must agree on. Imports nothing else of kvrelay."""
