"""The decode node: receives prompt pages and generates tokens."""
