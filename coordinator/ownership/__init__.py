"""Which node owns which page: the index, and how it follows the record in Redis."""
